"""The decoder, on bytes written from the protocol's description and on random bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.capture.pgoutput import Begin, Change, Commit, Keepalive, Message, ProtocolError, decode, status

u64 = st.integers(0, 2**64 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)


def wal(payload: bytes) -> bytes:
    return b"w" + struct.pack("!QQq", 1, 2, 3) + payload


def message(flags: int, prefix: bytes, content: bytes) -> bytes:
    return wal(b"M" + struct.pack("!BQ", flags, 9) + prefix + b"\0" + struct.pack("!I", len(content)) + content)


@given(u64, st.integers(0, 2**32 - 1))
def test_begin(lsn: int, xid: int) -> None:
    decoded = decode(wal(b"B" + struct.pack("!QqI", lsn, 1_500_000, xid)))
    assert decoded == Begin(lsn, 946_684_801.5, xid)


@given(u64, u64, i64)
def test_commit(lsn: int, end: int, at: int) -> None:
    assert decode(wal(b"C" + struct.pack("!BQQq", 0, lsn, end, at))) == Commit(lsn, end)


@given(st.booleans(), st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.binary())
def test_message(transactional: bool, prefix: str, content: bytes) -> None:
    assert decode(message(transactional, prefix.encode(), content)) == Message(transactional, prefix, content)


@given(u64, st.booleans())
def test_keepalive(end: int, reply: bool) -> None:
    assert decode(b"k" + struct.pack("!QqB", end, 5, reply)) == Keepalive(end, reply)


@pytest.mark.parametrize("kind", [b"Y", b"O"])
def test_kinds_that_carry_no_event_are_passed_over(kind: bytes) -> None:
    assert decode(wal(kind + b"whatever")) is None


@pytest.mark.parametrize("kind", [b"R", b"I", b"U", b"D"])
def test_a_message_about_rows_names_its_relation_and_is_not_decoded(kind: bytes) -> None:
    frame = wal(kind + struct.pack("!I", 70_000) + b"whatever")
    change = decode(frame)
    assert isinstance(change, Change)
    assert (change.relation, change.payload) == (70_000, frame[25:])
    with pytest.raises(ProtocolError):
        decode(wal(kind + b"abc"))


def test_a_truncate_may_have_several_relations() -> None:
    change = decode(wal(b"Twhatever"))
    assert isinstance(change, Change)
    assert (change.relation, change.payload) == (0, b"Twhatever")


@given(st.binary())
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError:
        pass


@given(st.sampled_from([b"B", b"C", b"M"]), st.binary(max_size=40))
def test_any_payload_is_decoded_or_refused(kind: bytes, rest: bytes) -> None:
    try:
        decode(wal(kind + rest))
    except ProtocolError:
        pass


@given(st.integers(0, 30))
def test_a_message_cut_short_is_refused(length: int) -> None:
    whole = message(1, b"momentum_sync", b'{"a": 1}')
    with pytest.raises(ProtocolError):
        decode(whole[: len(whole) - 1 - length])


@pytest.mark.parametrize("broken", [b"", b"w", b"k", b"x123", b"k\0", wal(b""), wal(b"B\0"), wal(b"C"), wal(b"M\1")])
def test_broken_frames_are_refused(broken: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(broken)


def test_a_memoryview_does_as_well() -> None:
    decoded = decode(memoryview(message(1, b"p", b"c")))
    assert decoded == Message(True, "p", b"c")
    assert isinstance(decoded, Message)
    assert type(decoded.content) is bytes


def test_status() -> None:
    sent = status(received=7, durable=5, now=946_684_802.0, reply=True)
    assert struct.unpack("!cQQQqB", sent) == (b"r", 7, 5, 5, 2_000_000, 1)
