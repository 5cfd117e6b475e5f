"""One frame to many sockets with one system call: complete where there is room, otherwise with the bytes taken.

The tests run on the kernel's own io_uring, where it is allowed, and on an imitated one, whose counters start just below
overflow and which can be made to fail.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import socket
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momentum_sync.gateway.direct_files import DirectFile, DirectFiles
from momentum_sync.gateway.io_uring import LEAST_BYTES, Ring, Short, open_ring
from tests.unit.imitated_kernel import ImitatedKernel

FRAME = b"\x81\x05hello"
LARGEST = 1 << 20


def trial() -> OSError | None:
    """Return the error of the real io_uring, if it has one."""
    try:
        open_ring(1, LEAST_BYTES)
    except OSError as error:
        return error
    return None


KERNELS = ["imitated", *(["real"] if trial() is None else [])]
Open = Callable[[int, int], Ring]


@pytest.fixture(params=KERNELS)
def opened_by(request: pytest.FixtureRequest) -> Open:
    """Return a function that opens a ring, given its entries and the bytes of the largest frame."""
    if request.param == "real":
        return open_ring
    return lambda entries, largest: open_ring(entries, largest, ImitatedKernel())


def test_io_uring_is_available_unless_forbidden() -> None:
    """Then the tests with `opened_by` run on the real kernel, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if "Seccomp:\t0" in status and version >= (6, 6) and Path("/proc/sys/kernel/io_uring_disabled").exists():
        error = trial()
        assert error is None or error.errno in (errno.EPERM, errno.EACCES)


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


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 30])
def test_a_frame_comes_once_to_each_socket_however_often_the_ring_goes_round(
    opened_by: Open, connect: Connect, count: int
) -> None:
    ring, sockets = opened_by(8, LARGEST), connect(count)
    for turn in range(20):
        data = FRAME * (1 + turn % 3)
        assert ring.write(sockets.descriptors, data) == []
        assert sockets.read() == [data] * count


def test_sockets_that_take_nothing_stop_none_after_them(opened_by: Open, connect: Connect) -> None:
    """Closed, broken and full, in the same call."""
    ring, sockets = opened_by(8, LARGEST), connect(20)
    closed, broken, full = 3, 8, 15
    sockets.descriptors[closed] = -1
    sockets.clients[broken].shutdown(socket.SHUT_RD)
    for size in (4096, 1):
        for _ in range(10_000):
            short = ring.write(sockets.descriptors[full : full + 1], b"x" * size)
            if short and not short[0].sent:
                break
    assert short == [Short(0, 0)]
    assert ring.write(sockets.descriptors, FRAME) == [Short(closed, 0), Short(broken, 0), Short(full, 0)]
    whole = {*range(20)} - {closed, broken, full}
    assert {place for place, found in enumerate(sockets.read()) if found == FRAME} == whole


@pytest.mark.parametrize("blocking", [False, True], ids=["non-blocking", "blocking"])
def test_a_socket_without_room_for_all_takes_a_part_and_is_not_waited_for(
    opened_by: Open, connect: Connect, blocking: bool
) -> None:
    ring, sockets = opened_by(8, LARGEST), connect(3, room=4096, blocking=blocking)
    data = os.urandom(LARGEST)
    short = ring.write(sockets.descriptors, data)
    assert [each.place for each in short] == [0, 1, 2]
    assert all(0 < each.sent < LARGEST for each in short)
    assert sockets.read() == [data[: each.sent] for each in short]
    assert sockets.read() == [b""] * 3, "nothing of the rest comes later"


def test_of_tcp_sockets_too(opened_by: Open) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        server = stack.enter_context(listener.accept()[0])
        server.setblocking(False)
        ring = opened_by(8, 16 << 20)
        assert ring.write(array("i", [server.fileno()]), FRAME) == []
        assert client.recv(100) == FRAME
        ((place, sent),) = ring.write(array("i", [server.fileno()]), b"x" * (16 << 20))
        assert (place, 0 < sent < 16 << 20) == (0, True)


def test_writes_that_the_kernel_did_not_take_are_left_to_the_connections(connect: Connect) -> None:
    """Without memory, it takes fewer than it was given. The ring works on afterwards."""
    kernel = ImitatedKernel(0)
    ring, sockets = open_ring(1024, LARGEST, kernel), connect(6)
    for taken in (3, 0, 5, 2) * 5:
        kernel.takes = taken
        assert ring.write(sockets.descriptors, FRAME) == [Short(place, 0) for place in range(taken, 6)]
        assert sockets.read() == [FRAME] * taken + [b""] * (6 - taken)
        kernel.takes = 8
        assert ring.write(sockets.descriptors, FRAME) == []
        assert sockets.read() == [FRAME] * 6


