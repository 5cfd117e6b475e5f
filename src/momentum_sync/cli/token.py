"""`momentum-sync token`: a signed token for tests."""

from __future__ import annotations

import time
from datetime import timedelta
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import jwt
import typer

from momentum_sync.cli import explained
from momentum_sync.errors import Unsuitable
from momentum_sync.settings import Settings, duration, read
from momentum_sync.token_settings import development_secret_path, token_rules


class Role(StrEnum):
    """The role in the token."""

    user = "user"
    coach = "coach"
    admin = "admin"
    service_role = "service_role"


def token(
    user: Annotated[
        UUID | None, typer.Option(help="User of the token: the id in auth.users. Not for service_role.")
    ] = None,
    role: Annotated[
        Role, typer.Option(help="Role of the token; coach and admin become app_metadata.role.")
    ] = Role.user,
    expires: Annotated[str, typer.Option(help="Lifetime: a number with s, m, h or d.")] = "1h",
) -> None:
    """Print a token signed with SUPABASE_JWT_SECRET, or with the development secret if there is none."""
    with explained():
        settings = read()
        secret = secret_of(
            settings, "Sign in to the project to get a token, or set SUPABASE_JWT_SECRET to the server's secret."
        )
        if (user is None) != (role is Role.service_role):
            raise Unsuitable(
                "--user is required, except for service_role, which has no user.",
                f"momentum-sync token --user <uuid>{'' if role is Role.service_role else f' --role {role}'}",
            )
        lifetime = duration(expires)
        if lifetime is None:
            raise Unsuitable(f"--expires {expires} is not a duration.", "Write a number with s, m, h or d, such as 1h")
    if settings.development:
        where = development_secret_path(settings.data_dir)
        typer.echo(
            f"Signed with the development secret in {where}: only a server that uses the same secret accepts this"
            " token.",
            err=True,
        )
    typer.echo(sign(secret, user, role, lifetime, audience=settings.jwt_audience))


def secret_of(settings: Settings, otherwise: str) -> str:
    """Return the secret that signs the project's tokens. Raise Unsuitable, with alternatives, if there is none."""
    secret = token_rules(settings).secret
    if secret is None:
        raise Unsuitable(
            "Only the issuer at SUPABASE_URL can sign tokens for this project, because it alone has the private key.",
            otherwise,
        )
    return secret


def sign(secret: str, user: UUID | None, role: Role, lifetime: timedelta, *, audience: str) -> str:
    """Sign an HS256 token as Supabase Auth does."""
    now = int(time.time())
    claims: dict[str, object] = {"iat": now, "exp": now + int(lifetime.total_seconds())}
    if role is Role.service_role:
        claims["role"] = "service_role"
    else:
        claims |= {"sub": str(user), "role": "authenticated", "aud": audience}
        claims["app_metadata"] = {} if role is Role.user else {"role": role.value}
    return jwt.encode(claims, secret, algorithm="HS256")
