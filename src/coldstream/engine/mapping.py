"""Mapped memory that Python's `mmap` cannot map or prepare: local files, and the arena in huge pages.

Touching new memory in pages of 4 KiB costs as much CPU as receiving into it, in every process that maps it. Linux makes
huge pages of shared memory only if an administrator has set it to (`shmem_enabled`), except by `MADV_COLLAPSE` (6.1).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
import weakref

from coldstream.engine.arena import PAGE_BYTES

HUGE_PAGE_BYTES = 2 << 20
_NO_RESERVE = 0x4000  # MAP_NORESERVE: swap is reserved for no page before it is written
_FIXED, _NO_ACCESS = 0x10, 0  # MAP_FIXED, PROT_NONE
_FAILED = ctypes.c_void_p(-1).value
# Advice that Python's mmap does not have.
_POPULATE_READ, _POPULATE_WRITE, _COLLAPSE = 22, 23, 25
# What making a huge page may cost: as much as touching it in small ones. It costs a tenth, unless memory is fragmented.
_COLLAPSE_SECONDS_MAX = 2e-3
_FAILURES_MAX = 4

Memory = ctypes.Array[ctypes.c_ubyte]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def map_private(descriptor: int, size: int) -> Memory:
    """A file's bytes, unmapped when nothing refers to them. Raises OSError.

    Not Python's mmap, which keeps a descriptor open for as long.
    """
    address = _map(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _NO_RESERVE, descriptor)
    return _unmapped_at_last(address, address, size, size)


def map_shared(descriptor: int, size: int) -> Memory:
    """Shared memory, where it can have huge pages; unmapped when nothing refers to it. Raises OSError."""
    # Address and offset have to be aligned alike, which is the kernel's choice only if `shmem_enabled` is set.
    room = size + HUGE_PAGE_BYTES
    begin = _map(None, room, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE, -1)
    address = -(-begin // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    try:
        _map(address, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _FIXED, descriptor)
    except OSError:
        _libc.munmap(begin, room)
        raise
    return _unmapped_at_last(address, begin, size, room)


def populate(memory: Memory, start: int, stop: int) -> None:
    """Reads `[start, stop)` of a mapped file, and maps its pages; raises OSError if one cannot be read."""
    first = start - start % PAGE_BYTES
    _advise(memory, first, stop, _POPULATE_READ)


def drop_pages(memory: Memory, start: int, stop: int) -> None:
    """Removes whole pages of a private mapping from this process."""
    _libc.madvise(ctypes.addressof(memory) + start, stop - start, mmap.MADV_DONTNEED)


def remove_pages(memory: Memory, start: int, stop: int) -> None:
    """Gives whole pages of shared memory back to the system, for all processes. Raises OSError."""
    _advise(memory, start, stop, mmap.MADV_REMOVE)


class PageMaker:
    """Makes the pages of shared memory in bulk before they are written. Thread-safe.

    It never fails: where the kernel cannot, or memory is short or fragmented, a page is made when it is touched.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._made = bytearray(-(-len(memory) // HUGE_PAGE_BYTES))  # for each huge page, whether this was tried
        self._failures_left = _FAILURES_MAX
        self._can_populate = True

    def make(self, start: int, stop: int) -> None:
        """Makes those that `[start, stop)` touches; what they have is kept."""
        first, last = start // HUGE_PAGE_BYTES, -(-stop // HUGE_PAGE_BYTES)
        if self._made.find(0, first, last) < 0:
            return
        for number in range(first, last):
            if not self._made[number]:
                self._made[number] = 1
                begin = number * HUGE_PAGE_BYTES
                end = min(begin + HUGE_PAGE_BYTES, len(self._memory))
                if not (self._failures_left > 0 and end - begin == HUGE_PAGE_BYTES and self._collapse(begin, end)):
                    self._populate(begin, end)

    def _collapse(self, start: int, stop: int) -> bool:
        """Makes a huge page; returns whether it is one."""
        used = time.thread_time()
        try:
            # The kernel joins pages into a huge one only where at least one exists.
            _advise(self._memory, start, start + PAGE_BYTES, _POPULATE_WRITE)
            _advise(self._memory, start, stop, _COLLAPSE)
        except OSError:
            self._failures_left -= 1
            return False
        if time.thread_time() - used > _COLLAPSE_SECONDS_MAX:
            self._failures_left -= 1
        return True

    def _populate(self, start: int, stop: int) -> None:
        if self._can_populate:
            try:
                _advise(self._memory, start, stop, _POPULATE_WRITE)
            except OSError:
                self._can_populate = False


def _map(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    result = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if result == _FAILED:
        raise _last_error()
    return int(result)


def _unmapped_at_last(address: int, begin: int, size: int, room: int) -> Memory:
    """The memory at an address; `room` bytes from `begin` are unmapped with it."""
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _libc.munmap, begin, room).atexit = False
    return memory


def _advise(memory: Memory, start: int, stop: int, advice: int) -> None:
    if _libc.madvise(ctypes.addressof(memory) + start, stop - start, advice):
        raise _last_error()


def _last_error() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
