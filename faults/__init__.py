"""Random histories under faults, judged by an independent witness: a seed in, a verdict out.

`workload` writes, `nemesis` injects faults, `clients` connect and disconnect, `witness` reads from PostgreSQL's
`test_decoding` what was committed, `checker` compares. `python -m faults --help`.
"""
