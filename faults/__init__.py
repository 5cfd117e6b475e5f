"""Randomised histories under faults, against a witness of their own: a seed, and a verdict.

`workload` writes, `nemesis` breaks things, `clients` come and go, `witness` tells what was committed from PostgreSQL's
own `test_decoding`, `checker` compares. `python -m faults --help`.
"""
