"""`python -m momentum_sync` is `momentum-sync`."""

from momentum_sync.cli.main import app

app()
