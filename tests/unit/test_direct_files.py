"""One frame to the files of many connections: whole to the open ones, and otherwise the rest is returned."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_sync.gateway.direct_files import CLOSED, DirectFile, DirectFiles, Owners, Ring
from momentum_sync.gateway.io_uring import LEAST_BYTES, open_ring
from tests.unit.imitated_kernel import ImitatedKernel

FRAME = b"\x81\x05hello"


class Connection(NamedTuple):
    """A connection and its client."""

    file: DirectFile
    server: socket.socket
    client: socket.socket

    @property
    def is_open(self) -> bool:
        return self.file.descriptors[self.file.number] != CLOSED

    def read(self) -> bytes:
        """Return the bytes that have come."""
        try:
            return self.client.recv(1 << 20)
        except BlockingIOError:
            return b""


class Room:
    """Connections, opened as they are needed."""

    def __init__(self, stack: ExitStack, ring: Ring | None = None) -> None:
        self._stack = stack
        self.files = DirectFiles(os.write, ring)

    def write(
        self, owners: Owners[Connection], data: bytes = FRAME, left_out: Connection | None = None
    ) -> list[tuple[Connection, bytes | memoryview]]:
        """Write to all, and return the rest of each."""
        return [(owners[number], rest) for number, rest in self.files.write(owners.numbers(left_out), data)]

    def connect(self) -> Connection:
        server, client = socket.socketpair()
        for each in (server, client):
            self._stack.enter_context(each)
            each.setblocking(False)
        return Connection(self.files.add(), server, client)

    def open(self) -> Connection:
        connection = self.connect()
        connection.file.open(connection.server.fileno())
        return connection


@pytest.fixture
def room() -> Iterator[Room]:
    with ExitStack() as stack:
        yield Room(stack)


def test_a_frame_is_written_to_all_open_files(room: Room) -> None:
    connections = [room.open() for _ in range(20)]
    assert room.write(Owners(connections)) == []
    assert [each.read() for each in connections] == [FRAME] * 20


def test_nothing_is_written_to_a_closed_file(room: Room) -> None:
    one, other, never = room.open(), room.open(), room.connect()
    one.file.close()
    assert room.write(Owners([one, other, never])) == [(one, FRAME), (never, FRAME)]
    assert [each.read() for each in (one, other, never)] == [b"", FRAME, b""]


def test_of_a_frame_that_does_not_fit_the_rest_is_left(room: Room) -> None:
    slow, other = room.open(), room.open()
    data = b"x" * (4 << 20)
    slow.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    (((owner, rest), *_)) = room.write(Owners([slow, other]), data)
    assert owner is slow
    assert 0 < len(rest) < len(data)
    assert len(slow.read()) + len(rest) == len(data)
    assert room.write(Owners([slow]), rest := bytes(rest))[0][1] is not rest


def test_of_a_full_file_all_is_left(room: Room) -> None:
    slow = room.open()
    while not (left := room.write(Owners([slow]), FRAME * 1000)):
        pass
    while len(left[0][1]) < len(FRAME):
        left = room.write(Owners([slow]))
    assert room.write(Owners([slow])) == [(slow, FRAME)]


def test_what_a_broken_file_does_not_take_is_left_to_its_connection(room: Room) -> None:
    broken, other = room.open(), room.open()
    broken.client.close()
    assert room.write(Owners([broken, other])) == [(broken, FRAME)]
    assert other.read() == FRAME


def test_one_may_be_left_out(room: Room) -> None:
    connections = [room.open() for _ in range(3)]
    stranger = room.open()
    owners = Owners(connections)
    assert room.write(owners, FRAME, connections[1]) == []
    assert room.write(owners, FRAME, stranger) == []
    assert [each.read() for each in (*connections, stranger)] == [FRAME * 2, FRAME, FRAME * 2, b""]


def test_a_number_is_used_again_once_its_file_is_gone_and_closed_at_first() -> None:
    files = DirectFiles(os.write)
    first, second = files.add(), files.add()
    first.open(7)
    number = first.number
    third = files.add()
    assert len({first.number, second.number, third.number}) == 3
    del first
    again = files.add()
    assert (again.number, again.descriptors[number]) == (number, CLOSED)


def test_owners_keep_their_files() -> None:
    """An array of numbers must not outlive the connections: another one would get their frames."""
    with ExitStack() as stack:
        room = Room(stack)
        owners = Owners([room.open()])
        (number,) = owners.numbers()
        assert room.connect().file.number != number
        (owner,) = owners
        owners.remove(owner)
        assert list(owners.numbers()) == []


STEPS = ["add", "remove", "forget", "open", "close", "write"]


@pytest.mark.parametrize("has_ring", [False, True])
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9))))
def test_any_history(has_ring: bool, steps: list[tuple[str, int]]) -> None:
    """Each frame comes once to each open member of the group, and to no other connection."""
    with ExitStack() as stack:
        room = Room(stack, open_ring(32, LEAST_BYTES, ImitatedKernel()) if has_ring else None)
        # So many that they are written to with one system call.
        known: dict[int, Connection] = {100 + number: room.open() for number in range(16)}
        group: Owners[Connection] = Owners(known.values())
        grouped = set(known)
        for step, name in steps:
            connection = known.get(name)
            if connection is None:
                connection = known[name] = room.connect()
            match step:
                case "add":
                    group.add(connection)
                    grouped.add(name)
                case "remove" | "forget":
                    group.remove(connection)
                    grouped.discard(name)
                    if step == "forget":
                        del known[name]
                case "open":
                    connection.file.open(connection.server.fileno())
                case "close":
                    connection.file.close()
                case "write":
                    left = {id(owner) for owner, rest in room.write(group) if rest == FRAME}
                    opened = {each for each in grouped if known[each].is_open}
                    assert left == {id(known[each]) for each in grouped - opened}
                    got = {each for each, found in known.items() if found.read() == FRAME}
                    assert got == opened
            del connection
            assert len(group) == len(grouped)


def test_a_file_that_was_closed_and_opened_is_written_to_as_it_is_now() -> None:
    """The descriptors of a group are kept between two frames, but not beyond a change."""
    with ExitStack() as stack:
        room = Room(stack, open_ring(32, LEAST_BYTES, ImitatedKernel()))
        connections = [room.open() for _ in range(16)]
        group = Owners(connections)
        numbers = group.numbers()
        assert room.files.write(numbers, FRAME) == []
        connections[3].file.close()
        assert room.files.write(numbers, FRAME) == [(connections[3].file.number, FRAME)]
        connections[3].file.open(connections[3].server.fileno())
        assert room.files.write(numbers, FRAME) == []
        assert [each.read() for each in connections] == [
            FRAME * (2 if each is connections[3] else 3) for each in connections
        ]


class Recording:
    """A ring that writes nothing, and keeps what it was given."""

    largest = 1000

    def __init__(self) -> None:
        self.given: list[array[int]] = []

    def write(self, descriptors: array[int], data: bytes) -> list[tuple[int, int]]:
        self.given.append(descriptors)
        return []


def test_descriptors_are_looked_up_once_for_many_frames_to_a_group() -> None:
    ring = Recording()
    files = DirectFiles(os.write, ring)
    group = [files.add() for _ in range(16)]
    numbers = array("i", [file.number for file in group])
    for _ in range(3):
        files.write(numbers, FRAME)
    group[5].open(7)
    files.write(numbers, FRAME)
    first, second, third, fourth = ring.given
    assert first is second is third
    assert [*fourth] == [7 if file is group[5] else CLOSED for file in group]
