"""Tests of the rules of the resume, each by the trace that shows why it is needed."""

from __future__ import annotations

from uuid import UUID

import pytest

from momentum_sync.eventlog.position import Position
from momentum_sync.gateway.dialects.realtime_resume import (
    LOST,
    UNKNOWN_REF,
    Key,
    Ledger,
    Record,
    key_of,
    lowest,
    proves_reconnect,
    settle,
)
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.phoenix import Version

EXACT, SHARED = Key("k", True), Key("k", False)


def at(offset: int, epoch: str = "abcdef01") -> Position:
    return Position(epoch, offset, offset)


def record(session: int, ref: int, recent: bool = True, **cursors: int) -> Record:
    return Record(session, ref, {topic: at(offset) for topic, offset in cursors.items()}, recent)


def identity(role: str = "authenticated", user: int | None = 1, claims: str = "{}") -> Identity:
    return Identity(role, None if user is None else UUID(int=user), claims, None)


# Whose socket it is


def test_a_higher_ref_continues_and_takes_the_session_up() -> None:
    verdict = settle(2, 5, EXACT, [record(1, 4, a=10)])
    assert (verdict.claimed, verdict.removed, dict(verdict.cursors)) == ((1,), (1,), {"a": at(10)})
    assert not verdict.is_late
    assert not verdict.has_gap


def test_a_new_page_continues_nothing_and_discards_what_was_before() -> None:
    verdict = settle(2, 1, EXACT, [record(1, 4, a=10)])
    assert (verdict.claimed, verdict.removed, verdict.cursors) == ((), (1,), {})


@pytest.mark.parametrize("key", [EXACT, SHARED])
def test_a_client_without_any_record_was_away_for_too_long_unless_it_is_new(key: Key) -> None:
    assert settle(2, 2, key, []).has_gap
    assert not settle(2, 1, key, []).has_gap
    assert not settle(2, 0, key, []).has_gap
    assert not settle(2, 1, key, [record(1, 4, a=10)]).has_gap


@pytest.mark.parametrize(
    ("ref", "version", "proved"),
    [
        (1, Version.V1, False), (2, Version.V1, True), (6, Version.V1, True), (250, Version.V1, True),
        (1, Version.V2, False), (2, Version.V2, True), (5, Version.V2, True), (6, Version.V2, False),
        (250, Version.V2, False), (251, Version.V2, True), (0, Version.V2, False),
    ],
)  # fmt: skip
def test_a_first_ref_proves_a_reconnect_where_no_new_client_begins_with_it(
    ref: int, version: Version, proved: bool
) -> None:
    assert proves_reconnect(ref, version) is proved


@pytest.mark.parametrize("key", [EXACT, SHARED])
def test_without_proof_and_without_a_record_a_client_is_new(key: Key) -> None:
    assert not settle(2, 6, key, [], is_reconnect=False).has_gap
    continued = settle(2, 6, key, [record(1, 4, a=10)], is_reconnect=False)
    assert (dict(continued.cursors), continued.has_gap) == ({"a": at(10)}, False)


def test_a_reconnect_that_finds_other_clients_alone_is_told_of_a_gap() -> None:
    assert settle(2, 5, SHARED, [record(1, 4, a=10)], answering={1}).has_gap
    assert settle(2, 5, SHARED, [record(1, 9, False, a=10)]).has_gap


@pytest.mark.parametrize("key", [EXACT, SHARED])
@pytest.mark.parametrize("ref", [2, 3, 4])
def test_a_client_that_first_repeats_an_old_frame_continues(key: Key, ref: int) -> None:
    """The one in Python sends its buffer again where the connection was cut while it did so."""
    assert dict(settle(2, ref, key, [record(1, 4, a=10)]).cursors) == {"a": at(10)}
    long_ago = settle(2, ref, key, [record(1, 4, False, a=10)])
    assert (dict(long_ago.cursors), long_ago.has_gap) == (({"a": at(10)}, False) if key is EXACT else ({}, True))


def test_under_a_shared_key_sockets_that_came_later_are_other_clients() -> None:
    assert settle(2, 9, SHARED, [record(3, 4, a=10)]).cursors == {}


def test_a_socket_that_was_accepted_before_a_newer_session_changes_nothing() -> None:
    verdict = settle(1, 9, EXACT, [record(2, 4, a=10)])
    assert verdict.is_late
    assert (verdict.claimed, verdict.removed) == ((), ())


