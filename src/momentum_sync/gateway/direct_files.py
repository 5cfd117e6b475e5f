"""Writes of one frame to many sockets, without their connections.

The objects of a connection lie far apart in memory, and while the kernel sends to a thousand sockets, it displaces them
from the processor's cache: asking each connection how to write to it costs a third of a send. So the files of all
connections that may be written to directly are kept in one array, and a group of connections is an array of places in
it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

CLOSED = -1
_FEW = 16  # files; for fewer, a system call each is cheaper than filling a ring


class DirectFile:
    """The file of one connection, open while it may be written to directly.

    Attributes:
        descriptors: the file descriptors of all connections by number, or `CLOSED`.
        number: its place, which no other file has as long as this object exists.
    """

    __slots__ = ("_files", "descriptors", "number")

    def __init__(self, files: DirectFiles) -> None:
        self.number = files.take_number()
        self.descriptors = files.descriptors
        self._files = files

    def open(self, descriptor: int) -> None:
        """Have frames written to a file descriptor. Nothing else may wait to be written to it."""
        self.descriptors[self.number] = descriptor
        self._files.changed()

    def close(self) -> None:
        """Have nothing more written."""
        self.descriptors[self.number] = CLOSED
        self._files.changed()

    def __del__(self) -> None:
        self.close()
        self._files.give_back(self.number)


class HasFile(Protocol):
    """A connection with a file."""

    @property
    def file(self) -> DirectFile:
        """Return the file, the same for as long as the connection exists."""


Owner = TypeVar("Owner", bound=HasFile)


class Owners(Generic[Owner]):
    """Connections that get equal frames, in the order in which they were added.

    A change discards the array, which never outlives the connections: their numbers are used again.
    """

    __slots__ = ("_by_number", "_numbers")

    def __init__(self, owners: Iterable[Owner] = ()) -> None:
        self._by_number = {owner.file.number: owner for owner in owners}
        self._numbers: array[int] | None = None

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Owner]:
        return iter(self._by_number.values())

    def __getitem__(self, number: int) -> Owner:
        return self._by_number[number]

    def __contains__(self, owner: Owner) -> bool:
        return owner.file.number in self._by_number

    def add(self, owner: Owner) -> None:
        """Add a connection."""
        self._by_number[owner.file.number] = owner
        self._numbers = None

    def remove(self, owner: Owner) -> None:
        """Remove a connection; do nothing for one that is not known."""
        self._by_number.pop(owner.file.number, None)
        self._numbers = None

    def numbers(self, left_out: Owner | None = None) -> array[int]:
        """Return the numbers of their files, but not of the one that is left out."""
        if self._numbers is None:
            self._numbers = array("i", self._by_number)
        if left_out is None or left_out not in self:
            return self._numbers
        place = self._numbers.index(left_out.file.number)
        return self._numbers[:place] + self._numbers[place + 1 :]


class Ring(Protocol):
    """Writes to many files with one system call, as `momentum_sync.gateway.io_uring` does."""

    @property
    def largest(self) -> int:
        """Return the size of the largest frame in bytes."""

    def write(self, descriptors: array[int], data: bytes) -> Sequence[tuple[int, int]]:
        """Write to all. Return the index of each incomplete write, and the bytes that were taken."""


class DirectFiles:
    """The files of all connections of a gateway.

    Args:
        write: writes to a file descriptor and returns how many bytes it has taken, as `os.write` does.
        ring: writes to many; None where the system has none.

    Attributes:
        descriptors: the file descriptors by number, or `CLOSED`.
    """

    def __init__(self, write: Callable[[int, bytes], int], ring: Ring | None = None) -> None:
        self._write_one = write
        self._ring = ring
        self.descriptors = array("i")
        self._unused: list[int] = []  # numbers that no file has
        self._last: tuple[array[int], array[int]] | None = None  # numbers, and their descriptors

    def add(self) -> DirectFile:
        """Return a new file, which is closed."""
        return DirectFile(self)

    def take_number(self) -> int:
        """Return a number that no other file has."""
        if not self._unused:
            self._unused.append(len(self.descriptors))
            self.descriptors.append(CLOSED)
        return self._unused.pop()

    def give_back(self, number: int) -> None:
        """Let the number of a closed file be taken again."""
        self._unused.append(number)

    def changed(self) -> None:
        """Note that a file was opened or closed."""
        self._last = None

    def write(self, numbers: array[int], data: bytes) -> list[tuple[int, bytes | memoryview]]:
        """Write whole WebSocket frames to the files of these numbers.

        Returns:
            Numbers of the files that have not taken everything, each with the rest for its connection to write.
        """
        short = self._write(numbers, data)
        return [(numbers[place], memoryview(data)[sent:] if sent else data) for place, sent in short]

    def _write(self, numbers: array[int], data: bytes) -> Sequence[tuple[int, int]]:
        ring = self._ring
        if ring is None or len(numbers) < _FEW or len(data) > ring.largest:
            return self._write_each(numbers, data)
        last = self._last
        if last is None or last[0] is not numbers:  # most often, it is the same group again
            last = self._last = numbers, array("i", map(self.descriptors.__getitem__, numbers))
        return ring.write(last[1], data)

    def _write_each(self, numbers: array[int], data: bytes) -> list[tuple[int, int]]:
        descriptors, write, size = self.descriptors, self._write_one, len(data)
        short: list[tuple[int, int]] = []
        for place, number in enumerate(numbers):
            descriptor = descriptors[number]
            try:
                sent = 0 if descriptor == CLOSED else write(descriptor, data)
            except OSError:  # full, or broken: the connection tries again, and finds out
                sent = 0
            if sent != size:
                short.append((place, sent))
        return short
