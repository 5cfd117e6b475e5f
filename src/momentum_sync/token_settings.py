"""The requirements of valid tokens under the operator's settings, and the secret of development mode."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from pydantic import SecretStr

from momentum_sync.identity.tokens import TokenRules
from momentum_sync.settings import Settings


def token_rules(settings: Settings) -> TokenRules:
    """Return the requirements of valid tokens under these settings."""
    return TokenRules(
        secret=development_secret(settings.data_dir) if settings.development else _revealed(settings.jwt_secret),
        issuer=settings.issuer,
        audience=settings.jwt_audience,
        anon_key=_revealed(settings.anon_key),
        service_role_key=_revealed(settings.service_role_key),
        more_roles=frozenset(settings.roles),
    )


def development_secret(data_dir: Path) -> str:
    """Return the HS256 secret of development mode: made once, in a file that only its owner can read."""
    path = development_secret_path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_text(encoding="ascii").strip():
        path.unlink()  # written by a version that could be interrupted between creating and writing it
    if not path.exists():
        # A temporary file has mode 0600. Linking it makes the whole secret appear at once, and the first process wins.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(48))
            try:
                os.link(name, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    return path.read_text(encoding="ascii").strip()


def development_secret_path(data_dir: Path) -> Path:
    """Return the path of the secret of development mode."""
    return data_dir.expanduser() / "development.secret"


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