def test_several_sessions_that_an_exact_client_left_behind_are_all_taken_up() -> None:
    verdict = settle(3, 9, EXACT, [record(1, 4, a=10, b=3), record(2, 6, a=12, c=5)])
    assert (verdict.claimed, verdict.removed) == ((1, 2), (1, 2))
    assert verdict.cursors == {"a": at(10), "b": at(3), "c": at(5)}


def test_under_a_shared_key_the_lowest_position_counts_and_nothing_is_removed() -> None:
    verdict = settle(3, 9, SHARED, [record(1, 4, a=10), record(2, 6, a=7), record(4, 9, a=1)])
    assert (verdict.claimed, verdict.removed, verdict.cursors) == ((1, 2), (), {"a": at(7)})
    assert not verdict.is_late


def test_a_socket_that_answers_is_another_client() -> None:
    verdict = settle(3, 9, SHARED, [record(1, 4, a=10), record(2, 6, a=7)], answering={2})
    assert (verdict.claimed, verdict.cursors) == ((1,), {"a": at(10)})


def test_a_new_page_under_a_shared_key_leaves_others_alone() -> None:
    assert settle(3, 1, SHARED, [record(1, 4, a=10)]).removed == ()


@pytest.mark.parametrize(
    ("records", "cursors", "gap"),
    [
        ([record(1, 4, False, a=10)], {}, True),
        ([record(1, 4, False, a=5), record(2, 4, True, a=10)], {"a": at(10)}, True),
        ([record(1, 4, True, a=5)], {"a": at(5)}, False),
    ],
)
def test_a_client_without_an_id_that_was_away_for_long_is_told(
    records: list[Record], cursors: dict[str, Position], gap: bool
) -> None:
    verdict = settle(3, 9, SHARED, records)
    assert (dict(verdict.cursors), verdict.has_gap) == (cursors, gap)
    assert verdict.removed == ()
    exact = settle(3, 9, EXACT, records)
    assert not exact.has_gap
    assert exact.cursors == lowest(record.cursors for record in records)


def test_of_the_clients_that_were_away_for_long_one_record_stays() -> None:
    records = [record(1, 5, False, a=1), record(2, 3, False, a=2), record(3, 9, False, a=3), record(4, 7, a=4)]
    assert settle(5, 8, SHARED, records).removed == (1, 3)


def test_a_join_with_an_empty_ref_may_be_of_any_earlier_session() -> None:
    """Of an old one, too: else a client that was away for hours would silently go on where another tab is."""
    found = settle(9, UNKNOWN_REF, SHARED, [record(1, 9, recent=False, a=5), record(2, 40, a=90)])
    assert (found.claimed, found.cursors, found.has_gap) == ((1, 2), {"a": at(90)}, True)


@pytest.mark.parametrize("offset", [2, 10])
def test_of_two_epochs_one_has_ended_and_the_client_may_be_in_that_one(offset: int) -> None:
    """After a restore from a copy the offsets of the new epoch are below those of the old."""
    other = at(3, "00000002")
    assert lowest([{"a": at(offset), "b": at(1)}, {"a": other}]) == {"a": LOST, "b": at(1)}
    assert lowest([{"a": other}, {"a": at(offset)}, {"a": at(offset)}]) == {"a": LOST}


def test_the_lowest_of_one_epoch() -> None:
    assert lowest([{"a": at(10)}, {"a": at(3)}, {"a": at(7)}]) == {"a": at(3)}
    assert lowest([]) == {}


# Keys


def test_a_client_is_named_by_its_id_or_else_by_what_its_token_says() -> None:
    session = identity(claims='{"session_id": "s"}')
    found = [key_of("c", session), key_of(None, session), key_of(None, identity())]
    assert all(key is not None for key in found)
    assert len({key.digest for key in found if key is not None}) == 3
    assert [key.is_exact for key in found if key is not None] == [True, False, False]
    assert key_of("", identity("anon", None)) is None
    assert key_of(None, identity("anon", None, '{"sub": "clerk|7"}')) is not None
    assert key_of(None, identity(claims='{"session_id": 7}')) == key_of(None, identity())


def test_a_key_names_the_user_and_is_the_same_in_every_version() -> None:
    """The database has it: with another digest, clients would not find their records."""
    mine = key_of("c", identity())
    assert mine == Key("9c59e52a201bcfc88d87da7245dd5d9f", True, True, UUID(int=1))
    foreign = key_of("c", identity(user=None, claims='{"sub": "auth0|7"}'))
    nobody = key_of("c", identity("anon", None))
    assert foreign is not None
    assert nobody is not None
    assert [(key.has_user, key.user_id) for key in (foreign, nobody)] == [(True, None), (False, None)]


