"""Writes of one frame to many sockets with one system call: io_uring, in Linux.

`os.write` for each of a thousand sockets enters the kernel a thousand times. A ring is memory that the kernel shares
with the process: an entry of 64 bytes for each write, of which only the file descriptor and the length change from
frame to frame, so that two assignments fill the entries of all sockets. The sockets are written to in order, none is
waited for, and all writes are done when the call returns. There is no ring where the system forbids io_uring, as
containers often do (Docker's default seccomp profile, `RuntimeDefault` of Kubernetes), or misreports partial writes
(Linux 5.19 and 6.0).

The layout of the memory, the numbers of the calls and the flags are those of `linux/io_uring.h`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
import weakref
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

_SETUP, _ENTER = 425, 426  # system calls, with the same numbers on all architectures but alpha and MIPS
_NEEDED: Final = 1 << 0 | 1 << 11  # features: both queues in one mapping, completions that can be skipped
_SQES_OFFSET: Final = 0x10000000
_SEND: Final = 26
_SKIP_SUCCESS: Final = 1 << 6  # only writes that are not done in full have a completion
# With MSG_WAITALL, a partial write counts as failed, so it has a completion. With MSG_DONTWAIT, none waits for room.
_FLAGS: Final = 0x40 | 0x100 | 0x4000  # MSG_DONTWAIT, MSG_WAITALL, MSG_NOSIGNAL
_ENTRY = struct.Struct(
    "=BBHiQQIIQ24x"
)  # opcode, flags, priority, descriptor, offset, address, length, flags, user data
_COMPLETION = struct.Struct("=QiI")  # user data, result, flags
_PARAMETERS = struct.Struct("=10I8IQ8IQ")  # entries, completions, flags …; offsets of the two queues
_FEATURES_AT = 20  # byte of the parameters
_WORDS: Final = _ENTRY.size // 4  # of an entry
_DESCRIPTOR, _LENGTH = 1, 6  # words of an entry
_MASK: Final = 0xFFFFFFFF  # the queues count in 32 bits
_TRIED = b"x" * 16_384  # more than a socket with the smallest buffer takes
LEAST_BYTES: Final = len(_TRIED)

SystemCall = Callable[..., int]
"""Takes the number of a system call and its arguments, and returns -1 with `ctypes.get_errno()` set if it fails."""


class Short(NamedTuple):
    """A write that was not done in full.

    Attributes:
        place: of its file descriptor in the array.
        sent: bytes that were taken.
    """

    place: int
    sent: int


class _Queues(NamedTuple):
    """Offsets of the queues in words of 4 bytes; `completions` in bytes, and `completed`, their number."""

    head: int
    tail: int
    order: int
    completed_head: int
    completed_tail: int
    completions: int
    completed: int


class Ring:
    """A ring, opened by `open_ring`. Only one thread may write at a time.

    Args:
        descriptor: its file descriptor.
        parameters: the `io_uring_params` that the kernel has filled.
        largest: bytes of the largest frame.
        call: makes a system call.

    Attributes:
        largest: bytes of the largest frame.
    """

    def __init__(self, descriptor: int, parameters: bytes, largest: int, call: SystemCall) -> None:
        found = _PARAMETERS.unpack(parameters)
        self._entries, completed = found[0], found[1]
        submission, completion = found[10:19], found[19:28]
        self._queues = _Queues(
            submission[0] // 4, submission[1] // 4, submission[6] // 4,
            completion[0] // 4, completion[1] // 4, completion[5], completed,
        )  # fmt: skip
        self.largest = largest
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        size = max(submission[6] + 4 * self._entries, completion[5] + completed * _COMPLETION.size)
        self._shared = mmap.mmap(descriptor, size)
        self._words = memoryview(self._shared)[: size // 4 * 4].cast("I")
        self._data = mmap.mmap(-1, largest)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        sqes = mmap.mmap(descriptor, self._entries * _ENTRY.size, offset=_SQES_OFFSET)
        for each in range(self._entries):
            _ENTRY.pack_into(sqes, each * _ENTRY.size, _SEND, _SKIP_SUCCESS, 0, -1, 0, address, 0, _FLAGS, each)
            self._words[self._queues.order + each] = each
        self._sockets = memoryview(sqes).cast("B").cast("i")[_DESCRIPTOR::_WORDS]
        self._lengths = memoryview(sqes).cast("B").cast("I")[_LENGTH::_WORDS]
        self._call = call

    def write(self, sockets: array[int], data: bytes) -> list[Short]:
        """Write whole frames, of at most `largest` bytes, to non-blocking sockets.

        Args:
            sockets: file descriptors, in the order in which they are written to. One that is not open takes nothing.
            data: the bytes.

        Returns:
            The writes that were not done in full: the socket is full, or broken, or not open.
        """
        self._data[: len(data)] = data
        short: list[Short] = []
        place = 0
        while place < len(sockets):
            # An exception within an earlier call may have left entries: they are withdrawn.
            start = self._words[self._queues.tail] = self._words[self._queues.head]
            slot = start % self._entries
            part = sockets[place : place + self._entries - slot]
            self._sockets[slot : slot + len(part)] = part
            self._lengths[slot : slot + len(part)] = array("I", [len(data)]) * len(part)
            short += [Short(place + each, sent) for each, sent in self._submit(start, len(part))]
            place += len(part)
        return short

    def _submit(self, start: int, count: int) -> list[Short]:
        """Have the kernel do `count` writes, whose entries are filled, and return those not done in full."""
        words, queues = self._words, self._queues
        # And completions: a full queue would swallow all later ones.
        head = words[queues.completed_head] = words[queues.completed_tail]
        words[queues.tail] = (start + count) & _MASK
        self._call(_ENTER, self._descriptor, count, 0, 0, None, 0)
        short = []
        tail = words[queues.completed_tail]
        while head != tail:
            at = queues.completions + head % queues.completed * _COMPLETION.size
            slot, result, _ = _COMPLETION.unpack_from(self._shared, at)
            short.append(Short(slot - start % self._entries, max(0, result)))
            head = (head + 1) & _MASK
        words[queues.completed_head] = head
        # Without memory, the kernel accepts fewer entries. Their connections write the remaining frames.
        done = (words[queues.head] - start) & _MASK
        short.extend(Short(place, 0) for place in range(done, count))
        return short


def system_call() -> SystemCall:
    """Return the C library's `syscall`.

    Raises:
        OSError: the system is not Linux, whose numbers are used here.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call: SystemCall = ctypes.CDLL(None, use_errno=True).syscall
    return call


