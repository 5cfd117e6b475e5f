"""Checks over the network: the issuer of tokens, NATS, and the server itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import jwt
import msgspec
import nats
from nats.aio.client import Client

from momentum_sync.doctor.configuration import without_password
from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.eventlog.broker import BrokerOptions, connect_once
from momentum_sync.identity.keys import fetch_keys, key_set_url
from momentum_sync.limits import Limits
from momentum_sync.observe import described
from momentum_sync.settings import Settings
from momentum_sync.version import __version__

_TIMEOUT_S = 5.0
_SLOW_S = 0.05
_CATCHING_UP = (
    "Capture reads what was committed before. A new slot or epoch also waits for every transaction that was open then:"
    " see `transactions`."
)
_LEAST_PAYLOAD = 1024 * 1024  # the default of NATS; capture's messages are smaller


async def check_issuer(settings: Settings) -> AsyncIterator[Finding]:
    """Yield whether the issuer's keys can be fetched."""
    if settings.issuer is None:
        return
    url = key_set_url(settings.issuer)
    shown = without_password(url)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            keys = await fetch_keys(url, Limits().keys)
    except (httpx.HTTPError, OSError, ValueError, TypeError, msgspec.MsgspecError, jwt.PyJWTError) as error:
        yield Finding(
            "settings", "issuer", Level.PROBLEM, f"{shown}: {described(error)}",
            "Without the keys no token that they sign can be verified; clients get 503.",
            "Check SUPABASE_URL and the network; for a project with an HS256 secret set SUPABASE_JWT_SECRET alone.",
        )  # fmt: skip
        return
    if keys:
        yield Finding("settings", "issuer", Level.OK, f"{shown} has {len(keys)} keys")
    elif settings.jwt_secret is not None:
        yield Finding("settings", "issuer", Level.OK, f"{shown} has no keys; tokens are signed with the HS256 secret")
    else:
        yield Finding(
            "settings", "issuer", Level.PROBLEM, f"{shown} has no keys for signatures",
            "The project signs with an HS256 secret, which is not set: every token is refused.",
            "Set SUPABASE_JWT_SECRET to the project's secret (Supabase: Settings, JWT keys, legacy secret).",
        )  # fmt: skip


async def check_nats(settings: Settings) -> AsyncIterator[Finding]:
    """Yield whether each address of NATS takes a message and gives it back."""
    for number, url in enumerate(settings.nats_urls, 1):
        name = f"NATS {number}" if len(settings.nats_urls) > 1 else "NATS"
        ca = None if settings.nats_ca is None else str(settings.nats_ca)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                client = await connect_once(BrokerOptions((url,), ca), "momentum-sync doctor", _TIMEOUT_S)
                try:
                    yield await _round_trip(client, name)
                finally:
                    await client.close()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            yield Finding(
                "network", name, Level.PROBLEM,
                f"{without_password(url)}: {type(error).__name__}: {error}".rstrip(": "),
                "Gateways read the log several times a second instead; broadcasts between clients and presence stay on"
                " one gateway.",
                "Start nats-server, or set MOMENTUM_NATS_URL (and MOMENTUM_NATS_CA) to where it listens.",
            )  # fmt: skip


async def _round_trip(client: Client, name: str) -> Finding:
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, max_msgs=1)
    await client.flush()
    began = time.monotonic()
    await client.publish(inbox, b"doctor")
    await subscription.next_msg(_TIMEOUT_S)
    took = time.monotonic() - began
    server = f"{client.connected_url.hostname}:{client.connected_url.port}" if client.connected_url else "?"
    found = f"{server} answers within {took * 1000:.1f} ms; messages of up to {client.max_payload:,} bytes"
    if client.max_payload < _LEAST_PAYLOAD:
        return Finding(
            "network", name, Level.WARNING, found, "Larger batches are not sent; gateways read them from the log.",
            f"Set max_payload: {_LEAST_PAYLOAD} in the configuration of nats-server.",
        )  # fmt: skip
    if took > _SLOW_S:
        return Finding("network", name, Level.WARNING, found, "Every event is delayed by this round trip.",
                       "Run NATS near capture and gateways.")  # fmt: skip
    return Finding("network", name, Level.OK, found)


async def check_server(url: str, *, is_asked_for: bool) -> AsyncIterator[Finding]:
    """Yield the health of the server at a URL. That none runs there matters only if it `is_asked_for`."""
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as http:
            answer = await http.get(f"{url}/sync/health?verbose")
        health: Mapping[str, Any] = answer.json()
        capture = health["capture"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        is_refused = isinstance(error, httpx.ConnectError)
        yield Finding(
            "servers", "health", Level.PROBLEM if is_asked_for or not is_refused else Level.NOTE,
            f"no server answers at {url} ({described(error)})" if is_refused
            else f"{url} is not a server of Momentum Sync ({type(error).__name__})",
            "Clients cannot connect there." if is_asked_for else "",
            "momentum-sync serve, or give the address of the one that runs: --url",
        )  # fmt: skip
        return
    for finding in _health(url, health, capture):
        yield finding


def _health(url: str, health: Mapping[str, Any], capture: Mapping[str, Any]) -> list[Finding]:
    status = str(health.get("status"))
    found = (
        f"{url} is {status}: {health.get('connected_clients')} clients, feed {capture.get('state')},"
        f" {capture.get('lag_ms')} ms behind"
    )
    problem = str(capture.get("problem") or "")
    level = {"healthy": Level.OK, "standby": Level.OK, "degraded": Level.WARNING}.get(status, Level.PROBLEM)
    findings = [
        Finding("servers", "health", Level.OK, found)
        if level is Level.OK
        else Finding(
            "servers",
            "health",
            level,
            found,
            _CATCHING_UP
            if capture.get("state") == "catching_up"
            else problem
            or "; ".join(map(str, health.get("reasons") or []))
            or "See `health changed` in the server's log.",
            "See the other findings; they name what is wrong with the database, NATS or the triggers.",
        )
    ]
    version = str(health.get("version", "of an earlier version"))
    if version == __version__:
        findings.append(Finding("servers", "server's version", Level.OK, version))
    else:
        findings.append(Finding(
            "servers", "server's version", Level.WARNING, f"{version}; this command is {__version__}",
            "What this command checks may differ from what that server needs.", "Upgrade: docs/upgrade.md",
        ))  # fmt: skip
    return findings + _sdks(health.get("sdks") or {}, version)


def _sdks(sdks: Mapping[str, Any], server: str) -> list[Finding]:
    """Return findings about the SDKs of the clients that are connected, by name and version."""
    if not sdks:
        return []
    listed = ", ".join(
        f"{count} with {'an unknown SDK' if name == 'other' else name}" for name, count in sorted(sdks.items())
    )
    others = [
        name
        for name in sdks
        if name != "other" and not name.startswith("supabase-") and _minor(name.rpartition("-")[2]) != _minor(server)
    ]
    if not others:
        return [Finding("servers", "clients' SDKs", Level.OK, listed)]
    return [Finding(
        "servers", "clients' SDKs", Level.NOTE, listed,
        f"{', '.join(sorted(others))}: not the server's version. The server understands SDKs of earlier"
        " versions.",
        "Update the SDK in the app when convenient: docs/upgrade.md",
    )]  # fmt: skip


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
