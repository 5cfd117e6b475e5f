"""Checks of the settings and of this machine's resources."""

from __future__ import annotations

import errno
import resource
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.errors import Unsuitable
from momentum_sync.gateway.io_uring import open_ring
from momentum_sync.limits import DeliveryLimits
from momentum_sync.settings import Settings, unknown
from momentum_sync.telemetry import check_installed

AREA = "settings"
_LEAST_SECRET_BYTES = 32  # RFC 7518, section 3.2, for HS256
_FILES_BESIDE_SOCKETS = 200  # connections of the database, logs, the event loop
_LEAST_DISK_BYTES = 5 * 1024**3
SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


def invalid(error: Unsuitable, *, ends_checks: bool) -> Finding:
    """Return the finding for an invalid setting. `ends_checks`: no other check can run."""
    what = "The other checks cannot run until the settings are valid." if ends_checks else "The others use its default."
    return Finding(AREA, "invalid", Level.PROBLEM, str(error), f"`serve` does not start. {what}", error.hint)


def check_settings(settings: Settings, names: Iterable[str]) -> Iterator[Finding]:
    """Yield findings about the settings. `names` are those of all environment variables."""
    yield _names(names)
    yield _tokens(settings)
    yield _origins(settings)
    yield _address(settings)
    yield from _exposure(settings)
    yield _files(settings)
    yield _backlog(settings)
    if settings.role != "capture":
        yield _ring(settings)
    if settings.otel:
        yield _telemetry()
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


def _telemetry() -> Finding:
    try:
        check_installed()
    except Unsuitable as error:
        return Finding(AREA, "OpenTelemetry", Level.PROBLEM, str(error), "serve does not start.", error.hint)
    return Finding(AREA, "OpenTelemetry", Level.OK, "traces and metrics are sent as the OTEL_… variables say")


def _tokens(settings: Settings) -> Finding:
    if settings.development:
        return Finding(
            AREA, "tokens", Level.NOTE,
            f"development mode: verified with a secret generated on this machine, in {settings.data_dir}",
            "Tokens of a Supabase project are refused, and `momentum-sync token` makes valid ones.",
            "Set SUPABASE_URL=https://<project>.supabase.co, or SUPABASE_JWT_SECRET, as the project has them.",
        )  # fmt: skip
    secret = None if settings.jwt_secret is None else settings.jwt_secret.get_secret_value()
    if secret is not None and len(secret.encode()) < _LEAST_SECRET_BYTES:
        return Finding(
            AREA, "tokens", Level.WARNING, f"the HS256 secret has {len(secret.encode())} bytes",
            "A short secret can be brute-forced from one token; anyone who finds it can act as any user.",
            f"Use a secret of at least {_LEAST_SECRET_BYTES} bytes: openssl rand -base64 48",
        )  # fmt: skip
    ways = [
        *(["an HS256 secret"] if secret is not None else []),
        *([f"the keys of {without_password(settings.issuer)}"] if settings.issuer is not None else []),
    ]
    return Finding(AREA, "tokens", Level.OK, f"verified with {' and '.join(ways)}; audience {settings.jwt_audience}")


def _origins(settings: Settings) -> Finding:
    origins = settings.allowed_origins
    if "*" in origins:
        return Finding(
            AREA, "origins", Level.WARNING, "pages of any origin may connect",
            "Any page that a user visits can connect if it has obtained that user's token.",
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
            fix="For pages elsewhere set MOMENTUM_ALLOWED_ORIGINS=https://app.example",
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
            AREA, "address", Level.NOTE, f"{where}, reachable only from this machine",
            fix="Correct behind a proxy on this machine; otherwise set MOMENTUM_HOST=0.0.0.0",
        )  # fmt: skip
    return Finding(AREA, "address", Level.OK, f"{where}; a proxy terminates TLS: deploy/nginx.conf, deploy/Caddyfile")


def _exposure(settings: Settings) -> Iterator[Finding]:
    if settings.token_in_query:
        yield Finding(
            AREA, "tokens in URLs", Level.WARNING, "MOMENTUM_TOKEN_IN_QUERY accepts ?access_token=…",
            "Proxies log URLs, and so the tokens.", "Unset it, and send the token in a header or the subprotocol.",
        )  # fmt: skip
    if settings.metrics_open:
        yield Finding(
            AREA, "metrics", Level.NOTE, "anybody who reaches the server may read /metrics",
            fix="If the network is not private, unset MOMENTUM_METRICS_OPEN and scrape with the service key.",
        )  # fmt: skip


def _files(settings: Settings) -> Finding:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + _FILES_BESIDE_SOCKETS
    if most == resource.RLIM_INFINITY or most >= needed:
        return Finding(AREA, "open files", Level.OK, "the limit allows MOMENTUM_MAX_CONNECTIONS sockets")
    return Finding(
        AREA, "open files", Level.WARNING,
        f"the hard limit is {most:,}, but MOMENTUM_MAX_CONNECTIONS allows {settings.max_connections:,}",
        "Each connection needs a file descriptor; at the limit new connections are refused.",
        f"Raise the hard limit (systemd: LimitNOFILE={needed}), or set MOMENTUM_MAX_CONNECTIONS={most // 2}",
    )  # fmt: skip


def _backlog(settings: Settings) -> Finding:
    try:
        most = int(SOMAXCONN.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return Finding(AREA, "backlog", Level.OK, "the kernel names no limit for connections that wait to be accepted")
    if most >= settings.max_connections:
        return Finding(AREA, "backlog", Level.OK, "the kernel lets MOMENTUM_MAX_CONNECTIONS wait to be accepted")
    return Finding(
        AREA, "backlog", Level.NOTE,
        f"the kernel lets {most:,} connections wait to be accepted, and MOMENTUM_MAX_CONNECTIONS allows"
        f" {settings.max_connections:,}",
        "After a restart all clients connect at once; those that do not fit try again after 1, 3 and 7 seconds.",
        f"sysctl -w net.core.somaxconn={settings.max_connections}   # if so many clients are expected on one machine",
    )  # fmt: skip


def _ring(settings: Settings) -> Finding:
    limits = DeliveryLimits()
    cost = "One event for 1,000 clients takes about a quarter more of the processor."
    if settings.io_uring == "off":
        return Finding(
            AREA, "io_uring", Level.NOTE, "MOMENTUM_IO_URING=off", cost,
            "Unset it to write a frame for many clients with one system call.",
        )  # fmt: skip
    try:
        open_ring(limits.ring_entries, limits.ring_bytes)
    except OSError as error:
        # Podman's default profile answers as a kernel without it.
        is_forbidden = sys.platform == "linux" and error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS)
        return Finding(
            AREA, "io_uring", Level.NOTE, f"not available here: {error.strerror}", cost,
            "Optional: in a container, allow io_uring_setup and io_uring_enter in its seccomp profile; on the host,"
            " sysctl -w kernel.io_uring_disabled=0" if is_forbidden else "",
        )  # fmt: skip
    return Finding(AREA, "io_uring", Level.OK, "a frame for many clients is written with one system call")


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


def without_password(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
