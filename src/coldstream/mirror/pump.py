"""Moves files part by part through a bounded amount of memory, many parts in parallel.

Each part is fetched into a buffer, hashed in file order and passed on. Buffers are given out in the order of the parts,
so the next part to be hashed always has one: no deadlock. The threads are daemons: a hanging one does not delay Ctrl-C.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from coldstream.errors import CancelledError
from coldstream.mirror.digest import OrderedDigest
from coldstream.units import MIB

CONNECTIONS = 8
MEMORY_BYTES = 640 * MIB
# How long cancelled threads get to stop before they are abandoned.
_STOP_SECONDS = 3.0
_TICK_SECONDS = 0.25


class FileWork(Protocol):
    """One file to move, in parts `[start, stop)` that cover it. `parts` and `digest` are read after `prepare`."""

    parts: Sequence[tuple[int, int]]
    digest: OrderedDigest | None

    def prepare(self) -> None:
        """Called once, before the first part, from the thread that runs the pump."""

    def fetch(self, start: int, view: memoryview) -> None:
        """Fills `view` with the file's bytes from `start`."""

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        """Passes on part `index` (from 0), after the digest has it. The only part of a file is hashed by then.

        `stored` must be called once, as the last step, now or later, on one of the pump's threads; until then `view`
        does not change. An implementation that holds parts back must ensure that they fit into memory.
        """

    def finish(self) -> None:
        """Called once, after all parts have been hashed and passed on."""


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
        with self._condition:
            if len(buffer) >= MIB:
                self._free.append(buffer)
            else:
                self._allocated -= len(buffer)
            self._condition.notify_all()


class Pump:
    """Moves files until all are done or one fails. The `Retry` of the stores and sources watches the same `cancel`."""

    def __init__(
        self, *, cancel: threading.Event, connections: int = CONNECTIONS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.cancel = cancel
        self._pool = BufferPool(memory_bytes)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._errors: list[BaseException] = []
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"pump-{number}", daemon=True) for number in range(connections)
        ]

    def run(self, works: Sequence[FileWork], *, tick: Callable[[], None] = lambda: None) -> None:
        """Moves all files, in this order, and calls `tick` from this thread regularly; raises the first error."""
        for thread in self._threads:
            thread.start()
        files = Countdown(len(works) + 1, self._ended.set)
        try:
            for work in works:
                if not self.cancel.is_set():
                    self._dispatch(work, files)
                tick()
            files.down()
            while not self._ended.wait(_TICK_SECONDS) and not self.cancel.is_set():
                tick()
        except BaseException:
            self.cancel.set()
            raise
        finally:
            deadline = time.monotonic() + _STOP_SECONDS
            for _ in self._threads:
                self._jobs.put(None)
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._errors:
            raise self._errors[0]

    def submit(self, job: Callable[[], None]) -> None:
        """Queues a job for one of the pump's threads. It must not wait for another job."""
        self._jobs.put(job)

    def _dispatch(self, work: FileWork, files: Countdown) -> None:
        def finish() -> None:
            work.finish()
            files.down()

        work.prepare()
        pending = Countdown(len(work.parts), finish)
        for index, (start, stop) in enumerate(work.parts):
            buffer = self._pool.take(stop - start, self.cancel.is_set)
            if buffer is None:
                return
            self.submit(partial(self._move, work, index, start, buffer, pending))

    def _move(self, work: FileWork, index: int, start: int, buffer: bytearray, pending: Countdown) -> None:
        def moved() -> None:
            self._pool.give_back(buffer)
            pending.down()

        view, users = memoryview(buffer), Countdown(2, moved)
        work.fetch(start, view)
        if work.digest:
            work.digest.offer(index, view, users.down)
        else:
            users.down()
        work.store(index, start, view, users.down)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self.cancel.is_set():
                continue
            try:
                job()
            except BaseException as exc:  # noqa: BLE001  # raised again by `run`, in the thread that waits
                # Errors that the cancellation itself causes are not reported.
                if not (isinstance(exc, CancelledError) and self.cancel.is_set()):
                    self._errors.append(exc)
                self.cancel.set()
                self._ended.set()


class Countdown:
    """Calls `reached` when it has counted down to zero. Thread-safe."""

    def __init__(self, count: int, reached: Callable[[], None]) -> None:
        self._count, self._reached, self._lock = count, reached, threading.Lock()

    def down(self) -> None:
        with self._lock:
            self._count -= 1
            zero = self._count == 0
        if zero:
            self._reached()
