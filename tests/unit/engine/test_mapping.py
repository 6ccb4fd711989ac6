from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.engine import mapping
from coldstream.engine.mapping import HUGE_PAGE_BYTES, PageMaker, map_shared, remove_pages

SIZE = 5 * HUGE_PAGE_BYTES + 12_288  # ends within a huge page


@pytest.fixture
def arena() -> Iterator[int]:
    descriptor = os.memfd_create("arena")
    os.ftruncate(descriptor, SIZE)
    yield descriptor
    os.close(descriptor)


class RefusingKernel:
    """`madvise` that refuses some advice, and counts all of it."""

    def __init__(self, *refused: int) -> None:
        self.advice: list[int] = []
        self._refused, self._madvise = refused, mapping._libc.madvise

    def madvise(self, address: int, size: int, advice: int) -> int:
        self.advice.append(advice)
        if advice in self._refused:
            ctypes.set_errno(errno.EINVAL)
            return -1
        return int(self._madvise(address, size, advice))


def mapped_huge_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("ShmemPmdMapped"))


def test_shared_memory_is_one_file_where_huge_pages_are_possible(arena: int) -> None:
    first, second = map_shared(arena, SIZE), map_shared(arena, SIZE)
    first[SIZE - 1] = 7
    assert second[SIZE - 1] == 7
    assert ctypes.addressof(first) % HUGE_PAGE_BYTES == ctypes.addressof(second) % HUGE_PAGE_BYTES == 0
    remove_pages(second, SIZE - 4096, SIZE)
    assert first[SIZE - 1] == 0


def test_shared_memory_is_unmapped_with_the_last_view(arena: int) -> None:
    memory = map_shared(arena, SIZE)
    address = f"{ctypes.addressof(memory):x}-"
    view = (ctypes.c_ubyte * 10).from_buffer(memory, 4096)
    del memory
    gc.collect()
    assert address in Path("/proc/self/maps").read_text()
    del view
    gc.collect()
    assert address not in Path("/proc/self/maps").read_text()


def test_a_mapping_that_fails_leaves_nothing_mapped(arena: int) -> None:
    before = Path("/proc/self/maps").read_text().count("\n")
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_shared(-1, SIZE)
    assert Path("/proc/self/maps").read_text().count("\n") == before


def test_pages_are_huge_where_the_kernel_can(arena: int) -> None:
    memory, before = map_shared(arena, SIZE), mapped_huge_bytes()
    PageMaker(memory).make(0, SIZE)
    try:
        mapping._advise(memory, 0, HUGE_PAGE_BYTES, mapping._COLLAPSE)
    except OSError as exc:
        pytest.skip(f"this kernel cannot, or its memory is fragmented: {exc}")
    assert mapped_huge_bytes() - before >= HUGE_PAGE_BYTES


@pytest.mark.parametrize("refused", [(), (mapping._COLLAPSE,), (mapping._COLLAPSE, mapping._POPULATE_WRITE)])
def test_what_the_pages_have_is_kept(arena: int, monkeypatch: pytest.MonkeyPatch, refused: tuple[int, ...]) -> None:
    monkeypatch.setattr(mapping._libc, "madvise", RefusingKernel(*refused).madvise)
    content = random.Random(1).randbytes(SIZE)
    os.pwrite(arena, content[: SIZE // 2], 0)
    memory = map_shared(arena, SIZE)
    pages = PageMaker(memory)
    for start in range(0, SIZE, 700_000):
        pages.make(start, min(start + 700_000, SIZE))
        view = memoryview(memory).cast("B")
        view[max(start, SIZE // 2) : start + 700_000] = content[max(start, SIZE // 2) : start + 700_000]
    assert bytes(memory) == content


def test_threads_write_while_neighbours_make_pages(arena: int) -> None:
    memory = map_shared(arena, SIZE)
    pages, piece = PageMaker(memory), 100_000
    content = random.Random(2).randbytes(SIZE)
    starts = iter(range(0, SIZE, piece))
    lock = threading.Lock()

    def write() -> None:
        view = memoryview(memory).cast("B")
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            pages.make(start, min(start + piece, SIZE))
            for at in range(start, min(start + piece, SIZE), 4096):
                stop = min(at + 4096, start + piece, SIZE)
                view[at:stop] = content[at:stop]

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bytes(memory) == content
    assert os.pread(arena, SIZE, 0) == content


def huge_pages_tried(kernel: RefusingKernel, arena: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often such a kernel is asked for a huge page of an arena that is filled from its start."""
    memory = map_shared(arena, SIZE)
    monkeypatch.setattr(mapping._libc, "madvise", kernel.madvise)
    pages = PageMaker(memory)
    for start in range(0, SIZE, HUGE_PAGE_BYTES):
        pages.make(start, min(start + HUGE_PAGE_BYTES, SIZE))
    return kernel.advice.count(mapping._COLLAPSE)


def test_a_kernel_without_huge_pages_is_asked_a_few_times_only(arena: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert huge_pages_tried(RefusingKernel(mapping._COLLAPSE), arena, monkeypatch) == 4


def test_huge_pages_that_cost_more_than_small_ones_are_not_made(arena: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(mapping.time, "thread_time", lambda: next(seconds))
    assert huge_pages_tried(RefusingKernel(), arena, monkeypatch) == 4


def test_pages_are_made_once(arena: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = RefusingKernel()
    memory = map_shared(arena, SIZE)
    monkeypatch.setattr(mapping._libc, "madvise", kernel.madvise)
    pages = PageMaker(memory)
    pages.make(0, SIZE)
    count = len(kernel.advice)
    pages.make(4096, SIZE - 4096)
    assert len(kernel.advice) == count
