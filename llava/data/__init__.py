"""Getting the benchmarks' files: where they are, fetching, unpacking, converting, checking.

``python scripts/data/prepare.py NAME --root DIR``; see docs/data.md.
"""
