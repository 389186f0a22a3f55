"""The paper's argument, measured: where scores keep tokens, and what is lost.

Each module computes a table, then plots it:

    python -m analysis.positional_bias --help        # or from Python: compute(...), plot(...)

`setting` opens a checkpoint with questions about pictures; `probe` looks into a model without
dropping anything; `scores` are the scores that methods judge tokens by.
"""
