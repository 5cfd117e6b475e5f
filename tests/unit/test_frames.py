"""WebSocket frames: the fast path for pongs gives the frames of the library's parser, however the bytes are split."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from momentum_sync.gateway.frames import Frames

PONGS = st.binary(max_size=20).map(lambda payload: (Opcode.PONG, payload))
TEXTS = st.text(max_size=300).map(lambda text: (Opcode.TEXT, text.encode()))
SENT = st.lists(st.one_of(PONGS, PONGS, TEXTS), max_size=12)


def opened() -> Frames:
    frames = Frames(1_000)
    frames.begin()
    return frames


def encoded(opcode: Opcode, payload: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=True)


def received(frames: Frames, chunks: list[bytes], *, short: bool) -> list[tuple[Opcode, bytes]]:
    """Return the frames in the order in which they arrive."""
    found = []
    for chunk in chunks:
        if short and (payload := frames.pong(chunk)) is not None:
            found.append((Opcode.PONG, payload))
            continue
        frames.receive(chunk)
        found += [(frame.opcode, bytes(frame.data)) for frame in frames.events()]
    return found


@given(sent=SENT, data=st.data())
def test_pongs_come_as_from_the_librarys_parser(sent: list[tuple[Opcode, bytes]], data: st.DataObject) -> None:
    whole = [encoded(*each) for each in sent]
    stream = b"".join(whole)
    ends = [0, *accumulate(map(len, whole))]
    cuts = data.draw(st.sets(st.integers(0, len(stream)), max_size=6))
    places = sorted({0, len(stream), *cuts, *data.draw(st.sets(st.sampled_from(ends)))})
    chunks = [stream[start:end] for start, end in pairwise(places)]
    assert received(opened(), chunks, short=True) == received(opened(), chunks, short=False) == sent


def test_a_whole_pong_takes_the_fast_path_with_any_mask() -> None:
    frames = opened()
    for payload in (b"", b"1", b"12345678901234567890", bytes(125)):
        assert frames.pong(encoded(Opcode.PONG, payload)) == payload
        assert frames.pong(bytes((0x8A, 0x80 | len(payload), 0, 0, 0, 0)) + payload) == payload


def test_a_pong_between_fragments_takes_the_fast_path() -> None:
    frames = opened()
    frames.receive(encoded(Opcode.TEXT, b"a", fin=False))
    assert frames.pong(encoded(Opcode.PONG, b"7")) == b"7"
    frames.receive(encoded(Opcode.CONT, b"b"))
    for event in frames.events():
        frames.collect(event)
    assert frames.inbox == [b"ab"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x8a", id="one byte"),
        pytest.param(encoded(Opcode.PING, b"1"), id="a ping"),
        pytest.param(encoded(Opcode.PONG, b"1")[:-1], id="a pong without its end"),
        pytest.param(encoded(Opcode.PONG, b"1") * 2, id="two pongs"),
        pytest.param(b"\x8a\x01" + b"1", id="without a mask"),
        pytest.param(b"\x0a" + encoded(Opcode.PONG, b"1")[1:], id="fragmented"),
        pytest.param(b"\x8a\xfe\x00\x7e\0\0\0\0" + bytes(126), id="too long for a control frame"),
    ],
)
def test_other_bytes_go_to_the_parser(data: bytes) -> None:
    assert opened().pong(data) is None


def test_bytes_within_a_frame_are_no_pong() -> None:
    pong = encoded(Opcode.PONG, b"1")
    whole = encoded(Opcode.TEXT, pong)
    for cut in range(1, len(whole)):
        frames = opened()
        frames.receive(whole[:cut])
        assert frames.pong(pong) is None, cut


def test_before_the_handshake_and_after_the_close_frame_nothing_is_a_pong() -> None:
    pong = encoded(Opcode.PONG, b"1")
    assert Frames(1_000).pong(pong) is None
    frames = opened()
    frames.close(1000, "")
    assert frames.pong(pong) is None