def open_ring(entries: int, largest: int, call: SystemCall | None = None) -> Ring:
    """Open a ring and test it. It is closed when nothing refers to it.

    Args:
        entries: writes per system call, a power of two.
        largest: bytes of the largest frame, at least `LEAST_BYTES`.
        call: makes a system call; None: that of the C library.

    Raises:
        OSError: the system has no io_uring, one that does not work as needed here, or forbids it.
    """
    call = call or system_call()
    parameters = bytearray(_PARAMETERS.size)
    descriptor = call(_SETUP, entries, (ctypes.c_char * len(parameters)).from_buffer(parameters))
    if descriptor < 0:
        raise _last_error()
    (features,) = struct.unpack_from("=I", parameters, _FEATURES_AT)
    if features & _NEEDED != _NEEDED:
        os.close(descriptor)
        raise OSError(errno.EOPNOTSUPP, "the kernel's io_uring is too old")
    ring = Ring(descriptor, bytes(parameters), largest, call)
    _try_out(ring)
    return ring


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _try_out(ring: Ring) -> None:
    """Raise OSError unless a full write succeeds and a partial write reports the right length.

    Linux 5.19 and 6.0 report 0 bytes for a partial write, and no feature flag identifies them.
    """
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        ctypes.set_errno(0)
        first = ring.write(array("i", [one.fileno()]), b"x")
        if first:  # a profile may forbid this call alone, or this kind of entry
            raise _last_error() if ctypes.get_errno() else OSError(errno.EOPNOTSUPP, "io_uring does not send")
        second = ring.write(array("i", [one.fileno()]), _TRIED)
        came = len(other.recv(2 * len(_TRIED)))
        if len(second) != 1 or came != 1 + second[0].sent or not 0 < second[0].sent < len(_TRIED):
            raise OSError(errno.EOPNOTSUPP, "the kernel's io_uring misreports partial writes")
