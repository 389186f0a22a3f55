"""Every benchmark's official files as data: addresses, sizes, sums and who published them.

A sum stands here only where somebody published it; ``sum_from`` says who.  Sizes in ``about`` are
rough.  See docs/data.md for how far this was checked.
"""
