"""How many connections suit this machine, and how the loads of one user share them."""

from __future__ import annotations

import fcntl
import os
import struct
from math import ceil
from pathlib import Path

from coldstream.machine.disk import SHARED_MEMORY, temporary_folder

# At least and at most by default. Below, a bucket far away is too slow; above, no card needs more.
CONNECTIONS_MIN, CONNECTIONS_MAX = 64, 1024
# A core decrypts about 1.2 GB/s, which is 26 connections at the 46 MB/s that R2 gives a node with a GPU.
CONNECTIONS_PER_CORE = 32
SLOW_BYTES_PER_SECOND = 20e6  # of a slow connection: with as many as the card has of these, it is full
WORKERS_USUAL, WORKERS_MAX, CONNECTIONS_PER_WORKER = 8, 64, 8

# In the table each load has a span of bytes, and locks as many of them as it has connections.
_LOADS_MAX, _SPAN_BYTES = 64, 1 << 20
_LOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


def connections_for(cores: int, link_bytes_per_second: float | None) -> int:
    """The maximum number of connections of a machine; the speed of its network card is None if it is unknown."""
    most = CONNECTIONS_PER_CORE * cores
    if link_bytes_per_second is not None:
        most = min(most, ceil(link_bytes_per_second / SLOW_BYTES_PER_SECOND))
    return max(CONNECTIONS_MIN, min(most, CONNECTIONS_MAX))


def workers_for(cores: int, connections: int) -> int:
    """The number of fetching processes: one per core, but above a few no more than have several connections each."""
    most = max(WORKERS_USUAL, ceil(connections / CONNECTIONS_PER_WORKER))
    return max(1, min(cores, most, WORKERS_MAX))


def connection_table() -> Path:
    """The file by which the loads of this user see each other; it is empty, and stays.

    In shared memory, which is the same for all of them whatever TMPDIR is, and where locks work.
    """
    folder = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else temporary_folder()
    return folder / f"coldstream-connections-{os.geteuid()}"


class ConnectionTable:
    """How many connections each load of this user has: locks on bytes of a file, which end with their process.

    Where the file or its locks do not work, a load does not see the others.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = self._slot = -1
        self._count = 0
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)
            if os.fstat(self._descriptor).st_uid == os.geteuid():
                self._slot = next((slot for slot in range(_LOADS_MAX) if self._lock(slot)), -1)
        except OSError:
            self.close()

    def hold(self, count: int) -> None:
        count = max(1, min(count, _SPAN_BYTES))
        if self._slot < 0 or count == self._count:
            return
        start, (low, high) = self._slot * _SPAN_BYTES, sorted((count, self._count))
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX if count == high else fcntl.LOCK_UN, high - low, start + low)
        self._count = count

    def share(self, budget: int) -> int:
        """How many of `budget` connections this load may have: an equal part, and what the others do not have."""
        counts = self._others()
        return max(1, budget // (len(counts) + 1), budget - sum(counts))

    def close(self) -> None:
        """Gives up this load's connections. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = self._slot = -1

    def _others(self) -> list[int]:
        if self._slot < 0 or self._locked(0, 0) is None:
            return []
        lengths = (self._locked(slot * _SPAN_BYTES, _SPAN_BYTES) for slot in range(_LOADS_MAX))
        return [length for length in lengths if length is not None]

    def _locked(self, start: int, length: int) -> int | None:
        """The length of a lock of another process in a range; 0 is up to the end of the file. None without a lock."""
        query = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, _, locked, _ = _LOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, query))
        return None if kind == fcntl.F_UNLCK else int(locked)

    def _lock(self, slot: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot * _SPAN_BYTES)
        except (BlockingIOError, PermissionError):
            return False
        self._count = 1
        return True
