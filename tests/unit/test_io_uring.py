"""One frame to many sockets with one system call: whole to the sockets with room, and otherwise told how much."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.gateway.direct_files import DirectFile, DirectFiles
from momentum_sync.gateway.io_uring import Short, open_ring, system_call

FRAME = b"\x81\x05hello"
LARGEST = 1 << 20


def is_allowed() -> bool:
    try:
        open_ring(1, 4096)
    except OSError:
        return False
    return True


needs_ring = pytest.mark.skipif(not is_allowed(), reason="the system has no io_uring, or forbids it")


class Sockets:
    """Pairs of connected sockets.

    Attributes:
        descriptors: of the ends that are written to.
        clients: the other ends.
    """

    def __init__(self, stack: ExitStack, count: int, *, room: int | None = None, blocking: bool = False) -> None:
        self.servers: list[socket.socket] = []
        self.clients: list[socket.socket] = []
        for _ in range(count):
            server, client = socket.socketpair()
            stack.enter_context(server)
            stack.enter_context(client)
            server.setblocking(blocking)
            client.setblocking(False)
            if room is not None:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
            self.servers.append(server)
            self.clients.append(client)
        self.descriptors = array("i", [server.fileno() for server in self.servers])

    def read(self) -> list[bytes]:
        return [_read(client) for client in self.clients]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _read(client: socket.socket) -> bytes:
    found = b""
    try:
        while part := client.recv(1 << 20):
            found += part
    except BlockingIOError:
        pass
    return found


def opened(files: DirectFiles, descriptors: array[int]) -> list[DirectFile]:
    """Return an open file for each descriptor."""
    group = [files.add() for _ in descriptors]
    for file, descriptor in zip(group, descriptors, strict=True):
        file.open(descriptor)
    return group


def numbers(files: Sequence[DirectFile]) -> array[int]:
    return array("i", [file.number for file in files])


Connect = Callable[..., Sockets]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda count, **how: Sockets(stack, count, **how)


@needs_ring
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 30])
def test_a_frame_comes_once_to_each_socket_however_often_the_ring_goes_round(connect: Connect, count: int) -> None:
    ring, sockets = open_ring(8, LARGEST), connect(count)
    for turn in range(20):
        data = FRAME * (1 + turn % 3)
        assert ring.write(sockets.descriptors, data) == []
        assert sockets.read() == [data] * count


@needs_ring
def test_sockets_that_take_nothing_stop_none_after_them(connect: Connect) -> None:
    """Closed, broken and full, in the same call."""
    ring, sockets = open_ring(8, LARGEST), connect(20)
    closed, broken, full = 3, 8, 15
    sockets.descriptors[closed] = -1
    sockets.clients[broken].shutdown(socket.SHUT_RD)
    while not (short := ring.write(sockets.descriptors[full : full + 1], b"x" * 4096)):
        pass
    while short[0].sent:
        short = ring.write(sockets.descriptors[full : full + 1], b"x")
    assert ring.write(sockets.descriptors, FRAME) == [Short(closed, 0), Short(broken, 0), Short(full, 0)]
    whole = {*range(20)} - {closed, broken, full}
    assert {place for place, found in enumerate(sockets.read()) if found == FRAME} == whole


@needs_ring
@pytest.mark.parametrize("blocking", [False, True], ids=["non-blocking", "blocking"])
def test_a_socket_without_room_for_all_takes_a_part_and_is_not_waited_for(connect: Connect, blocking: bool) -> None:
    ring, sockets = open_ring(8, LARGEST), connect(3, room=4096, blocking=blocking)
    data = os.urandom(LARGEST)
    short = ring.write(sockets.descriptors, data)
    assert [each.place for each in short] == [0, 1, 2]
    assert all(0 < each.sent < LARGEST for each in short)
    assert sockets.read() == [data[: each.sent] for each in short]
    assert sockets.read() == [b""] * 3, "nothing of the rest comes later"


@needs_ring
def test_of_tcp_sockets_too(connect: Connect) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        server = stack.enter_context(listener.accept()[0])
        server.setblocking(False)
        ring = open_ring(8, 16 << 20)
        assert ring.write(array("i", [server.fileno()]), FRAME) == []
        assert client.recv(100) == FRAME
        ((place, sent),) = ring.write(array("i", [server.fileno()]), b"x" * (16 << 20))
        assert (place, 0 < sent < 16 << 20) == (0, True)


@needs_ring
def test_writes_that_the_kernel_did_not_take_are_left_to_the_connections(connect: Connect) -> None:
    """Without memory, it takes fewer than it was given. The ring works on afterwards."""
    real, short_of_memory = system_call(), [False]

    def call(number: int, first: int, count: object, *rest: object) -> int:
        if short_of_memory[0] and isinstance(count, int):
            count //= 2
        return real(number, first, count, *rest)

    ring, sockets = open_ring(8, LARGEST, call), connect(6)
    for _ in range(5):
        short_of_memory[0] = True
        assert ring.write(sockets.descriptors, FRAME)[-3:] == [Short(place, 0) for place in (3, 4, 5)]
        short_of_memory[0] = False
        assert sockets.read()[3:] == [b""] * 3
        assert ring.write(sockets.descriptors, FRAME) == []
        assert sockets.read() == [FRAME] * 6


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM])
def test_a_system_that_forbids_it_says_so(number: int) -> None:
    def call(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    with pytest.raises(OSError, match=os.strerror(number)) as found:
        open_ring(8, LARGEST, call)
    assert found.value.errno == number


def test_an_old_kernel_is_not_used() -> None:
    """One without the features leaves them zero."""
    opened: list[int] = []

    def call(*arguments: object) -> int:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        return opened[0]

    with pytest.raises(OSError, match="too old"):
        open_ring(8, LARGEST, call)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_another_system_than_linux_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls have other numbers, so none may be made."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="not implemented"):
        open_ring(8, LARGEST)


@needs_ring
def test_a_ring_is_given_back() -> None:
    before = open_files()
    rings = [open_ring(8, 4096) for _ in range(5)]
    assert open_files() > before
    del rings
    assert open_files() == before


@needs_ring
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3000), st.sets(st.integers(0, 39), max_size=5)), max_size=8)
)
def test_any_history(turns: list[tuple[int, int, set[int]]]) -> None:
    """A ring and a loop of `os.write` leave the same to do, and the same bytes arrive, in order."""
    with ExitStack() as stack:
        by_ring, by_loop = (Sockets(stack, 40, room=4096) for _ in range(2))
        ring = open_ring(16, LARGEST)
        for count, size, reading in turns:
            data = os.urandom(size)
            found = []
            for sockets, files in ((by_ring, DirectFiles(os.write, ring)), (by_loop, DirectFiles(os.write))):
                group = opened(files, sockets.descriptors[:count])
                rests = [(number, bytes(rest)) for number, rest in files.write(numbers(group), data)]
                found.append((rests, [_read(sockets.clients[each]) for each in sorted(reading)]))
            assert found[0] == found[1]
        assert by_ring.read() == by_loop.read()


@needs_ring
def test_few_sockets_and_large_frames_are_written_to_one_by_one(connect: Connect) -> None:
    written: list[int] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append(descriptor)
        return os.write(descriptor, data)

    sockets = connect(20)
    files = DirectFiles(write, open_ring(8, 4096))
    group = opened(files, sockets.descriptors)
    assert files.write(numbers(group), b"x" * 4096) == []
    assert written == []
    assert files.write(numbers(group), b"x" * 4097) == []
    assert written == [*sockets.descriptors]
    written.clear()
    assert files.write(numbers(group[:15]), FRAME) == []
    assert written == [*sockets.descriptors[:15]]
    assert files.write(numbers(group[:16]), FRAME) == []
    assert len(written) == 15
