"""Random histories under faults, judged by an independent witness: a seed in, a verdict out.

`workload` writes, `nemesis` injects faults, `clients` connect and disconnect, `witness` records the committed changes
with PostgreSQL's `test_decoding`, and `checker` compares both. `python -m faults --help`.
"""
