"""`momentum-sync`, and `python -m momentum_sync`: the command line, where it is installed."""

from __future__ import annotations

import gc
import sys
from importlib.util import find_spec

_NEEDED = ("typer", "fastapi", "psycopg", "uvicorn")


def main() -> None:
    """Run the command line. Without the extra `server`, print the install command and exit with status 2."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        print(
            f"momentum-sync: only the SDK is installed, not the server (missing: {', '.join(missing)}).\n"
            "  In a checkout: pip install '.[server]'. From a wheel: pip install './momentum_sync-….whl[server]'.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    # Garbage collections while modules are imported find next to nothing, and take a fifth of the time. Later ones need
    # not look at the modules again.
    gc.disable()
    from momentum_sync.cli.main import make_app

    command = make_app(sys.argv[1:])
    gc.freeze()
    gc.enable()
    command()


if __name__ == "__main__":
    main()
