"""An imitation of the kernel's io_uring, for systems that forbid the real one, and for what a real one seldom does."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct

SETUP, ENTER = 425, 426
FEATURES = 1 << 0 | 1 << 11
WRAP = 1 << 32


class ImitatedKernel:
    """The system calls of io_uring, as far as they are used: each entry is sent at once, in order.

    Attributes:
        features: what it says that it can do.
        takes: the most entries accepted per call.
        refuses: the error of `io_uring_enter`; 0 for none.
        misreports: reports a partial write as failed, as Linux 5.19 does.
        interrupts: an exception is raised after the writes, as by a signal handler.
    """

    HEADS, ORDER, COMPLETIONS = 0, 64, 1 << 16

    def __init__(self, begin: int = WRAP - 5) -> None:
        self.features = FEATURES
        self.takes = 1 << 20
        self.refuses = 0
        self.misreports = False
        self.interrupts = False
        self.calls = 0
        self._begin = begin

    def __call__(self, number: int, *arguments: object) -> int:
        if number == SETUP:
            entries, parameters = arguments
            assert isinstance(entries, int)
            return self._set_up(entries, parameters)
        assert number == ENTER
        self.calls += 1
        count = arguments[1]
        assert isinstance(count, int)
        if self.refuses:
            ctypes.set_errno(self.refuses)
            return -1
        for _ in range(min(count, self.takes)):
            self._send()
        if self.interrupts:
            raise KeyboardInterrupt
        return min(count, self.takes)

    def _set_up(self, entries: int, parameters: object) -> int:
        self._entries = entries
        file = os.memfd_create("ring")
        os.truncate(file, 0x10000000 + entries * 64)
        self._shared = mmap.mmap(file, self.COMPLETIONS + 2 * entries * 16)
        self._sqes = mmap.mmap(file, entries * 64, offset=0x10000000)
        self._overflown = False
        for place in (0, 4, 8, 12):
            struct.pack_into("=I", self._shared, place, self._begin)
        assert isinstance(parameters, ctypes.Array)
        struct.pack_into(
            "=10I8IQ8IQ", parameters, 0, entries, 2 * entries, 0, 0, 0, self.features, 0, 0, 0, 0,
            0, 4, 0, 0, 0, 0, self.ORDER, 0, 0, 8, 12, 0, 0, 0, self.COMPLETIONS, 0, 0, 0,
        )  # fmt: skip
        return file

    def _word(self, place: int) -> int:
        found: int = struct.unpack_from("=I", self._shared, place)[0]
        return found

    def _send(self) -> None:
        head, tail = self._word(0), self._word(4)
        assert head != tail, "an entry is filled"
        (slot,) = struct.unpack_from("=I", self._shared, self.ORDER + head % self._entries * 4)
        struct.pack_into("=I", self._shared, 0, (head + 1) % WRAP)
        opcode, flags, _, file, _, address, length, how, data = struct.unpack_from("=BBHiQQIIQ", self._sqes, slot * 64)
        assert (opcode, flags, how) == (26, 1 << 6, socket.MSG_DONTWAIT | socket.MSG_WAITALL | socket.MSG_NOSIGNAL)
        try:
            with socket.socket(fileno=os.dup(file)) as sends:
                sent = sends.send(ctypes.string_at(address, length), socket.MSG_DONTWAIT)
        except OSError as error:
            assert error.errno is not None
            sent = -error.errno
        if sent != length:
            completed = self._word(12)
            # A full queue takes no more, and then nothing comes before what was kept elsewhere.
            self._overflown |= (completed - self._word(8)) % WRAP == 2 * self._entries
            if self._overflown:
                return
            result = -errno.EAGAIN if self.misreports and sent > 0 else sent
            place = self.COMPLETIONS + completed % (2 * self._entries) * 16
            struct.pack_into("=QiI", self._shared, place, data, result, 0)
            struct.pack_into("=I", self._shared, 12, (completed + 1) % WRAP)
