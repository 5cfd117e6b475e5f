"""Offsets are dense, and the same whenever the slot repeats itself."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.capture.pgoutput import Begin, Message
from momentum_sync.capture.sequencer import Sequencer
from momentum_sync.eventlog.envelope import Malformed
from momentum_sync.eventlog.event import Event, row_channel

Wal = list[tuple[int, list[bytes]]]


def envelope(text: str) -> bytes:
    return json.dumps({"channels": ["c"], "event": {"text": text}}).encode()


def read(sequencer: Sequencer, wal: Wal) -> list[Event]:
    found = []
    for lsn, contents in wal:
        sequencer.begin(Begin(lsn, float(lsn), lsn))
        for content in contents:
            try:
                event = sequencer.message(Message(True, "momentum_sync", content))
            except Malformed:
                continue
            if event is not None:
                found.append(event)
        sequencer.commit()
    return found


def fresh() -> Sequencer:
    return Sequencer(offset=0, place=(0, 0), near_xid=1)


contents = st.one_of(st.text(max_size=5).map(envelope), st.just(b"no envelope"))
wals = st.lists(st.lists(contents, max_size=4), max_size=8).map(
    lambda transactions: [(10 * (at + 1), messages) for at, messages in enumerate(transactions)]
)


@given(wals)
def test_numbers_are_dense_and_in_order(wal: Wal) -> None:
    events = read(fresh(), wal)
    assert [event.offset for event in events] == list(range(1, len(events) + 1))
    places = [(event.commit_lsn, event.commit_index) for event in events]
    assert places == sorted(set(places))


@given(wals, st.data())
def test_whatever_is_repeated_after_a_crash_gets_the_numbers_it_had(wal: Wal, data: st.DataObject) -> None:
    whole = read(fresh(), wal)
    logged = data.draw(st.integers(0, len(whole)))
    place, offset = (0, 0), 0
    if logged:
        last = whole[logged - 1]
        place, offset = (last.commit_lsn, last.commit_index), last.offset
    repeated_from = data.draw(st.integers(0, len([lsn for lsn, _ in wal if lsn < place[0]])))
    again = Sequencer(offset=offset, place=place, near_xid=1)
    assert read(again, wal[repeated_from:]) == whole[logged:]


def test_only_transactional_messages_under_our_prefix_count() -> None:
    sequencer = fresh()
    assert sequencer.message(Message(False, "momentum_sync", envelope("outside"))) is None
    sequencer.begin(Begin(10, 0.0, 5))
    assert sequencer.in_transaction
    assert sequencer.message(Message(True, "theirs", envelope("a"))) is None
    assert sequencer.message(Message(False, "momentum_sync", envelope("b"))) is None
    event = sequencer.message(Message(True, "momentum_sync", envelope("c")))
    assert event is not None
    assert (event.offset, event.commit_lsn, event.commit_index, event.xid) == (1, 10, 0, 5)
    sequencer.commit()
    assert not sequencer.in_transaction


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"{}", b'{"channels": []}', b'{"channels": ["a"], "event": []}', b"\xff",
        b'{"channels": [], "event": {}}', b'{"channels": [1], "event": {}}',
        b'{"channels": ["a"], "event": {"a": "\xff"}}',
        b'{"channels": ["\\u0000"], "event": {}}', b'{"channels": ["a"], "event": {}} ',
        b'{"channels": ["a"], "event": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    ],
)  # fmt: skip
def test_what_publish_did_not_write_is_malformed(content: bytes) -> None:
    sequencer = fresh()
    sequencer.begin(Begin(10, 0.0, 5))
    if content.endswith(b" "):
        assert sequencer.message(Message(True, "momentum_sync", content)) is not None
        return
    with pytest.raises(Malformed):
        sequencer.message(Message(True, "momentum_sync", content))


def test_the_transaction_id_is_widened() -> None:
    sequencer = Sequencer(offset=0, place=(0, 0), near_xid=2**32 + 5)
    sequencer.begin(Begin(10, 0.0, 7))
    event = sequencer.message(Message(True, "momentum_sync", envelope("a")))
    assert event is not None
    assert event.xid == 2**32 + 7


def test_indexes_count_every_message_of_ours_and_events_carry_what_the_envelope_had() -> None:
    sequencer = Sequencer(offset=0, place=(0, 0), near_xid=1, per_user=frozenset({"c"}))
    assert not sequencer.in_transaction
    whole = b'{"channels": ["c"], "event": {"user_id": "u"}, "rows": {"was": {}}}'
    events = read(sequencer, [(10, [whole, b"no envelope", whole, whole]), (20, [whole])])
    assert [(event.commit_lsn, event.commit_index) for event in events] == [(10, 0), (10, 2), (10, 3), (20, 0)]
    assert {(event.rows, event.keys) for event in events} == {(b'{"was": {}}', ("c:u",))}
    assert [event.committed_at for event in events] == [10.0, 10.0, 10.0, 20.0]


def rows(sequencer: Sequencer, lsn: int, *relations: int) -> list[Event]:
    """Read a transaction with one change of each relation, as the pipeline does."""
    sequencer.begin(Begin(lsn, float(lsn), lsn))

    def encode(relation: int, at: float) -> tuple[str, bytes]:
        return row_channel(relation), b'{"at":%d}' % at

    events = [sequencer.row(partial(encode, each)) for each in relations if sequencer.follows(each)]
    sequencer.commit()
    return [event for event in events if event is not None]


def test_changes_of_followed_relations_get_offsets_from_their_lsn_on() -> None:
    sequencer = Sequencer(offset=0, place=(90, 3), near_xid=1, followed={7: 100})
    assert sequencer.reached == 90
    assert (sequencer.is_followed(7), sequencer.is_followed(8)) == (True, False)
    assert sequencer.follows(7) is False  # no transaction has begun
    assert rows(sequencer, 100, 7) == []
    (event,) = rows(sequencer, 110, 8, 7)
    assert (event.offset, event.commit_lsn, event.commit_index) == (1, 110, 0)
    assert (event.channels, event.body, event.xid) == (("momentum:rows:7",), b'{"at":110}', 110)
    assert event.committed_at == 110.0
    assert sequencer.reached == 110
    sequencer.follow(8, 110)
    sequencer.follow(7, 1_000)  # it is followed already
    events = rows(sequencer, 120, 8, 7, 7)
    assert [(event.offset, event.commit_index) for event in events] == [(2, 0), (3, 1), (4, 2)]


@given(st.lists(st.lists(st.sampled_from([0, 7, 8]), max_size=4), max_size=8), st.data())
def test_rows_and_messages_that_are_repeated_get_the_offsets_that_they_had(
    wal: list[list[int]], data: st.DataObject
) -> None:
    """0 is a message, another number a change of that relation; relation 8 is followed from the second on."""

    def all_of(sequencer: Sequencer) -> list[Event]:
        found = []
        for number, changes in enumerate(wal, 1):
            sequencer.begin(Begin(10 * number, 0.0, number))
            for change in changes:
                if change == 0:
                    found.append(sequencer.message(Message(True, "momentum_sync", envelope("x"))))
                elif sequencer.follows(change):
                    found.append(sequencer.row(lambda _: ("c", b"{}")))
            sequencer.commit()
        return [event for event in found if event is not None]

    followed = {7: 0, 8: 15}
    whole = all_of(Sequencer(offset=0, place=(0, 0), near_xid=1, followed=followed))
    assert [event.offset for event in whole] == list(range(1, len(whole) + 1))
    logged = data.draw(st.integers(0, len(whole)))
    place = (0, 0) if logged == 0 else (whole[logged - 1].commit_lsn, whole[logged - 1].commit_index)
    again = all_of(Sequencer(offset=logged, place=place, near_xid=1, followed=followed))
    assert again == whole[logged:]
