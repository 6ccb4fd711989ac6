"""Local files as the memory of a load: mapped, verified in place by threads, and handed out as views.

Nothing is copied, and no process is started. A view keeps its file mapped, even when the file is deleted. Writing to a
view changes private pages, never the file.

A page that cannot be read, because the disk fails or the file was cut off, would end the process with SIGBUS when it is
touched. So every page is first touched by `MADV_POPULATE_READ` (Linux 5.14), which returns an error instead; where the
kernel does not have it, files are not mapped.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import xxhash

from coldstream.engine.arena import PAGE_BYTES
from coldstream.engine.attach import Extent
from coldstream.engine.load_statistics import LoadStatistics
from coldstream.engine.mapping import Memory, drop_pages, map_private, populate
from coldstream.model.job import FileJob


class MappedFile:
    """A mapped file. Raises OSError if it cannot be mapped, or has another size."""

    def __init__(self, path: str, size: int) -> None:
        """Opens and maps it; `close` closes only its descriptor."""
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(self.descriptor).st_size != size:
                raise OSError(f"{path} does not have {size} bytes")
            self.memory = map_private(self.descriptor, size)
            populate(self.memory, 0, 1)
        except BaseException:
            self.close()
            raise

    def read_ahead(self, start: int, stop: int) -> None:
        """Makes the kernel read `[start, stop)` from the disk soon, in large requests; page faults cause small ones."""
        os.posix_fadvise(self.descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def view_of(memory: Memory, number: int, file: int, start: int, stop: int) -> Extent:
    """An extent of a mapped file. Its pages leave this process when nothing refers to it."""
    view = (ctypes.c_ubyte * (stop - start)).from_buffer(memory, start)
    # Neighbours share the pages at its edges.
    first, last = -(-start // PAGE_BYTES) * PAGE_BYTES, stop // PAGE_BYTES * PAGE_BYTES
    if last > first:
        weakref.finalize(view, drop_pages, memory, first, last).atexit = False
    return Extent(number, file, start, stop, view)


class _Check(NamedTuple):
    """A chunk to verify."""

    extent: int
    file: int
    start: int
    stop: int
    digest: bytes  # empty: unknown, or not to be compared


class MappedFiles:
    """The files of a load, and the threads that verify them in the order of the extents. Thread-safe.

    What follows the first extent with wrong or unreadable bytes is not handed out: `usable` is then its number.
    """

    def __init__(
        self,
        files: Sequence[FileJob],
        extents: Sequence[tuple[int, int, int]],
        *,
        verify: bool,
        threads: int,
        ahead_bytes: int,
    ) -> None:
        """Maps the files and begins to verify; `extents` are those of the catalog.

        The threads stay at most `ahead_bytes` ahead of the reader. Raises OSError if a file cannot be mapped, and
        RuntimeError if no thread can be started.
        """
        self.extents = extents
        self.statistics = LoadStatistics(workers=threads)
        self.usable = len(extents)
        self.verified = 0  # how many extents from the first on are verified
        self._starts = [0, *accumulate(stop - start for _, start, stop in extents)]
        self._checks = _checks_of(files, verify=verify)
        self._missing = [0] * len(extents)
        for check in self._checks:
            self._missing[check.extent] += 1
        self._ahead_bytes, self._reach = ahead_bytes, threads
        self._next = self._taken = 0
        self._changed = threading.Condition()
        self._closed = False
        self._began = time.monotonic()
        self.statistics.chunks = len(self._checks)
        self.files: list[MappedFile] = []
        try:
            for file in files:
                assert file.whole_path is not None
                self.files.append(MappedFile(file.whole_path, file.stops[-1]))
            for number in range(threads):
                threading.Thread(target=self._work, name=f"coldstream-verify-{number}", daemon=True).start()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"MappedFiles({self.verified} of {len(self.extents)} extents verified, {self.usable} usable)"

    def wait(self, number: int, seconds: float) -> bool:
        """Waits up to `seconds` for an extent; returns whether it is verified. It is not if `number >= usable`."""
        began = time.monotonic()
        with self._changed:
            if number > self._taken:
                self._taken = number
                self._changed.notify_all()
            if self.verified <= number:
                self._changed.wait_for(lambda: self.verified > number or number >= self.usable, seconds)
                self.statistics.consumer_wait_seconds += time.monotonic() - began
            return number < min(self.verified, self.usable)

    @property
    def is_whole(self) -> bool:
        """Whether everything is verified, and right."""
        return self.verified == len(self.extents)

    def extent(self, number: int) -> Extent:
        """An extent for which `wait` returned true."""
        file, start, stop = self.extents[number]
        return view_of(self.files[file].memory, number, file, start, stop)

    def total(self, following: LoadStatistics | None) -> LoadStatistics:
        """The statistics of this load, with those of another one that has loaded the rest."""
        mine = self.statistics
        if following is None:
            return mine
        usable_bytes = self._starts[self.usable]
        return replace(
            following,
            local_bytes=following.local_bytes + usable_bytes,
            done_bytes=following.done_bytes + usable_bytes,
            chunks=following.chunks + sum(check.extent < self.usable for check in self._checks),
            seconds=following.seconds + mine.seconds,
            cpu_seconds=following.cpu_seconds + mine.cpu_seconds,
            consumer_wait_seconds=following.consumer_wait_seconds + mine.consumer_wait_seconds,
            first_ready_seconds=mine.first_ready_seconds or following.first_ready_seconds,
        )

    def close(self) -> None:
        """Ends the threads; what is not verified is then not usable. Idempotent. Views stay valid."""
        with self._changed:
            self._closed = True
            self.usable = min(self.usable, self.verified)
            self._changed.notify_all()
        # A file that was deleted takes space on the disk as long as it is mapped.
        files, self.files = self.files, []
        for file in files:
            file.close()

    def _work(self) -> None:
        used = time.thread_time()
        while (number := self._take()) is not None:
            try:
                is_right = self._is_right(number)
            except Exception:  # noqa: BLE001  # without a result, the reader would wait for ever; the streamer takes over
                is_right = False
            before, used = used, time.thread_time()
            self._note(self._checks[number], used - before, is_right=is_right)

    def _take(self) -> int | None:
        """The next chunk, once it is not too far ahead of the reader; None when there is nothing more to do."""
        with self._changed:
            while not self._closed and self._next < len(self._checks):
                extent = self._checks[self._next].extent
                if extent >= self.usable:
                    break
                if self._starts[extent] - self._starts[min(self._taken, extent)] <= self._ahead_bytes:
                    self._next += 1
                    return self._next - 1
                self._changed.wait()
            return None

    def _is_right(self, number: int) -> bool:
        """Whether a chunk is as expected; raises OSError if it cannot be read."""
        check = self._checks[number]
        for ahead in self._checks[number + self._reach : number + self._reach + 1]:
            self.files[ahead.file].read_ahead(ahead.start, ahead.stop)
        populate(self.files[check.file].memory, check.start, check.stop)
        view = memoryview(self.files[check.file].memory)[check.start : check.stop]
        return not check.digest or xxhash.xxh3_128_digest(view) == check.digest

    def _note(self, check: _Check, cpu_seconds: float, *, is_right: bool) -> None:
        statistics = self.statistics
        with self._changed:
            statistics.cpu_seconds += cpu_seconds
            if self._closed:
                return
            if is_right:
                self._missing[check.extent] -= 1
                statistics.local_bytes += check.stop - check.start
                statistics.done_bytes += check.stop - check.start
            else:
                self.usable = min(self.usable, check.extent)
            while self.verified < self.usable and not self._missing[self.verified]:
                self.verified += 1
            statistics.seconds = time.monotonic() - self._began
            if self.verified and statistics.first_ready_seconds is None:
                statistics.first_ready_seconds = statistics.seconds
            self._changed.notify_all()


def _checks_of(files: Sequence[FileJob], *, verify: bool) -> list[_Check]:
    checks: list[_Check] = []
    extent = 0
    for number, file in enumerate(files):
        for first, stop in file.extents:
            checks += [
                _Check(extent, number, *file.span(index), file.digest(index) if verify else b"")
                for index in range(first, stop)
            ]
            extent += 1
    return checks
