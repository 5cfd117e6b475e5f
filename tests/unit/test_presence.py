"""The presence of one topic, as Phoenix's clients merge it: metas, sizes, states and diffs."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from momentum_sync.gateway.presence import BadPresence, Occupied, Presence, Tracked


@pytest.fixture
def presence() -> Presence:
    refs = map("ref{}".format, itertools.count(1))
    return Presence(lambda: next(refs))


def diff(presence: Presence) -> Any:
    text = presence.diff()
    return None if text is None else json.loads(text)


def meta(ref: str, **more: object) -> dict[str, object]:
    return {"phx_ref": ref, **more}


def test_a_member_joins_changes_and_leaves(presence: Presence) -> None:
    presence.track("m", "key", b'{"at":1}')
    first = {"key": {"metas": [meta("ref1", at=1)]}}
    assert diff(presence) == {"joins": first, "leaves": {}}
    presence.track("m", "key", b'{"at":2}')
    second = {"key": {"metas": [meta("ref2", phx_ref_prev="ref1", at=2)]}}
    assert diff(presence) == {"joins": second, "leaves": first}
    assert presence.untrack("m")
    assert diff(presence) == {"joins": {}, "leaves": second}


def test_changes_between_two_diffs_are_one(presence: Presence) -> None:
    presence.track("m", "a", b"{}")
    presence.track("m", "b", b"{}")
    assert diff(presence) == {"joins": {"b": {"metas": [meta("ref2", phx_ref_prev="ref1")]}}, "leaves": {}}
    presence.track("m", "c", b"{}")
    presence.untrack("m")
    assert diff(presence) == {"joins": {}, "leaves": {"b": {"metas": [meta("ref2", phx_ref_prev="ref1")]}}}


def test_without_a_change_there_is_no_diff(presence: Presence) -> None:
    assert presence.diff() is None
    presence.track("m", "key", b"{}")
    assert presence.diff() is not None
    assert presence.diff() is None


def test_one_that_comes_and_goes_between_two_diffs_is_in_none(presence: Presence) -> None:
    presence.track("m", "key", b"{}")
    presence.untrack("m")
    assert presence.diff() is None


def test_a_topic_is_idle_without_members_when_no_diff_is_due(presence: Presence) -> None:
    idle = [presence.is_idle]
    presence.track("m", "key", b"{}")
    idle.append(presence.is_idle)
    presence.diff()
    idle.append(presence.is_idle)  # it has a member
    presence.untrack("m")
    idle.append(presence.is_idle)  # a diff is due
    presence.diff()
    idle.append(presence.is_idle)
    assert idle == [True, False, False, False, True]


def test_members_of_one_key_are_listed_together(presence: Presence) -> None:
    presence.track("m", "key", b"{}")
    presence.track("n", "key", b"{}")
    presence.track("o", "other", b"{}")
    presence.diff()
    assert json.loads(presence.state()) == {
        "key": {"metas": [meta("ref1"), meta("ref2")]},
        "other": {"metas": [meta("ref3")]},
    }
    presence.untrack("m")
    assert diff(presence) == {"joins": {}, "leaves": {"key": {"metas": [meta("ref1")]}}}


def test_the_state_is_that_of_the_last_diff(presence: Presence) -> None:
    assert presence.state() == b"{}"
    presence.track("m", "key", b"{}")
    assert presence.state() == b"{}"
    presence.diff()
    state = presence.state()
    assert json.loads(state) == {"key": {"metas": [meta("ref1")]}}
    assert presence.state() is state, "it is encoded once"
    presence.untrack("m")
    assert presence.state() is state


def test_a_member_that_was_removed_has_no_ref_before(presence: Presence) -> None:
    presence.track("m", "key", b"{}")
    presence.untrack("m")
    presence.track("m", "key", b"{}")
    assert diff(presence)["joins"] == {"key": {"metas": [meta("ref2")]}}


def test_the_refs_are_the_servers_own(presence: Presence) -> None:
    presence.track("m", "key", b'{"phx_ref":"x","phx_ref_prev":"y","z":[1]}')
    assert diff(presence)["joins"] == {"key": {"metas": [meta("ref1", z=[1])]}}


@pytest.mark.parametrize("payload", [b"", b"1", b"[]", b"null", b'"a"', b"{", b'{"a":' + b"[" * 100_000])
def test_a_payload_that_is_no_object_changes_nothing(presence: Presence, payload: bytes) -> None:
    presence.track("m", "key", b"{}")
    presence.diff()
    with pytest.raises(BadPresence, match=r"\w"):
        presence.track("m", "key", payload)
    assert presence.diff() is None
    assert presence.of("m") == Tracked("key", b'{"phx_ref":"ref1"}')


def test_a_member_of_another_gateway_keeps_its_meta(presence: Presence) -> None:
    there = Tracked("key", b'{"phx_ref":"there"}')
    presence.put("far", there)
    assert presence.of("far") is there
    assert diff(presence) == {"joins": {"key": {"metas": [meta("there")]}}, "leaves": {}}
    newer = Tracked("key", b'{"phx_ref":"newer"}')
    presence.put("far", newer)
    assert diff(presence) == {
        "joins": {"key": {"metas": [meta("newer")]}},
        "leaves": {"key": {"metas": [meta("there")]}},
    }


def test_members_and_their_bytes_are_counted(presence: Presence) -> None:
    assert presence.beside("m") == Occupied(0, 0)
    presence.track("m", "kä", b"{}")
    size = presence.of("m").size
    assert size == len("kä".encode()) + len(b'{"phx_ref":"ref1"}')
    assert (presence.members, presence.beside("m"), presence.beside("n")) == (1, Occupied(0, 0), Occupied(1, size))
    presence.put("n", Tracked("k", b"12345"))
    assert (presence.members, presence.beside("m"), presence.beside("o")) == (2, Occupied(1, 6), Occupied(2, size + 6))
    presence.put("n", Tracked("k", b"1"))
    assert presence.beside("m") == Occupied(1, 2)
    presence.untrack("n")
    assert (presence.members, presence.beside("o")) == (1, Occupied(1, size))
    assert not presence.untrack("n")
    assert presence.beside("o") == Occupied(1, size)
    with pytest.raises(KeyError):
        presence.of("n")
