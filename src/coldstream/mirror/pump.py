"""Moves files part by part through a bounded amount of memory, many parts at once.

A part gets a buffer, is fetched into it, hashed in its file's order, passed on, and the buffer is free again. Buffers
are given out in the order of the parts, so the part whose turn it is to be hashed always has one: nothing can wait for
itself. Threads are daemons: after Ctrl-C the process does not wait for a transfer that hangs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from coldstream.errors import CancelledError
from coldstream.units import MIB

CONNECTIONS = 8
MEMORY_BYTES = 640 * MIB
# How long stopped workers may take to notice, before they are left behind.
_STOP_SECONDS = 3.0
_TICK_SECONDS = 0.25


class FileWork(Protocol):
    """One file to move.

    Attributes:
        parts: As `[start, stop)`, in order and covering the file; asked for after `prepare`.
        digest: What hashes them; likewise.
    """

    @property
    def parts(self) -> Sequence[tuple[int, int]]: ...
    @property
    def digest(self) -> PartDigest: ...

    def prepare(self) -> None:
        """Called once, before its first part, from the thread that runs the pump."""

    def fetch(self, start: int, view: memoryview) -> None:
        """Fills `view` with the file's bytes from `start` on."""

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        """Passes part `index` on; it has been offered to the digest. Of a file with one part, it is hashed.

        Args:
            index: From 0.
            start: Its first byte.
            view: Its bytes, which stay as they are until `stored` is called.
            stored: To be called once, now or later, from whichever thread, when the part has been passed on. Who keeps
                a part until a later one is there must make sure that all of them fit into the memory.
        """

    def finish(self) -> None:
        """Called once, after every part has been hashed and passed on."""


class PartDigest(Protocol):
    """What a part is offered to when it has arrived: see `OrderedDigest`."""

    def offer(self, index: int, view: memoryview, hashed: Callable[[], None]) -> None: ...


class BufferPool:
    """Memory for parts, never more than `limit_bytes` of it, reused because fresh pages cost more than copying."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._condition = threading.Condition()
        self._free: list[bytearray] = []
        self._allocated = 0

    def take(self, size: int, stopped: Callable[[], bool]) -> bytearray | None:
        """A buffer of exactly `size` bytes, or None once `stopped` says so. A size above the limit goes alone."""
        with self._condition:
            while True:
                for position, buffer in enumerate(self._free):
                    if len(buffer) == size:
                        return self._free.pop(position)
                while self._free and self._allocated + size > self.limit_bytes:
                    self._allocated -= len(self._free.pop())
                if self._allocated == 0 or self._allocated + size <= self.limit_bytes:
                    self._allocated += size
                    return bytearray(size)
                self._condition.wait(_TICK_SECONDS)
                if stopped():
                    return None

    def give_back(self, buffer: bytearray) -> None:
        """The buffer may be given to somebody else."""
        with self._condition:
            if len(buffer) >= MIB:
                self._free.append(buffer)
            else:
                self._allocated -= len(buffer)
            self._condition.notify_all()


class Pump:
    """Runs works to their end, or stops at the first error.

    Attributes:
        cancel: Set when something failed or Ctrl-C was pressed; the stores' and sources' `Retry` watch the same event.
    """

    def __init__(
        self, *, cancel: threading.Event, connections: int = CONNECTIONS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.cancel = cancel
        self._pool = BufferPool(memory_bytes)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._errors: list[BaseException] = []
        self._open_files = 0
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"pump-{number}", daemon=True) for number in range(connections)
        ]

    def run(self, works: Iterable[FileWork], *, tick: Callable[[], None] | None = None) -> None:
        """Moves all files.

        Args:
            works: In the order in which they start.
            tick: Called from this thread every now and then, at least while waiting for the last files.

        Raises:
            Whatever a work raised first. KeyboardInterrupt passes through. Workers have stopped, or are left behind.
        """
        for thread in self._threads:
            thread.start()
        try:
            for work in works:
                self._dispatch(work)
                if tick:
                    tick()
            while self._unfinished():
                if tick:
                    tick()
        except BaseException:
            self.cancel.set()
            raise
        finally:
            self._stop()
        if self._errors:
            raise self._errors[0]

    def submit(self, job: Callable[[], None]) -> None:
        """Runs a job on one of the pump's threads, soon. It may not wait for another one."""
        self._jobs.put(job)

    def _dispatch(self, work: FileWork) -> None:
        if self.cancel.is_set():
            return
        with self._changed:
            self._open_files += 1
        work.prepare()
        cut = work.parts
        pending = Countdown(2 * len(cut), lambda: self.submit(lambda: self._finish(work)))
        for index, (start, stop) in enumerate(cut):
            buffer = self._pool.take(stop - start, self.cancel.is_set)
            if buffer is None:
                return
            self._jobs.put(self._part(work, index, start, buffer, pending))

    def _part(
        self, work: FileWork, index: int, start: int, buffer: bytearray, pending: Countdown
    ) -> Callable[[], None]:
        def job() -> None:
            users = Countdown(2, lambda: self._pool.give_back(buffer))
            view = memoryview(buffer)

            def done() -> None:
                users.down()
                pending.down()

            work.fetch(start, view)
            work.digest.offer(index, view, done)
            work.store(index, start, view, done)

        return job

    def _finish(self, work: FileWork) -> None:
        work.finish()
        with self._changed:
            self._open_files -= 1
            self._changed.notify_all()

    def _unfinished(self) -> bool:
        """Waits a moment; whether there is more to wait for."""
        with self._changed:
            if self._open_files and not self.cancel.is_set():
                self._changed.wait(_TICK_SECONDS)
            return bool(self._open_files) and not self.cancel.is_set()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self.cancel.is_set():
                continue
            try:
                job()
            except BaseException as exc:  # noqa: BLE001  # raised again by `run`, in the thread that waits
                with self._changed:
                    # What fails because of the first failure is not news.
                    if not (isinstance(exc, CancelledError) and self.cancel.is_set()):
                        self._errors.append(exc)
                    self.cancel.set()
                    self._changed.notify_all()

    def _stop(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class Countdown:
    """Calls `reached` when it has been counted down to zero. Thread-safe."""

    def __init__(self, count: int, reached: Callable[[], None]) -> None:
        self._count, self._reached = count, reached
        self._lock = threading.Lock()

    def down(self) -> None:
        with self._lock:
            self._count -= 1
            zero = self._count == 0
        if zero:
            self._reached()
