"""The positions at which topics begin, and the messages about them."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from momentum_sync.eventlog.position import Position
from momentum_sync.eventlog.resume import ResumeRefused
from momentum_sync.gateway.dialects.realtime_place import Places, Start
from momentum_sync.gateway.dialects.realtime_resume import LOST, UNKNOWN_REF, Verdict, key_of
from momentum_sync.gateway.dialects.realtime_services import RowServices
from momentum_sync.identity.tokens import Identity
from momentum_sync.wire.phoenix import Version
from tests.unit.realtime_world import ANON, Gateway, at, identity

USER = identity()
HEAD = at(9)
GAP = "ResumeGap"


class Joins:
    """The places of one session, and the joins on it."""

    def __init__(self, name: str | None = "c", version: Version = Version.V1) -> None:
        self.gateway = Gateway()
        self.places = Places(cast(RowServices, self.gateway), 7, name, version)

    def start(
        self, topic: str = "a", ref: str | None = "3", identity: Identity = USER, *, is_alone: bool = True
    ) -> Start | None:  # fmt: skip
        return asyncio.run(self.places.start(topic, ref, identity, HEAD, is_alone=is_alone))

    def begins(self, topic: str = "a", ref: str | None = "3", identity: Identity = USER) -> tuple[Position, str]:
        """Return the position and the first word of the message."""
        start = self.start(topic, ref, identity)
        assert start is not None
        return start.position, start.said.partition(":")[0]


def test_a_first_topic_begins_at_the_head_in_a_record_of_the_sessions_number() -> None:
    joins = Joins()
    assert joins.begins() == (HEAD, "")
    (claim,) = joins.gateway.claims
    assert claim == (joins.places.ledger, key_of("c", USER), True)
    assert joins.places.ledger.session == 7
    assert joins.gateway.calls == [("claim", True, 3, "a", HEAD)]
    assert joins.gateway.saved == []


@pytest.mark.parametrize(
    ("version", "ref", "proved"),
    [(Version.V1, "7", True), (Version.V1, "1", False), (Version.V2, "7", False), (Version.V2, "3", True)],
)
def test_the_ref_proves_a_reconnect_as_its_version_has_it(version: Version, ref: str, proved: bool) -> None:
    joins = Joins(version=version)
    joins.start(ref=ref)
    assert joins.gateway.claims[0][2] is proved


def test_the_verdict_of_the_first_join_holds_for_all() -> None:
    joins = Joins()
    joins.gateway.verdict = Verdict(claimed=(1,), cursors={"a": at(4), "b": at(5)})
    assert joins.begins("a") == (at(4), "Resumed")
    assert joins.begins("b") == (at(5), "Resumed")
    assert joins.begins("c") == (HEAD, "")
    assert len(joins.gateway.claims) == 1
    assert joins.gateway.verified == [at(4), at(5)]
    assert joins.gateway.saved == [joins.places.ledger]
    assert joins.places.ledger.cursors == {"a": at(4), "b": at(5), "c": HEAD}


def test_a_certain_gap_is_recorded_until_it_is_confirmed_and_a_possible_one_is_not() -> None:
    possible = Joins()
    possible.gateway.verdict = Verdict(has_gap=True)
    assert [possible.begins("a"), possible.begins("b")] == [(HEAD, GAP), (HEAD, GAP)]
    assert possible.places.ledger.cursors == {"a": HEAD, "b": HEAD}
    certain = Joins()
    certain.gateway.verdict = Verdict(claimed=(1,), has_gap=True)
    assert [certain.begins("a"), certain.begins("b")] == [(HEAD, GAP), (HEAD, GAP)]
    assert certain.places.ledger.cursors == {"a": LOST, "b": LOST}


def test_a_topic_that_a_record_of_an_ended_history_lacks_is_told_of_the_gap() -> None:
    """The database has gone back to a state from before the client joined it, as a standby that lagged."""
    joins = Joins()
    joins.gateway.verdict = Verdict(claimed=(1,), cursors={"a": Position("00000002", 4, 4)})
    joins.gateway.refused = ResumeRefused("history_changed")
    assert [joins.begins("b"), joins.begins("a"), joins.begins("c")] == [(HEAD, GAP)] * 3
    assert joins.places.ledger.cursors == {"a": LOST, "b": LOST, "c": LOST}


def test_a_topic_left_behind_in_an_ended_history_makes_no_gap_for_others() -> None:
    joins = Joins()
    joins.gateway.verdict = Verdict(claimed=(1,), cursors={"a": at(4), "left": Position("00000002", 4, 4)})
    assert [joins.begins("b"), joins.begins("a")] == [(HEAD, ""), (at(4), "Resumed")]


def test_a_topic_that_others_continue_is_told_of_the_gap_of_the_rest() -> None:
    joins = Joins(name=None)
    joins.gateway.verdict = Verdict(claimed=(1,), has_gap=True, cursors={"a": at(4)})
    assert joins.begins("a") == (at(4), GAP)
    assert joins.places.ledger.cursors["a"] == at(4)


def test_a_position_that_is_refused_is_a_gap() -> None:
    joins = Joins()
    joins.gateway.verdict = Verdict(claimed=(1,), cursors={"a": at(4)})
    joins.gateway.refused = ResumeRefused("expired")
    assert joins.begins() == (HEAD, GAP)
    assert joins.places.ledger.cursors == {"a": LOST}


def test_who_has_a_newer_socket_begins_nowhere() -> None:
    joins = Joins()
    joins.gateway.verdict = Verdict(is_late=True)
    assert joins.start() is None
    gone = Joins()
    gone.start("a")
    gone.gateway.there = False
    assert gone.start("b") is None


def test_a_client_without_a_key_is_not_recorded() -> None:
    joins = Joins(name=None)
    assert joins.begins(identity=ANON) == (HEAD, "NotResumable")
    assert joins.gateway.calls == []
    assert joins.places.ledger.cursors == {"a": HEAD}


def test_a_join_with_an_empty_ref_is_that_of_a_reconnect() -> None:
    joins = Joins(name=None)
    joins.gateway.verdict = Verdict(claimed=(1,), cursors={"a": at(4)})
    assert joins.begins(ref="") == (at(4), "Resumed")
    assert joins.gateway.claims[0][2] is True
    assert joins.gateway.calls[0] == ("claim", False, UNKNOWN_REF, "a", HEAD)


@pytest.mark.parametrize("ref", [None, "x", "-1"])
def test_a_join_without_a_number_settles_nothing(ref: str | None) -> None:
    joins = Joins()
    assert joins.begins(ref=ref) == (HEAD, "NotResumable")
    assert joins.gateway.claims == []


def test_after_topics_without_a_key_nothing_is_continued() -> None:
    joins = Joins(name=None)
    joins.start("a", identity=ANON)
    joins.gateway.verdict = Verdict(cursors={"b": at(2)})
    assert joins.begins("b") == (at(2), "Resumed")
    assert joins.gateway.calls == [("claim", False, 0, "b", HEAD)]
    assert joins.gateway.claims[0][2] is False


def test_a_topic_that_was_joined_before_the_key_keeps_its_position() -> None:
    joins = Joins(name=None)
    joins.places.ledger.begin("a", at(3))
    assert joins.begins("a") == (at(3), "Resumed")
    assert joins.gateway.verified == [at(3)]


# Signing in


def test_a_caller_that_signs_in_renames_the_session() -> None:
    joins = Joins()
    joins.start("a", identity=ANON)
    assert joins.begins("b", identity=USER) == (HEAD, "")
    assert joins.gateway.renamed == [(joins.places.ledger, key_of("c", USER))]
    joins.start("c", identity=USER)
    joins.start("d", identity=ANON)
    assert len(joins.gateway.renamed) == 1, "the key has a user, and keeps it"
    mixed = Joins()
    mixed.start("a", identity=ANON)
    mixed.start("b", identity=USER, is_alone=False)
    assert mixed.gateway.renamed == [], "the next socket joins the first topic first, and is found by its key"
    gone = Joins()
    gone.start("a", identity=ANON)
    gone.gateway.there = False
    assert gone.start("b", identity=USER) is None


def rename(joins: Joins, identity: Identity, topic: str = "a") -> bool:
    return asyncio.run(joins.places.rename(topic, identity))


def test_a_fresh_token_of_the_same_caller_changes_nothing() -> None:
    joins = Joins()
    joins.start()
    joins.gateway.calls.clear()
    assert rename(joins, USER)
    assert rename(Joins(name=None), ANON)
    assert joins.gateway.calls == []


def test_a_session_that_gets_a_key_is_claimed_from_where_its_topic_is() -> None:
    joins = Joins(name=None)
    joins.start("a", identity=ANON)
    joins.places.ledger.begin("a", at(8))
    assert rename(joins, USER)
    assert joins.gateway.calls == [("claim", False, 0, "a", at(8))]
    assert joins.gateway.claims[0][2] is False
    other = Joins(name=None)
    other.gateway.position = at(6)
    assert rename(other, USER, "never joined")
    assert other.gateway.calls == [("claim", False, 0, "never joined", at(6))]
    late = Joins(name=None)
    late.gateway.verdict = Verdict(is_late=True)
    assert not rename(late, USER)


def test_another_caller_takes_the_session_along() -> None:
    joins = Joins()
    joins.start(identity=ANON)
    joins.gateway.there = True
    assert rename(joins, USER)
    assert joins.gateway.renamed == [(joins.places.ledger, key_of("c", USER))]
    joins.gateway.there = False
    assert not rename(joins, ANON)
