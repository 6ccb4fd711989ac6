"""Asks the kernel to read files before the engine needs them.

`posix_fadvise(WILLNEED)` returns when the reads are queued, and copies nothing. One call reads at most the device's
read-ahead, often 128 KiB, and silently ignores the rest (mm/readahead.c, force_page_cache_ra), so a range is split into
pieces. Opening a file waits for its folder's entries and its inode, one after the other, so several threads open files.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass

from coldstream.errors import IntegrityError
from coldstream.machine import hardware
from coldstream.machine.parallel import in_parallel
from coldstream.node.readahead.read_record import File, ReadRecord, decode

# Each thread waits for one entry, inode or block at a time; on a disk 10 ms away, 32 took half as long as 8.
_THREADS = 32
# The part of the free memory to use: prefetched pages must still be there when they are needed.
_MEMORY_SHARE = 4
_PIECE_BYTES = 128 << 10
_BYTECODE = "/__pycache__/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetched:
    """What was prefetched; `bytes` includes what the kernel already had in memory.

    `changed` files were skipped because they are missing or have another size; files `left_out` did not fit in memory,
    or came after `stop`.
    """

    files: int
    bytes: int
    changed: int
    left_out: int


def prefetch(reads: ReadRecord, *, memory_bytes: int | None = None, stop: threading.Event | None = None) -> Prefetched:
    """Prefetches the files of a record in its order, and returns when the last read is queued.

    Does not raise for missing or changed files. On systems without `posix_fadvise` it does nothing. `memory_bytes`
    limits all files; None means a quarter of the free memory. `stop` ends it early.
    """
    if not hasattr(os, "posix_fadvise"):
        return Prefetched(files=0, bytes=0, changed=0, left_out=len(reads.files))
    if memory_bytes is None:
        memory_bytes = hardware.available_bytes() // _MEMORY_SHARE
    chosen = []
    for file in reads.files:
        # One that does not fit leaves room for later ones.
        if file.read_bytes <= memory_bytes:
            memory_bytes -= file.read_bytes
            chosen.append(file)

    def attempt(file: File) -> bool | None:
        if stop is not None and stop.is_set():
            return None
        with suppress(OSError, ValueError):
            return _prefetch_file(file)
        return False

    outcomes = in_parallel(attempt, chosen, threads=_THREADS)
    same = [file for file, is_same in zip(chosen, outcomes, strict=True) if is_same]
    changed = outcomes.count(False)
    left_out = len(reads.files) - len(same) - changed
    return Prefetched(files=len(same), bytes=sum(file.read_bytes for file in same), changed=changed, left_out=left_out)


def _prefetch_file(file: File) -> bool:
    """Prefetches a file if it is still the recorded one; returns whether it is."""
    status = os.stat(file.path)
    # Opening anything but a regular file may block or have side effects.
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
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
        # Python compares the source's time and size with those in the bytecode.
        with suppress(OSError):
            os.stat(f"{folder}/{name.partition('.')[0]}.py")
    return True


def start_read_ahead(data: bytes | None) -> threading.Event:
    """Prefetches the files of an encoded record from a thread, until the returned event is set.

    Does nothing without a record, or with an invalid one.
    """
    stop = threading.Event()
    with suppress(IntegrityError):
        if data is not None:
            threading.Thread(
                target=prefetch, args=(decode(data),), kwargs={"stop": stop}, name="coldstream-ahead", daemon=True
            ).start()
    return stop
