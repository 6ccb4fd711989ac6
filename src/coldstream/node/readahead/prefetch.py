"""Asks the kernel to read files that will be needed, ahead of the process that needs them.

`posix_fadvise(WILLNEED)` returns when the reads are queued, and copies nothing. One call reads at most what the device
reads ahead, often 128 KiB, and says nothing of the rest (mm/readahead.c, force_page_cache_ra): a range is asked for in
pieces. Opening the files needs their folders' entries and their inodes, one after the other, and that is what several
threads are for.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from coldstream.machine import hardware
from coldstream.node.readahead.read_record import File, ReadRecord

# Each waits for one entry, one inode or one block at a time; on a disk 10 ms away 32 took half as long as 8.
THREADS = 32
# Of the memory that is free: what was read ahead must still be there when it is needed.
_MEMORY_SHARE = 4
_PIECE_BYTES = 128 << 10
_BYTECODE = "/__pycache__/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetched:
    """What the kernel was asked for.

    Attributes:
        files: How many files.
        bytes: Of them; what the kernel had already counts.
        changed: Files that are not there, or have another size than they had: not asked for.
        left_out: Files for which there was no room in memory, or no time until `stop`.
    """

    files: int
    bytes: int
    changed: int
    left_out: int


def ask(
    reads: ReadRecord, *, memory_bytes: int | None = None, threads: int = THREADS, stop: threading.Event | None = None
) -> Prefetched:
    """Asks for all files of a record, in its order, and returns when the last was asked for.

    It never raises for what it finds on the disk. Where the system knows no `posix_fadvise`, nothing is asked for.

    Args:
        reads: The record.
        memory_bytes: Most bytes to ask for; a quarter of the free memory when None.
        threads: How many ask at once.
        stop: Ends it early when set.
    """
    if not hasattr(os, "posix_fadvise"):
        return Prefetched(files=0, bytes=0, changed=0, left_out=len(reads.files))
    if memory_bytes is None:
        memory_bytes = hardware.available_bytes() // _MEMORY_SHARE
    chosen = _that_fit(reads, memory_bytes)
    asking = _Prefetching(iter(chosen), stop or threading.Event())
    helpers = [threading.Thread(target=asking.run, name="coldstream-ahead", daemon=True) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    asking.run()
    for helper in helpers:
        helper.join()
    files, asked = len(asking.asked), sum(asking.asked)
    left_out = len(reads.files) - files - asking.changed
    return Prefetched(files=files, bytes=asked, changed=asking.changed, left_out=left_out)


def _that_fit(reads: ReadRecord, memory_bytes: int) -> list[File]:
    """The files that fit into memory, in their order; one that does not fit leaves room for later ones. Pure."""
    chosen = []
    for file in reads.files:
        if file.read_bytes <= memory_bytes:
            memory_bytes -= file.read_bytes
            chosen.append(file)
    return chosen


class _Prefetching:
    """Threads that take one file after another."""

    def __init__(self, files: Iterator[File], stop: threading.Event) -> None:
        self._files, self._stop = files, stop
        self._lock = threading.Lock()
        self.asked: list[int] = []
        self.changed = 0

    def run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                file = next(self._files, None)
            if file is None:
                return
            asked = False
            with suppress(OSError, ValueError):
                asked = _ask_for(file)
            with self._lock:
                if asked:
                    self.asked.append(file.read_bytes)
                else:
                    self.changed += 1


def _ask_for(file: File) -> bool:
    """Whether the file is still the one that was recorded; then it was asked for."""
    found = os.stat(file.path)
    # Opening anything but a regular file may wait, or do something.
    if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
        return False
    descriptor = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        for start, stop in file.spans():
            for at in range(start, stop, _PIECE_BYTES):
                os.posix_fadvise(descriptor, at, min(_PIECE_BYTES, stop - at), os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
    folder, is_bytecode, name = file.path.partition(_BYTECODE)
    if is_bytecode:
        # Python compares the source's time and size with what the bytecode says of them.
        with suppress(OSError):
            os.stat(f"{folder}/{name.partition('.')[0]}.py")
    return True


class ReadAhead:
    """Asks for a record's files in a thread of its own.

    Attributes:
        asked: What came of it; None until it is done.
    """

    def __init__(self, reads: ReadRecord, *, memory_bytes: int | None = None) -> None:
        """Prepares.

        Args:
            reads: The record.
            memory_bytes: See `ask`.
        """
        self._reads, self._memory_bytes = reads, memory_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coldstream-ahead", daemon=True)
        self.asked: Prefetched | None = None

    def __repr__(self) -> str:
        return f"ReadAhead({len(self._reads.files)} files, {self.asked or 'not done'})"

    def start(self) -> None:
        """Begins; once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it early, without waiting for reads that the kernel has queued. Idempotent."""
        self._stop.set()

    def _run(self) -> None:
        self.asked = ask(self._reads, memory_bytes=self._memory_bytes, stop=self._stop)
