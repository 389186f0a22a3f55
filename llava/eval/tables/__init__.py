"""Tables of several benchmarks: one specification each, one engine for all.

    python -m llava.eval.tables table1_llava15        (bash scripts/tables/table1_llava15.sh)

`spec` says what a table is and `registry` lists them; `columns` plans them, `answer` and `work`
have them answered, `figures` compares, and the writers put them down.
"""
