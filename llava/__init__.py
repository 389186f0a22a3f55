"""LLaVA's own front on stock transformers: loader, prompts, pictures, command lines.

The import paths are those that LLaVA's users know; model arithmetic is transformers' own.
"""
