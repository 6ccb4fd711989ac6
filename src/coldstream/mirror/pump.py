"""Moves files part by part through a bounded amount of memory, many parts in parallel.

Each part is fetched into a buffer, hashed in file order and passed on; then the buffer is free again. Buffers are given
out in the order of the parts, so the next part to be hashed always has one: no deadlock. The threads are daemons, so
that the process does not wait for a transfer that hangs after Ctrl-C.
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
# How long cancelled threads get to stop before they are abandoned.
_STOP_SECONDS = 3.0
_TICK_SECONDS = 0.25


class FileWork(Protocol):
    """One file to move.

    Attributes:
        parts: `[start, stop)` of each part, in order and covering the file. Read after `prepare`.
        digest: Hashes the parts. Read after `prepare`.
    """

    @property
    def parts(self) -> Sequence[tuple[int, int]]: ...
    @property
    def digest(self) -> PartDigest: ...

    def prepare(self) -> None:
        """Called once, before the first part, from the thread that runs the pump."""

    def fetch(self, start: int, view: memoryview) -> None:
        """Fills `view` with the file's bytes from `start`."""

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        """Passes on part `index` (from 0), after the digest has it. The only part of a file is hashed by then.

        Args:
            start: The part's first byte in the file.
            view: The part's bytes, which do not change until `stored` is called.
            stored: Must be called once, now or later, from any thread, when the part has been passed on. An
                implementation that holds parts back until a later one arrives must ensure that they fit into memory.
        """

    def finish(self) -> None:
        """Called once, after all parts have been hashed and passed on."""


class PartDigest(Protocol):
    """Receives each part as it arrives: see `OrderedDigest`."""

    def offer(self, index: int, view: memoryview, hashed: Callable[[], None]) -> None: ...


class BufferPool:
    """Buffers of at most `limit_bytes` together, reused because fresh pages cost more than copying."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._condition = threading.Condition()
        self._free: list[bytearray] = []
        self._allocated = 0

    def take(self, size: int, stopped: Callable[[], bool]) -> bytearray | None:
        """Waits for a buffer of exactly `size` bytes; None once `stopped()`. A larger one waits for all others."""
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
        """Makes the buffer available again."""
        with self._condition:
            if len(buffer) >= MIB:
                self._free.append(buffer)
            else:
                self._allocated -= len(buffer)
            self._condition.notify_all()


class Pump:
    """Moves files until all are done or one fails.

    Attributes:
        cancel: Set on failure or Ctrl-C. The `Retry` of the stores and sources watches the same event.
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
            tick: Called from this thread regularly, at least while it waits for the last files.

        Raises:
            The first error of any file, or KeyboardInterrupt. By then the threads have stopped or are abandoned.
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
        """Queues a job for one of the pump's threads. It must not wait for another job."""
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
        """Waits a moment; whether there is still something to wait for."""
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
                    # Errors that the cancellation itself causes are not reported.
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
    """Calls `reached` when it has counted down to zero. Thread-safe."""

    def __init__(self, count: int, reached: Callable[[], None]) -> None:
        self._count, self._reached = count, reached
        self._lock = threading.Lock()

    def down(self) -> None:
        with self._lock:
            self._count -= 1
            zero = self._count == 0
        if zero:
            self._reached()
