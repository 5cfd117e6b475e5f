"""All checks, in the order of a report, in which each comes after those that it depends on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack

from momentum_sync.database.embedded import Embedded
from momentum_sync.doctor.configuration import check_settings
from momentum_sync.doctor.database import check_database
from momentum_sync.doctor.delivery import check_delivery
from momentum_sync.doctor.finding import Finding, Level
from momentum_sync.doctor.network import check_issuer, check_nats, check_server
from momentum_sync.doctor.rights import check_rights
from momentum_sync.errors import Unsuitable
from momentum_sync.settings import Settings

_NEEDED = ("connection", "migrations", "privileges")


def examine(
    settings: Settings, names: Iterable[str], *, url: str | None, token: str | None, probes: bool
) -> Iterator[Finding]:
    """Yield the findings of all checks.

    Args:
        settings: the operator's settings.
        names: names of all environment variables.
        url: root URL of a server; None: the one that these settings would start, if it runs.
        token: a user's token for the probe, if one is needed.
        probes: publish an event, and wait for it at a client.
    """
    yield from check_settings(settings, names)
    yield from _collected(check_issuer(settings))
    address = url or settings.local_url
    with ExitStack() as stack:
        conninfo = settings.database_url
        if conninfo is None:
            try:
                settings.check_embedded()
                if Embedded(settings.data_dir).exists:
                    conninfo = stack.enter_context(Embedded(settings.data_dir)).conninfo
                else:
                    yield Finding(
                        "database",
                        "connection",
                        Level.NOTE,
                        "no DATABASE_URL, and no embedded PostgreSQL yet",
                        fix="momentum-sync serve   # creates it; or set DATABASE_URL",
                    )
            except Unsuitable as error:
                yield Finding(
                    "database", "connection", Level.PROBLEM, str(error), "Nothing works without it.", error.hint
                )
        if conninfo is not None:
            is_ready = True
            for finding in check_database(settings, conninfo):
                # Without a connection or the migrations the database cannot answer as a client.
                is_ready = is_ready and not (
                    finding.level in (Level.PROBLEM, Level.UNKNOWN)
                    and finding.check in ("connection", "migrations", "privileges")
                )
                yield finding
            if is_ready:
                yield from _collected(check_rights(conninfo))
        yield from _collected(check_nats(settings))
        yield from _collected(check_server(address, is_asked_for=url is not None or probes))
        if probes and conninfo is not None:
            yield from _collected(check_delivery(settings, conninfo, address, token))


def _collected(findings: AsyncIterator[Finding]) -> Iterator[Finding]:
    """Return the findings of checks on the network."""

    async def collect() -> list[Finding]:
        return [finding async for finding in findings]

    return iter(asyncio.run(collect()))