def test_users_never_share_keys() -> None:
    keys = [
        key_of("c", identity(user=1)), key_of("c", identity(user=2)), key_of("c", identity("anon", None)),
        key_of("c", identity("service_role", None)),
    ]  # fmt: skip
    assert len(set(keys)) == 4


# Pings and pongs


def ledger(**cursors: int) -> Ledger:
    made = Ledger(1)
    for topic, offset in cursors.items():
        made.begin(topic, at(offset))
    return made


def test_a_pong_moves_the_topics_that_were_joined_when_its_ping_was_written() -> None:
    found = ledger(a=1)
    ping = found.ping(at(5), ["a"])
    found.begin("b", at(4))  # its reply came after the ping
    assert found.pong(ping) == (1, frozenset({"a"}))
    assert found.cursors == {"a": at(5), "b": at(4)}


def test_a_position_never_goes_back() -> None:
    found = ledger(a=9)
    found.pong(found.ping(at(5), ["a"]))
    assert found.cursors == {"a": at(9)}
    changes = found.changes
    found.pong(found.ping(at(9), ["a"]))
    assert found.changes == changes  # nothing to save


def test_a_pong_answers_the_pings_before_it_too() -> None:
    found = ledger(a=1)
    first, second = found.ping(at(3), ["a"]), found.ping(at(5), ["a"])
    assert found.pinged == 2
    assert found.pong(second) == (2, frozenset({"a"}))
    assert found.cursors == {"a": at(5)}
    assert found.pong(first) == (0, frozenset())  # it was answered with the second


def test_the_next_ping_is_still_open() -> None:
    found = ledger(a=1)
    first = found.ping(at(3), ["a"])
    second = found.ping(at(5), ["a"])
    found.pong(first)
    assert found.cursors == {"a": at(3)}
    found.pong(second)
    assert found.cursors == {"a": at(5)}


@pytest.mark.parametrize("payload", [b"", b"x", b"7", b"-1", b"1" * 30, "²".encode(), b"\xff"])
def test_pongs_that_answer_no_ping_are_ignored(payload: bytes) -> None:
    found = ledger(a=1)
    found.ping(at(5), ["a"])
    assert found.pong(payload) == (0, frozenset())
    assert found.cursors == {"a": at(1)}


def test_a_ping_without_a_position_confirms_only_that_the_replies_came() -> None:
    found = ledger(a=1)
    assert found.pong(found.ping(None, ["a"])) == (1, frozenset({"a"}))
    assert found.cursors == {"a": at(1)}


def test_a_topic_that_was_left_is_not_moved_by_an_older_ping() -> None:
    found = ledger(a=1, b=1)
    ping = found.ping(at(5), ["a", "b"])
    found.end("a")
    found.begin("a", at(3))  # joined again, and its reply comes after the ping
    assert found.pong(ping) == (1, frozenset({"b"}))
    assert found.cursors == {"a": at(3), "b": at(5)}


def test_a_position_of_a_new_epoch_replaces_one_of_the_old() -> None:
    found = ledger(a=9)
    found.pong(found.ping(at(1, "00000002"), ["a"]))
    assert found.cursors == {"a": at(1, "00000002")}


def test_unanswered_pings_are_bounded() -> None:
    found = ledger(a=1)
    pings = [found.ping(at(number), ["a"]) for number in range(2, 102)]
    assert found.pong(pings[0]) == (0, frozenset())
    assert found.pong(pings[-1])[0] == 100


@pytest.mark.parametrize(
    ("ref", "number"), [("7", 7), (7, 7), ("x", None), (None, None), ("-1", None), ("9" * 40, None), ("0", 0),
     (str(2**53 - 1), 2**53 - 1), (str(2**53), None)],
)  # fmt: skip
def test_the_highest_ref_counts(ref: object, number: int | None) -> None:
    found = Ledger(1)
    found.saw("3")
    assert found.saw(ref) == number
    assert found.ref == max(3, number or 0)


def test_what_changes_is_counted_for_those_who_save() -> None:
    found = ledger(a=1)
    assert found.changes == 1
    found.pong(found.ping(at(2), ["a"]))
    assert found.changes == 2
    found.end("a")
    found.end("nothing")
    assert found.changes == 3
    found.rename(SHARED)
    assert (found.changes, found.key) == (4, SHARED)
    assert found.record() == Record(1, 0, {})
    found.ended()
    assert found.changes == 5
