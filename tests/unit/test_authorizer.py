"""Grants count only if they were read after every change that is known."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast
from uuid import UUID

import pytest

from momentum_sync.database.pool import CallerPool, Lane
from momentum_sync.database.visibility import Snapshot
from momentum_sync.domain.tables import SCHEMA
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.channels import Granted
from momentum_sync.identity.tokens import Identity


def identity(offset: int) -> Identity:
    user = UUID(int=offset)
    return Identity("authenticated", user, json.dumps({"sub": str(user)}), None)


ONE, TWO = identity(1), identity(2)
OWN = SCHEMA.own(UUID(int=1))


class Database:
    """A stand-in for the pool: records callers, and answers which channels are granted and which are checked."""

    def __init__(self) -> None:
        self.asked_by: list[Identity] = []
        self.to_be_asked: list[str] = []
        self.refused: set[str] = set()
        self.snapshot = "100:100:"
        self.up_to_date = True
        self.meanwhile: Callable[[], None] = lambda: None

    async def until_visible(self) -> AsyncIterator[None]:
        for _ in range(5):
            yield

    async def ask(
        self, caller: Identity, *queries: tuple[object, Mapping[str, list[str]]], lane: Lane
    ) -> list[list[tuple[Any, ...]]]:
        self.asked_by.append(caller)
        wanted = [channel for channel in queries[0][1]["channels"] if channel not in self.refused]
        snapshot = self.snapshot
        self.meanwhile()
        return [[(True, wanted, self.to_be_asked, snapshot)], *([("more",)] for _ in queries[1:])]


def asking() -> tuple[Database, Authorizer]:
    database = Database()
    return database, Authorizer(cast(CallerPool, database), SCHEMA, most=2, up_to_date=lambda: database.up_to_date)


def test_every_change_must_have_been_seen_in_whatever_order_they_came() -> None:
    _, authorizer = asking()
    assert authorizer.is_current(Snapshot.parse("5:5:"), ONE)
    authorizer.changed(20)
    authorizer.changed(10)
    assert not authorizer.is_current(Snapshot.parse("10:21:10"), ONE)
    assert not authorizer.is_current(Snapshot.parse("12:20:"), ONE)
    assert authorizer.is_current(Snapshot.parse("21:21:"), ONE)


def test_a_revocation_is_waited_for_by_its_user_alone() -> None:
    _, authorizer = asking()
    authorizer.changed(10, ONE.subject)
    assert not authorizer.is_current(Snapshot.parse("5:10:"), ONE)
    assert authorizer.is_current(Snapshot.parse("5:10:"), TWO)


async def test_the_grants_of_a_users_own_channels_are_queried_once_per_token() -> None:
    database, authorizer = asking()
    for _ in range(3):
        assert await authorizer.granted(ONE, ONE.subject, OWN) == Granted(OWN)
    assert len(database.asked_by) == 1
    assert await authorizer.granted(ONE, ONE.subject, OWN[:1]) == Granted(OWN[:1])
    other_token = Identity("authenticated", ONE.subject, '{"iat": 2}', None)
    await authorizer.granted(other_token, ONE.subject, OWN)
    assert len(database.asked_by) == 3


async def test_a_snapshot_is_always_asked_for_and_its_rights_are_remembered() -> None:
    database, authorizer = asking()
    for _ in range(2):
        assert await authorizer.granted_with(ONE, ONE.subject, OWN, "select") == (Granted(OWN), ("more",))
    await authorizer.granted(ONE, ONE.subject, OWN)
    assert len(database.asked_by) == 2


@pytest.mark.parametrize(
    ("identity", "user_id", "channels"),
    [
        (ONE, TWO.subject, SCHEMA.own(TWO.subject)),
        (ONE, None, OWN),
        (ONE, ONE.subject, [*OWN, "interventions:coaches"]),
        (ONE, ONE.subject, [f"momentum_updates:{TWO.subject}"]),
        (Identity("service_role", None, "{}", None), ONE.subject, OWN),
    ],
)
async def test_what_rows_decide_or_others_own_is_asked_each_time(
    identity: Identity, user_id: UUID | None, channels: list[str]
) -> None:
    database, authorizer = asking()
    await authorizer.granted(identity, user_id, channels)
    await authorizer.granted(identity, user_id, channels)
    assert len(database.asked_by) == 2


async def test_what_is_asked_about_each_event_or_was_refused_is_not_remembered() -> None:
    for change in ({"to_be_asked": OWN[:1]}, {"refused": {OWN[0]}}):
        database, authorizer = asking()
        for name, value in change.items():
            setattr(database, name, value)
        await authorizer.granted(ONE, ONE.subject, OWN)
        await authorizer.granted(ONE, ONE.subject, OWN)
        assert len(database.asked_by) == 2


async def test_changed_policies_drop_all_cached_grants_and_a_revocation_those_of_its_user() -> None:
    database, authorizer = asking()
    changes: list[tuple[Callable[[], None], int]] = [
        (lambda: authorizer.changed(50), 2), (lambda: authorizer.changed(60, ONE.subject), 1), (authorizer.missed, 2),
    ]  # fmt: skip
    for change, expected in changes:
        await authorizer.granted(ONE, ONE.subject, OWN)
        await authorizer.granted(TWO, TWO.subject, SCHEMA.own(TWO.subject))
        database.asked_by.clear()
        change()
        await authorizer.granted(ONE, ONE.subject, OWN)
        await authorizer.granted(TWO, TWO.subject, SCHEMA.own(TWO.subject))
        assert len(database.asked_by) == expected


async def test_an_answer_from_before_a_change_is_not_remembered() -> None:
    database, authorizer = asking()
    database.meanwhile = authorizer.missed
    await authorizer.granted(ONE, ONE.subject, OWN)
    database.meanwhile = lambda: None
    await authorizer.granted(ONE, ONE.subject, OWN)
    assert len(database.asked_by) == 2


async def test_cached_grants_are_not_used_while_changes_may_be_missed() -> None:
    database, authorizer = asking()
    await authorizer.granted(ONE, ONE.subject, OWN)
    database.up_to_date = False
    await authorizer.granted(ONE, ONE.subject, OWN)
    database.up_to_date = True
    await authorizer.granted(ONE, ONE.subject, OWN)
    assert len(database.asked_by) == 2


async def test_what_is_remembered_is_bounded_and_the_latest_used_stays() -> None:
    database, authorizer = asking()
    people = [identity(offset) for offset in range(1, 4)]
    for who in (people[0], people[1], people[0], people[2]):
        await authorizer.granted(who, who.subject, SCHEMA.own(who.subject))
    database.asked_by.clear()
    for who in (people[0], people[2], people[1]):
        await authorizer.granted(who, who.subject, SCHEMA.own(who.subject))
    assert database.asked_by == [people[1]]


def test_channels() -> None:
    assert SCHEMA.own(None) == []
    assert len(SCHEMA.own(UUID(int=1))) == 4
    assert "interventions:coaches" in SCHEMA.shared_channels
    assert f"interventions:{UUID(int=1)}" not in SCHEMA.shared_channels


def test_changes_of_another_history_are_forgotten_with_it() -> None:
    """After a failover the transaction counter may be lower, so a snapshot never sees the ids of the old cluster."""
    _, authorizer = asking()
    authorizer.changed(1_000_000)
    assert not authorizer.is_current(Snapshot.parse("5:5:"), ONE)
    authorizer.missed()
    assert authorizer.is_current(Snapshot.parse("5:5:"), ONE)


async def test_what_is_remembered_is_bounded_in_bytes_whatever_tokens_say() -> None:
    _, authorizer = asking()
    large = Identity("authenticated", ONE.subject, json.dumps({"sub": str(ONE.subject), "x": "x" * 16_000}), None)
    await authorizer.granted(large, large.subject, OWN)
    assert [len(key) for key in authorizer._own] == [32]
