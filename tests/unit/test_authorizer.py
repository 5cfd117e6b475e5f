"""Authorizer count only if they were read after every change that is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast
from uuid import UUID

import pytest

from momentum_sync.database.pool import CallerPool, Lane
from momentum_sync.database.visibility import Snapshot
from momentum_sync.identity.authorizer import Authorizer
from momentum_sync.identity.channels import Granted, is_shared, own_channels
from momentum_sync.identity.tokens import Identity


def identity(offset: int) -> Identity:
    user = UUID(int=offset)
    return Identity("authenticated", user, json.dumps({"sub": str(user)}), None)


ONE, TWO = identity(1), identity(2)
OWN = own_channels(UUID(int=1))


class Database:
    """Stands in for the pool: notes who asks, and answers that the channels are granted, as `held` or `asked`."""

    def __init__(self) -> None:
        self.asked_by: list[Identity] = []
        self.to_be_asked: list[str] = []
        self.refused: set[str] = set()
        self.snapshot = "100:100:"
        self.hears = True
        self.meanwhile: Callable[[], None] = lambda: None

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
    return database, Authorizer(cast(CallerPool, database), most=2, hears=lambda: database.hears)


def test_every_change_must_have_been_seen_in_whatever_order_they_came() -> None:
    _, rights = asking()
    assert rights.are_those_of(Snapshot.parse("5:5:"), ONE)
    rights.changed(20)
    rights.changed(10)
    assert not rights.are_those_of(Snapshot.parse("10:21:10"), ONE)
    assert not rights.are_those_of(Snapshot.parse("12:20:"), ONE)
    assert rights.are_those_of(Snapshot.parse("21:21:"), ONE)


def test_a_revocation_is_waited_for_by_its_user_alone() -> None:
    _, rights = asking()
    rights.changed(10, ONE.subject)
    assert not rights.are_those_of(Snapshot.parse("5:10:"), ONE)
    assert rights.are_those_of(Snapshot.parse("5:10:"), TWO)


async def test_what_a_token_gives_its_user_is_asked_once() -> None:
    database, rights = asking()
    for _ in range(3):
        assert await rights.granted(ONE, ONE.subject, OWN) == Granted(OWN)
    assert len(database.asked_by) == 1
    assert await rights.granted(ONE, ONE.subject, OWN[:1]) == Granted(OWN[:1])
    other_token = Identity("authenticated", ONE.subject, '{"iat": 2}', None)
    await rights.granted(other_token, ONE.subject, OWN)
    assert len(database.asked_by) == 3


async def test_a_snapshot_is_always_asked_for_and_its_rights_are_remembered() -> None:
    database, rights = asking()
    for _ in range(2):
        assert await rights.granted_with(ONE, ONE.subject, OWN, "select") == (Granted(OWN), ("more",))
    await rights.granted(ONE, ONE.subject, OWN)
    assert len(database.asked_by) == 2


@pytest.mark.parametrize(
    ("identity", "user_id", "channels"),
    [
        (ONE, TWO.subject, own_channels(TWO.subject)),
        (ONE, None, OWN),
        (ONE, ONE.subject, [*OWN, "interventions:coaches"]),
        (ONE, ONE.subject, [f"momentum_updates:{TWO.subject}"]),
        (Identity("service_role", None, "{}", None), ONE.subject, OWN),
    ],
)
async def test_what_rows_decide_or_others_own_is_asked_each_time(
    identity: Identity, user_id: UUID | None, channels: list[str]
) -> None:
    database, rights = asking()
    await rights.granted(identity, user_id, channels)
    await rights.granted(identity, user_id, channels)
    assert len(database.asked_by) == 2


async def test_what_is_asked_about_each_event_or_was_refused_is_not_remembered() -> None:
    for change in ({"to_be_asked": OWN[:1]}, {"refused": {OWN[0]}}):
        database, rights = asking()
        for name, value in change.items():
            setattr(database, name, value)
        await rights.granted(ONE, ONE.subject, OWN)
        await rights.granted(ONE, ONE.subject, OWN)
        assert len(database.asked_by) == 2


async def test_a_change_has_all_of_it_asked_again_and_a_revocation_what_is_the_users() -> None:
    database, rights = asking()
    changes: list[tuple[Callable[[], None], int]] = [
        (lambda: rights.changed(50), 2), (lambda: rights.changed(60, ONE.subject), 1), (rights.missed, 2),
    ]  # fmt: skip
    for change, expected in changes:
        await rights.granted(ONE, ONE.subject, OWN)
        await rights.granted(TWO, TWO.subject, own_channels(TWO.subject))
        database.asked_by.clear()
        change()
        await rights.granted(ONE, ONE.subject, OWN)
        await rights.granted(TWO, TWO.subject, own_channels(TWO.subject))
        assert len(database.asked_by) == expected


async def test_an_answer_from_before_a_change_is_not_remembered() -> None:
    database, rights = asking()
    database.meanwhile = rights.missed
    await rights.granted(ONE, ONE.subject, OWN)
    database.meanwhile = lambda: None
    await rights.granted(ONE, ONE.subject, OWN)
    assert len(database.asked_by) == 2


async def test_what_is_remembered_does_not_count_while_changes_are_not_told_of() -> None:
    database, rights = asking()
    await rights.granted(ONE, ONE.subject, OWN)
    database.hears = False
    await rights.granted(ONE, ONE.subject, OWN)
    database.hears = True
    await rights.granted(ONE, ONE.subject, OWN)
    assert len(database.asked_by) == 2


async def test_what_is_remembered_is_bounded_and_the_latest_used_stays() -> None:
    database, rights = asking()
    people = [identity(offset) for offset in range(1, 4)]
    for who in (people[0], people[1], people[0], people[2]):
        await rights.granted(who, who.subject, own_channels(who.subject))
    database.asked_by.clear()
    for who in (people[0], people[2], people[1]):
        await rights.granted(who, who.subject, own_channels(who.subject))
    assert database.asked_by == [people[1]]


def test_channels() -> None:
    assert own_channels(None) == []
    assert len(own_channels(UUID(int=1))) == 4
    assert is_shared("interventions:coaches")
    assert not is_shared(f"interventions:{UUID(int=1)}")


def test_changes_of_another_history_are_forgotten_with_it() -> None:
    """After a failover the transaction counter may be lower, so a snapshot never sees the ids of the old cluster."""
    _, rights = asking()
    rights.changed(1_000_000)
    assert not rights.are_those_of(Snapshot.parse("5:5:"), ONE)
    rights.missed()
    assert rights.are_those_of(Snapshot.parse("5:5:"), ONE)


async def test_what_is_remembered_is_bounded_in_bytes_whatever_tokens_say() -> None:
    _, rights = asking()
    large = Identity("authenticated", ONE.subject, json.dumps({"sub": str(ONE.subject), "x": "x" * 16_000}), None)
    await rights.granted(large, large.subject, OWN)
    assert [len(key) for key in rights._own] == [32]
