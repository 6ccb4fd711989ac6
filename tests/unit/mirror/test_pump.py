"""The pump: every part once, within its memory, and an end in any case."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from coldstream.errors import CancelledError, IntegrityError, UnavailableError
from coldstream.mirror.digest import OrderedDigest, StreamDigest
from coldstream.mirror.pump import BufferPool, Pump
from coldstream.model.chunks import part_count, parts
from coldstream.units import MIB


class Work:
    """One file that is copied from memory to memory."""

    def __init__(self, path: str, size: int, part_bytes: int, *, fault: Callable[[str], None] | None = None) -> None:
        self.size, self.part_bytes = size, part_bytes
        self.parts = tuple(parts(size, part_bytes))
        self.source = random.Random(path).randbytes(size)
        self.target = bytearray(size)
        self.calls: list[str] = []
        self.sha256 = ""
        self._path, self._fault = path, fault
        self._digest: OrderedDigest | None = None

    @property
    def digest(self) -> OrderedDigest:
        assert self._digest is not None
        return self._digest

    def prepare(self) -> None:
        self._called("prepare")
        self._digest = OrderedDigest(StreamDigest(self._path, self.size))

    def fetch(self, start: int, view: memoryview) -> None:
        self._called("fetch")
        view[:] = self.source[start : start + len(view)]

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        assert start == index * self.part_bytes
        self._called("store")
        self.target[start : start + len(view)] = view
        stored()

    def finish(self) -> None:
        self._called("finish")
        self.sha256 = self.digest.finish().sha256

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self._fault:
            self._fault(name)


def failing(at: str, nth: int, error: BaseException) -> Callable[[str], None]:
    lock = threading.Lock()
    left = [nth]

    def fault(name: str) -> None:
        if name == at:
            with lock:
                left[0] -= 1
            if left[0] == 0:
                raise error

    return fault


@pytest.mark.parametrize("connections", [1, 3, 8])
def test_every_part_of_every_file_is_moved_once(connections: int) -> None:
    rng = random.Random(connections)
    sizes = [0, 1, 999, 1000, 1001, *(rng.randrange(20_000) for _ in range(12))]
    works = [Work(f"file-{number}.json", size, 1000) for number, size in enumerate(sizes)]
    ticks: list[None] = []
    Pump(cancel=threading.Event(), connections=connections, memory_bytes=3000).run(
        works, tick=lambda: ticks.append(None)
    )
    for work in works:
        count = part_count(work.size, work.part_bytes)
        assert bytes(work.target) == work.source
        assert work.sha256 == hashlib.sha256(work.source).hexdigest()
        assert sorted(work.calls) == ["fetch"] * count + ["finish"] + ["prepare"] + ["store"] * count
        assert (work.calls[0], work.calls[-1]) == ("prepare", "finish")
    assert len(ticks) >= len(works)


@pytest.mark.parametrize("at", ["prepare", "fetch", "store", "finish"])
@pytest.mark.parametrize("nth", [1, 2])
def test_the_first_error_ends_it_and_is_raised(at: str, nth: int) -> None:
    fault = failing(at, nth, IntegrityError("wrong"))
    cancel = threading.Event()
    works = [Work(f"{number}.json", 5000, 1000, fault=fault) for number in range(4)]
    with pytest.raises(IntegrityError, match="wrong"):
        Pump(cancel=cancel, connections=3, memory_bytes=4000).run(works)
    assert cancel.is_set()
    assert any("finish" not in work.calls or not work.sha256 for work in works)


def test_what_fails_because_of_the_first_failure_is_not_news() -> None:
    cancel = threading.Event()
    failed = threading.Event()

    def fault(name: str) -> None:
        if name != "fetch":
            return
        if not failed.is_set():
            failed.set()
            raise UnavailableError("the cause")
        cancel.wait(10)
        raise CancelledError("cancelled")

    works = [Work(f"{number}.json", 1000, 1000, fault=fault) for number in range(4)]
    with pytest.raises(UnavailableError, match="the cause"):
        Pump(cancel=cancel, connections=4).run(works)


def test_a_keyboard_interrupt_in_the_waiting_thread_passes_through() -> None:
    cancel = threading.Event()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pump(cancel=cancel, connections=2).run([Work("a.json", 10, 10)], tick=interrupt)
    assert cancel.is_set()


def test_the_pool_reuses_and_stays_within_its_limit() -> None:
    pool = BufferPool(4 * MIB)
    buffers = [pool.take(MIB, lambda: False) for _ in range(4)]
    assert pool.take(MIB, lambda: True) is None
    first = buffers.pop()
    assert first is not None
    pool.give_back(first)
    assert pool.take(MIB, lambda: True) is first
    for buffer in [first, *buffers]:
        assert buffer is not None
        pool.give_back(buffer)
    # Another size: what lies unused makes room for it.
    assert len(pool.take(3 * MIB, lambda: True) or b"") == 3 * MIB


def test_a_part_above_the_limit_goes_alone() -> None:
    pool = BufferPool(MIB)
    large = pool.take(5 * MIB, lambda: True)
    assert large is not None
    assert pool.take(1, lambda: True) is None
    pool.give_back(large)
    assert pool.take(1, lambda: True) is not None


def test_memory_stays_within_its_limit_however_many_connections() -> None:
    held: list[int] = []

    class Counting(Work):
        def fetch(self, start: int, view: memoryview) -> None:
            held.append(pump._pool._allocated)
            super().fetch(start, view)

    pump = Pump(cancel=threading.Event(), connections=16, memory_bytes=4 * MIB)
    works = [Counting(f"{number}.json", 3 * MIB + 1, MIB) for number in range(5)]
    pump.run(works)
    assert max(held) <= 4 * MIB
    assert all(bytes(work.target) == work.source for work in works)
