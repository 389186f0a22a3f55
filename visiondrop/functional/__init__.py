"""The arithmetic of the methods as pure tensor functions on G pictures, one idea a module.

What the stages themselves are made of stands beside this package: `visiondrop.scoring` (attention
rows and column means) and `visiondrop.merging` (contextual merge, provenance).
"""