def test_an_exception_in_the_middle_of_a_call_disturbs_no_later_one(connect: Connect) -> None:
    """Nothing of the interrupted call counts for later frames."""
    kernel = ImitatedKernel()
    ring, sockets = open_ring(8, LARGEST, kernel), connect(7)
    working, broken = sockets.descriptors, array("i", [-1] * 7)
    for taken in (7, 3, 0) * 3:
        kernel.takes, kernel.interrupts = taken, True
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                ring.write(broken, FRAME)
        kernel.takes, kernel.interrupts = 8, False
        assert ring.write(working, FRAME) == []
        assert sockets.read() == [FRAME] * 7
        assert ring.write(broken, FRAME) == [Short(place, 0) for place in range(7)]


def test_one_call_writes_to_all(connect: Connect) -> None:
    kernel = ImitatedKernel(0)
    ring, sockets = open_ring(64, LARGEST, kernel), connect(50)
    before = kernel.calls
    assert ring.write(sockets.descriptors, FRAME) == []
    assert kernel.calls == before + 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM])
def test_a_system_that_forbids_it_says_so(number: int) -> None:
    def call(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    with pytest.raises(OSError, match=os.strerror(number)) as found:
        open_ring(8, LARGEST, call)
    assert found.value.errno == number


@pytest.mark.parametrize("features", [0, 1 << 0, 1 << 11])
def test_an_old_kernel_is_not_used(features: int) -> None:
    gc.collect()
    kernel, before = ImitatedKernel(), open_files()
    kernel.features = features
    with pytest.raises(OSError, match="too old"):
        open_ring(8, LARGEST, kernel)
    del kernel
    assert open_files() == before


def test_a_system_that_forbids_to_enter_the_ring_says_so() -> None:
    kernel = ImitatedKernel()
    kernel.refuses = errno.EPERM
    with pytest.raises(PermissionError):
        open_ring(8, LARGEST, kernel)


def test_a_kernel_that_sends_nothing_is_not_used() -> None:
    """And is not waited for."""
    kernel = ImitatedKernel()
    kernel.takes = 0
    with pytest.raises(OSError, match="does not send"):
        open_ring(8, LARGEST, kernel)


def test_a_kernel_that_misreports_partial_writes_is_not_used() -> None:
    """A client would get what was written twice."""
    kernel = ImitatedKernel()
    kernel.misreports = True
    with pytest.raises(OSError, match="partial"):
        open_ring(8, LARGEST, kernel)


def test_another_system_than_linux_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls have other numbers, so none may be made."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="not implemented"):
        open_ring(8, LARGEST)


def test_a_ring_is_given_back(opened_by: Open) -> None:
    gc.collect()
    before = open_files()
    rings = [opened_by(8, LEAST_BYTES) for _ in range(5)]
    assert open_files() > before
    del rings
    assert open_files() == before


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3000), st.sets(st.integers(0, 39), max_size=5)), max_size=8)
)
def test_any_history(kernel: str, turns: list[tuple[int, int, set[int]]]) -> None:
    """A ring and a loop of `os.write` leave the same to do, and the same bytes arrive, in order."""
    with ExitStack() as stack:
        by_ring, by_loop = (Sockets(stack, 40, room=4096) for _ in range(2))
        ring = open_ring(16, LARGEST, ImitatedKernel() if kernel == "imitated" else None)
        for count, size, reading in turns:
            data = os.urandom(size)
            found = []
            for sockets, files in ((by_ring, DirectFiles(os.write, ring)), (by_loop, DirectFiles(os.write))):
                group = opened(files, sockets.descriptors[:count])
                rests = [(number, bytes(rest)) for number, rest in files.write(numbers(group), data)]
                found.append((rests, [_read(sockets.clients[each]) for each in sorted(reading)]))
            assert found[0] == found[1]
        assert by_ring.read() == by_loop.read()


def test_few_sockets_and_large_frames_are_written_to_one_by_one(opened_by: Open, connect: Connect) -> None:
    written: list[int] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append(descriptor)
        return os.write(descriptor, data)

    sockets = connect(20)
    files = DirectFiles(write, opened_by(8, LEAST_BYTES))
    group = opened(files, sockets.descriptors)
    assert files.write(numbers(group), b"x" * LEAST_BYTES) == []
    assert written == []
    assert files.write(numbers(group), b"x" * (LEAST_BYTES + 1)) == []
    assert written == [*sockets.descriptors]
    written.clear()
    assert files.write(numbers(group[:15]), FRAME) == []
    assert written == [*sockets.descriptors[:15]]
    assert files.write(numbers(group[:16]), FRAME) == []
    assert len(written) == 15
