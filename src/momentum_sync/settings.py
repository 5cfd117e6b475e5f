"""Every setting with its unit, default and reason, read once from the environment and `.env`."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from momentum_sync.errors import Unsuitable

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_LEAST_SECRET = 32  # bytes; RFC 7518, section 3.2, requires this for HS256
_LEAST_KEY = 16
_LEAST_RECEIPTS = timedelta(milliseconds=100)
_HIGHEST_PORT, _MOST_CORES = 65535, 256
_SECRETS = {
    "jwt_secret": "SUPABASE_JWT_SECRET", "supabase_jwt_secret": "SUPABASE_JWT_SECRET",
    "anon_key": "SUPABASE_ANON_KEY", "supabase_anon_key": "SUPABASE_ANON_KEY",
    "service_role_key": "SUPABASE_SERVICE_ROLE_KEY", "supabase_service_role_key": "SUPABASE_SERVICE_ROLE_KEY",
}  # fmt: skip


def _default_data_dir() -> Path:
    # PostgreSQL does not run as root, and its user cannot look into root's home.
    return Path("/var/lib/momentum-sync") if os.geteuid() == 0 else platformdirs.user_data_path("momentum-sync")


def duration(text: str) -> timedelta | None:
    """Parse a number with s, m, h or d; None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    try:
        return timedelta(seconds=float(found[1]) * _UNITS[found[2]]) if found else None
    except OverflowError:
        return None


