"""The answer to a resume over HTTP, when the history changes while it is made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from momentum_sync.domain.application import MOMENTUM
from momentum_sync.errors import Unavailable
from momentum_sync.eventlog.page import Page
from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.gateway import Gateway
from momentum_sync.gateway.http.events import missed_events
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity
from momentum_sync.limits import Limits

NOBODY = Identity("service_role", None, "{}", None)


def gateway(reached: Position, resumed: Position, through: int) -> Gateway:
    """Return a gateway with its feed at `reached`, which resumes at `resumed`; each page ends at `through`."""

    async def reach(_: Position) -> None:
        pass

    async def resume(*_: object, **__: object) -> object:
        return SimpleNamespace(granted=Granted(["a"]), position=resumed, refused=[])

    async def after(epoch: str, offset: int, keys: Sequence[str], *, most: int) -> Page:
        return Page([], through)

    return cast(
        Gateway,
        SimpleNamespace(
            application=MOMENTUM, limits=Limits(), opener=SimpleNamespace(resume=resume),
            history=SimpleNamespace(reach=reach, position=reached, lsn=0, after=after),
        ),
    )  # fmt: skip


async def ask(of: Gateway, last: Position) -> tuple[str, bool]:
    async with asyncio.timeout(5):
        found = await missed_events(of, NOBODY, ["a"], str(last), limit=10)
    return found.last_event_id, found.complete


BEFORE, NOW = Position("aaaaaaaa", 1_270, 7), Position("bbbbbbbb", 906, 8)


async def test_without_events_the_client_is_at_the_feeds_position() -> None:
    last = Position("aaaaaaaa", 900, 6)
    assert await ask(gateway(BEFORE, last, through=1_270), last) == (str(BEFORE), True)


async def test_an_epoch_that_ends_while_the_database_is_asked_is_told() -> None:
    with pytest.raises(Unavailable, match="Another history"):
        await ask(gateway(BEFORE, NOW, through=906), NOW)


async def test_a_feed_that_goes_back_within_an_epoch_is_told() -> None:
    last = Position("aaaaaaaa", 900, 6)
    with pytest.raises(Unavailable, match="Another history"):
        await ask(gateway(BEFORE, last, through=900), last)
