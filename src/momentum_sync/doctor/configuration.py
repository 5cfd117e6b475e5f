"""Checks of the settings, and of the machine that they ask something of."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.settings import Settings, unknown

AREA = "settings"
_LEAST_SECRET_BYTES = 32  # RFC 7518, section 3.2, for HS256
_FILES_BESIDE_SOCKETS = 200  # connections of the database, logs, the event loop
_LEAST_DISK_BYTES = 5 * 1024**3


def check_settings(settings: Settings, names: Iterable[str]) -> Iterator[Finding]:
    """Yield findings about the settings. `names` are those of all environment variables."""
    yield _names(names)
    yield _tokens(settings)
    yield _origins(settings)
    yield _address(settings)
    yield from _open_things(settings)
    yield _files(settings)
    if settings.database_url is None:
        yield _disk(settings)


def _names(names: Iterable[str]) -> Finding:
    wrong = unknown(names)
    if not wrong:
        return Finding(AREA, "variables", Level.OK, "each MOMENTUM_… variable is a setting")
    return Finding(
        AREA, "variables", Level.WARNING, f"not settings: {', '.join(wrong)}",
        "They have no effect; a misspelt setting has its default.", "momentum-sync serve --help   # lists all settings",
    )  # fmt: skip


def _tokens(settings: Settings) -> Finding:
    if settings.development:
        return Finding(
            AREA, "tokens", Level.NOTE,
            f"signed with a secret that was made for this machine, in {settings.data_dir}",
            "Tokens of a Supabase project are refused, and `momentum-sync token` makes valid ones.",
            "Set SUPABASE_URL=https://<project>.supabase.co, or SUPABASE_JWT_SECRET, as the project has them.",
        )  # fmt: skip
    secret = None if settings.jwt_secret is None else settings.jwt_secret.get_secret_value()
    if secret is not None and len(secret.encode()) < _LEAST_SECRET_BYTES:
        return Finding(
            AREA, "tokens", Level.WARNING, f"the HS256 secret has {len(secret.encode())} bytes",
            "A short secret can be guessed from one token; whoever has it may act as any user.",
            f"Use a secret of at least {_LEAST_SECRET_BYTES} bytes: openssl rand -base64 48",
        )  # fmt: skip
    ways = [
        *(["an HS256 secret"] if secret is not None else []),
        *([f"the keys of {settings.issuer}"] if settings.issuer is not None else []),
    ]
    return Finding(AREA, "tokens", Level.OK, f"verified with {' and '.join(ways)}; audience {settings.jwt_audience}")


def _origins(settings: Settings) -> Finding:
    origins = settings.allowed_origins
    if "*" in origins:
        return Finding(
            AREA, "origins", Level.WARNING, "pages of any origin may connect",
            "Any page that a user visits may try to connect with a token that it got hold of.",
            "Set MOMENTUM_ALLOWED_ORIGINS=https://app.example to the origins of your pages.",
        )  # fmt: skip
    broken = [origin for origin in origins if not _is_origin(origin)]
    if broken:
        return Finding(
            AREA, "origins", Level.PROBLEM, f"not an origin: {', '.join(broken)}",
            "An Origin header has a scheme and a host, so these never match.", "Write https://app.example",
        )  # fmt: skip
    if not origins:
        return Finding(
            AREA, "origins", Level.NOTE,
            "only the server's own pages and clients without an Origin, such as phones, may connect",
            mend="For pages elsewhere set MOMENTUM_ALLOWED_ORIGINS=https://app.example",
        )  # fmt: skip
    return Finding(AREA, "origins", Level.OK, ", ".join(origins))


def _is_origin(text: str) -> bool:
    parts = urlsplit(text)
    # "null" is what sandboxed pages send; other schemes are those of app shells, such as capacitor://localhost.
    return text == "null" or bool(parts.scheme and parts.hostname)


def _address(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        return Finding(
            AREA, "address", Level.NOTE, f"{where}, which this machine alone can reach",
            mend="Behind a proxy on the same machine this is right; else set MOMENTUM_HOST=0.0.0.0",
        )  # fmt: skip
    return Finding(AREA, "address", Level.OK, f"{where}; TLS is the proxy's work: deploy/nginx.conf, deploy/Caddyfile")


def _open_things(settings: Settings) -> Iterator[Finding]:
    if settings.token_in_query:
        yield Finding(
            AREA, "tokens in URLs", Level.WARNING, "MOMENTUM_TOKEN_IN_QUERY accepts ?access_token=…",
            "Proxies log URLs, and so the tokens.", "Unset it, and send the token in a header or the subprotocol.",
        )  # fmt: skip
    if settings.metrics_open:
        yield Finding(
            AREA, "metrics", Level.NOTE, "anybody who reaches the server may read /metrics",
            mend="If the network is not private, unset MOMENTUM_METRICS_OPEN and scrape with the service key.",
        )  # fmt: skip


def _files(settings: Settings) -> Finding:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + _FILES_BESIDE_SOCKETS
    if most == resource.RLIM_INFINITY or most >= needed:
        return Finding(AREA, "open files", Level.OK, "the limit allows MOMENTUM_MAX_CONNECTIONS sockets")
    return Finding(
        AREA, "open files", Level.WARNING,
        f"at most {most:,}, and {settings.max_connections:,} connections are allowed",
        "Each connection is a file; beyond the limit new ones are not accepted.",
        f"Raise the hard limit (systemd: LimitNOFILE={needed}), or set MOMENTUM_MAX_CONNECTIONS={most // 2}",
    )  # fmt: skip


def _disk(settings: Settings) -> Finding:
    folder = settings.data_dir.expanduser()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1024**3:.1f} GiB free under {settings.data_dir}"
    if free >= _LEAST_DISK_BYTES:
        return Finding(AREA, "disk", Level.OK, found)
    return Finding(
        AREA, "disk", Level.WARNING, found, "The embedded PostgreSQL keeps the tables, the log and the WAL there.",
        "Free some space, or set MOMENTUM_DATA_DIR to another disk, or MOMENTUM_RETENTION=1d",
    )  # fmt: skip


def environment_names() -> list[str]:
    """Return the names of all environment variables."""
    return list(os.environ)