class Settings(BaseSettings):
    """The operator's settings. Make them with `read`."""

    model_config = SettingsConfigDict(
        env_file=".env", env_prefix="MOMENTUM_", extra="ignore", frozen=True, populate_by_name=True,
        use_attribute_docstrings=True,
    )  # fmt: skip

    database_url: str | None = Field(None, validation_alias=AliasChoices("database_url", "DATABASE_URL"))
    """libpq URL of a PostgreSQL >= 15. Unset: an embedded PostgreSQL under the data directory."""

    capture_url: str | None = None
    """URL of the same database with a role for reading the WAL; only it needs REPLICATION. Unset: DATABASE_URL."""

    supabase_url: str | None = Field(None, validation_alias=AliasChoices("supabase_url", "SUPABASE_URL"))
    """Issuer of the tokens; its keys are fetched from /auth/v1/.well-known/jwks.json."""

    jwt_secret: SecretStr | None = Field(None, validation_alias=AliasChoices("jwt_secret", "SUPABASE_JWT_SECRET"))
    """HS256 secret, for projects that sign tokens with one."""

    anon_key: SecretStr | None = Field(None, validation_alias=AliasChoices("anon_key", "SUPABASE_ANON_KEY"))
    """Public API key. It grants nothing by itself; a request with another key is refused."""

    service_role_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("service_role_key", "SUPABASE_SERVICE_ROLE_KEY")
    )
    """API key with the rights of `service_role`."""

    host: str = "127.0.0.1"
    """Address to listen on. An address beyond loopback needs a secret or SUPABASE_URL."""

    port: int = Field(8787, ge=0, le=65535)
    """Port to listen on; 0: any free one."""

    data_dir: Path = Field(default_factory=_default_data_dir)
    """Directory of the embedded PostgreSQL and the development secret."""

    retention: timedelta = timedelta(days=7)
    """How long the log keeps events, and so how long a client may be offline and still resume; rounded up to days."""

    # Without NoDecode, pydantic-settings would parse the variable as JSON.
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of web pages that may connect, comma-separated, in addition to the server's own; `*`: any. Clients
    without an
    Origin may always connect."""

    jwt_audience: str = "authenticated"
    """Required `aud` claim; tokens without `aud` are accepted."""

    roles: Annotated[tuple[str, ...], NoDecode] = ()
    """Database roles, comma-separated, whose tokens may connect by Supabase's protocol, in addition to anon,
    authenticated and service_role. The server's role must be a member of each."""

    deletes: str = Field("checked", pattern="^(checked|key)$")
    """Supabase's protocol, tables with row level security: `checked` sends a DELETE to those who could see the row,
    which needs a replica identity with the columns that the policies read; `key` sends one that cannot be checked to
    all, with the key alone, as Supabase does."""

    token_in_query: bool = False
    """Accept `?access_token=`. Off by default, because proxies log URLs."""

    pages: bool = True
    """Serve the pages for a user and for a coach under /pages. They contain no data without a token."""

    metrics_open: bool = False
    """Answer /metrics without authentication. Otherwise it needs the service key, or a token of `service_role`."""

    metrics_per_second: float = Field(20.0, ge=0.0, le=1000.0)
    """Delivered events per second that get a row in `realtime_event_metrics`. Failures always get one."""

    # PostgreSQL's rule for names of slots: lower-case letters, digits and underscores, at most 63.
    slot: str = Field("momentum_sync", pattern=r"^[a-z0-9_]{1,63}$")
    """Replication slot: one for each database, shared by all servers of the database."""

    role: str = Field("all", pattern="^(all|capture|gateway)$")
    """`capture`, which reads the WAL and writes the log; `gateway`, which serves clients; or `all`: both, without
    NATS. One capture is active, further ones stand by."""

    workers: str | None = Field(None, pattern="^(auto|[1-9][0-9]{0,2})$")
    """A number, or `auto` (one less than there are cores): run a capture and so many gateways as processes that
    share the port. A private nats-server is started, unless MOMENTUM_NATS_URL is set."""

    reuse_port: bool = False
    """Share the port with other gateways on this machine (SO_REUSEPORT)."""

    own_port: int | None = Field(None, ge=0, le=65535)
    """Additional port on loopback with health and metrics of this process. With --workers, capture uses the next
    port, and the gateways those after it; unset: any free ones, which the log names."""

    nats_url: SecretStr | None = None
    """Addresses of NATS, comma-separated, for --role and --workers: nats://user:password@host:4222,
    nats://token@host, or tls://."""

    nats_prefix: str = Field("momentum_sync", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Prefix of the NATS subjects. Copies of one database, such as a staging system made from a snapshot, need
    different ones if they share NATS."""

    nats_ca: Path | None = None
    """File with the CA certificates for TLS to NATS. Unset: those of the system."""

    window_bytes: int = Field(64 * 1024 * 1024, ge=64 * 1024)
    """Memory of each process for the newest events."""

    send_buffer_bytes: int = Field(1024 * 1024, ge=16 * 1024)
    """Unsent bytes of one client above which it stops following the feed and catches up as it reads."""

    send_total_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024)
    """Unsent bytes of all clients of a process together."""

    max_connections: int = Field(20_000, ge=1)
    """Concurrent WebSockets of each process."""

    max_connections_per_user: int = Field(50, ge=1)
    """Concurrent WebSockets of one user."""

    io_uring: str = Field("auto", pattern="^(auto|off)$")
    """`auto`: write a frame for many clients with one system call, where Linux has io_uring and allows it; `off`:
    with one for each client."""

    pool_size: int = Field(8, ge=1)
    """Database connections of each process for HTTP requests. It opens up to 8 more for snapshots, grants and event
    checks, 8 for the log, and 3 for capture and metrics."""

    heartbeat: timedelta = timedelta(seconds=25)
    """Interval of heartbeats to clients. Mobile networks drop connections that are idle for 30 s."""

    drain: timedelta = timedelta(seconds=10)
    """Time over which client connections are closed at shutdown, so that clients do not all reconnect at once."""

    receipts: timedelta | None = None
    """Interval at which devices that were sent events are pinged for a receipt. Unset: receipts come with the regular
    pings, at no extra cost."""

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """DEBUG, INFO, WARNING or ERROR."""

    log_format: str = Field("auto", pattern="^(auto|json|text)$")
    """`json`: an object a line; `text`: for people; `auto`: text on a terminal, JSON elsewhere."""

    otel: bool = False
    """Send traces of events, and the metrics, to an OpenTelemetry collector. It takes the extra `otel`. OpenTelemetry's
    own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, say where and how."""

    otel_traces: float = Field(0.01, gt=0, le=1)
    """Share of the events that are traced."""

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, values: object) -> object:
        """Reject empty secrets, which would protect nothing. Other empty values count as unset."""
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            if name.lower() in _SECRETS and isinstance(value, str) and not value.strip():
                raise ValueError(f"{_SECRETS[name.lower()]} is empty; set a value or unset it")
        return {name: value for name, value in values.items() if not isinstance(value, str) or value.strip()}

    @field_validator("retention", "heartbeat", "drain", "receipts", mode="before")
    @classmethod
    def _duration(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = duration(value)
        if found is None:
            raise ValueError(f"{value} is not a duration; write a number with s, m, h or d, such as 12h")
        return found

    @field_validator("retention", "heartbeat", "drain", "receipts", mode="after")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value <= timedelta(0):
            raise ValueError("must be more than 0")
        return value

    @field_validator("receipts", mode="after")
    @classmethod
    def _not_too_often(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value < _LEAST_RECEIPTS:
            raise ValueError("must be at least 0.1s")
        return value

    @field_validator("allowed_origins", "roles", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("supabase_url", mode="after")
    @classmethod
    def _no_slash(cls, value: str | None) -> str | None:
        # The issuer is compared as text, so a second slash would refuse every token.
        return value.rstrip("/") if value else value

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.capture_url is not None and self.database_url is None:
            raise ValueError("MOMENTUM_CAPTURE_URL is set but DATABASE_URL is not; both must name the same database")
        if self.development and self.host not in _LOOPBACK:
            raise ValueError(
                f"MOMENTUM_HOST={self.host} would expose a server without a JWT secret to the network;"
                " set SUPABASE_JWT_SECRET or SUPABASE_URL first"
            )
        if self.host not in _LOOPBACK:
            # The anon key grants nothing, so its length does not matter.
            for secret, name, least in (
                (self.jwt_secret, "SUPABASE_JWT_SECRET", _LEAST_SECRET),
                (self.service_role_key, "SUPABASE_SERVICE_ROLE_KEY", _LEAST_KEY),
            ):
                if secret is not None and len(secret.get_secret_value().encode()) < least:
                    raise ValueError(
                        f"{name} is shorter than {least} bytes, which is too easy to guess;"
                        f" set a longer one, or MOMENTUM_HOST=127.0.0.1 in place of {self.host}"
                    )
        return self

    @model_validator(mode="after")
    def _connected(self) -> Self:
        if self.workers is not None and self.role != "all":
            raise ValueError(
                "MOMENTUM_WORKERS runs all roles and cannot be combined with MOMENTUM_ROLE; unset one of them"
            )
        if self.role == "all":
            if self.own_port and self.workers is not None:
                last = self.own_port + 1 + (int(self.workers) if self.workers.isdigit() else _MOST_CORES)
                if last > _HIGHEST_PORT or self.own_port < self.port <= last:
                    raise ValueError(f"MOMENTUM_OWN_PORT needs the ports up to {last}, without MOMENTUM_PORT")
            return self
        if self.nats_url is None:
            raise ValueError(
                f"MOMENTUM_ROLE={self.role} needs NATS; set MOMENTUM_NATS_URL=nats://host:4222, the same for all roles"
            )
        if self.database_url is None:
            raise ValueError(f"MOMENTUM_ROLE={self.role} needs DATABASE_URL, the same database for all roles")
        return self

    @field_validator("nats_url", mode="after")
    @classmethod
    def _addresses(cls, value: SecretStr | None) -> SecretStr | None:
        for url in [] if value is None else value.get_secret_value().split(","):
            try:
                parts = urlsplit(url.strip())
                is_address = parts.scheme in ("nats", "tls") and parts.hostname and parts.port != 0
            except ValueError:  # the port is no number, or too high
                is_address = False
            if not is_address:
                raise ValueError("each address must be nats://host:port or tls://host:port")
        return value

    @field_validator("nats_ca", mode="after")
    @classmethod
    def _certificates(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                ssl.create_default_context(cafile=value)
            except OSError as error:  # also ssl.SSLError
                raise ValueError(f"{value} is not a readable file with certificates ({error.strerror})") from error
        return value

    @property
    def nats_urls(self) -> tuple[str, ...]:
        """Return the addresses of NATS, which may have passwords."""
        urls = "" if self.nats_url is None else self.nats_url.get_secret_value()
        return tuple(url.strip() for url in urls.split(",") if url.strip())

    def check_broker(self) -> None:
        """Raise Unsuitable if a server would leave NATS unused. Other commands share the variable, and may."""
        if self.role == "all" and self.nats_url is not None and self.workers is None:
            raise Unsuitable(
                "MOMENTUM_NATS_URL is set, but role `all` does not use NATS.",
                "Set --role capture, --role gateway or --workers, or unset MOMENTUM_NATS_URL.",
            )

    def check_embedded(self) -> None:
        """Raise Unsuitable if an embedded PostgreSQL would replace a database that was forgotten."""
        given = [
            name
            for name, value in (
                ("SUPABASE_URL", self.supabase_url),
                ("SUPABASE_ANON_KEY", self.anon_key),
                ("SUPABASE_SERVICE_ROLE_KEY", self.service_role_key),
                (f"MOMENTUM_HOST={self.host}", None if self.host in _LOOPBACK else self.host),
            )
            if value is not None
        ]
        if given:
            raise Unsuitable(
                f"DATABASE_URL is not set, and an embedded PostgreSQL is not used together with {given[0]}.",
                "Set DATABASE_URL=postgresql://user:password@host:5432/database to the database of the app.",
            )

    @property
    def development(self) -> bool:
        """Return whether no setting says how tokens are signed, so that a secret is generated."""
        return self.jwt_secret is None and self.supabase_url is None

    @property
    def local_url(self) -> str:
        """Return the root URL by which this machine reaches a server with these settings."""
        return f"http://{_reachable(self.host)}:{self.port}"

    @property
    def issuer(self) -> str | None:
        """Return the `iss` of tokens, which is also the root of the key set's address."""
        return f"{self.supabase_url}/auth/v1" if self.supabase_url else None


def _reachable(host: str) -> str:
    """Return an address by which this machine reaches a server that listens on `host`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name
        return host
    if address.is_unspecified:  # every address
        return "127.0.0.1"
    return f"[{host}]" if address.version == 6 else host


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    aliases = Settings.model_fields[name].validation_alias
    if isinstance(aliases, AliasChoices):
        return str(aliases.choices[-1])
    return f"MOMENTUM_{name.upper()}"


def unknown(names: Iterable[str]) -> list[str]:
    """Return the names that start with `MOMENTUM_` but are not settings."""
    known = {f"MOMENTUM_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in names if name.startswith("MOMENTUM_") and name not in known)


def read_environment() -> Settings:
    """Return the settings of the environment alone, without `.env`. Raise Unsuitable as `read`."""
    return _read({"_env_file": None})


def read(**given: object) -> Settings:
    """Return the settings; those in `given` that are not None take precedence over the environment and `.env`.

    Raises:
        Unsuitable: a setting is wrong; the message names the first.
    """
    return _read({name: value for name, value in given.items() if value is not None})


def read_with_errors(**given: object) -> tuple[Settings | None, list[Unsuitable]]:
    """Return the settings, with defaults in place of invalid values, and the errors.

    The settings are None if they contradict each other; defaults may cause that.
    """
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**values), []
    except ValidationError as error:
        wrong = [_unsuitable(each) for each in error.errors()]
        names = [_field(each) for each in error.errors()]
    for name in names:
        if name is None:
            return None, wrong
        values[name] = Settings.model_fields[name].get_default(call_default_factory=True)
    try:
        return Settings(**values), wrong
    except ValidationError as error:
        return None, [*wrong, *map(_unsuitable, error.errors())]


def _read(values: dict[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        raise _unsuitable(error.errors()[0]) from error


def _field(error: ErrorDetails) -> str | None:
    """Return the setting that an error concerns; None if it concerns several."""
    name = "_".join(str(part) for part in error["loc"][:1])
    return next((each for each in Settings.model_fields if name in (each, variable(each))), None)


def _unsuitable(error: ErrorDetails) -> Unsuitable:
    """Return an error with the variable of the setting, and a value to write instead."""
    name = "_".join(str(part) for part in error["loc"])
    named = name if name.isupper() else f"MOMENTUM_{name.upper()}"
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch" and name in Settings.model_fields:
        said = f"{error['input']!r} is not valid. {' '.join((Settings.model_fields[name].description or '').split())}"
        said = said.rstrip(".")
    return Unsuitable(
        f"{named}: {said}." if name else f"{said}.",
        "Set it in the environment or in .env; `momentum-sync serve --help` lists all settings.",
    )
