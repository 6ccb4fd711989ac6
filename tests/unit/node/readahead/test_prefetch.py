from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from coldstream.node.readahead import prefetch as asking_module
from coldstream.node.readahead.prefetch import Prefetched, prefetch, start_read_ahead
from coldstream.node.readahead.read_record import File, ReadRecord

_PAGE = mmap.PAGESIZE
_MIB = 1 << 20
pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise here")


def _resident(path: Path) -> list[bool]:
    """Which pages of a file the kernel has (mincore)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
        size = len(mapped)
        vector = (ctypes.c_ubyte * -(-size // _PAGE))()
        held = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        code = libc.mincore(ctypes.c_void_p(ctypes.addressof(held)), ctypes.c_size_t(size), vector)
        del held
        assert code == 0, os.strerror(ctypes.get_errno())
    return [bool(byte & 1) for byte in vector]


def _cold(path: Path, size: int) -> None:
    """A file that the kernel has nothing of."""
    path.write_bytes(os.urandom(size))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(_resident(path)):
        pytest.skip("the file system here keeps what it is told to drop")


def _reads(*files: File) -> ReadRecord:
    return ReadRecord(prefixes=(os.path.dirname(files[0].path),), files=files)


@pytest.mark.skipif(sys.platform != "linux", reason="mincore as Linux has it")
def test_asked_ranges_become_resident(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    size = 32 * _MIB
    _cold(path, size)
    wanted = (0, 3 * _MIB, size - 2 * _MIB, size)
    assert prefetch(_reads(File(path=str(path), size=size, ranges=wanted))) == Prefetched(
        files=1, bytes=5 * _MIB, changed=0, left_out=0
    )
    until = time.monotonic() + 20
    pages = [*range(3 * _MIB // _PAGE), *range((size - 2 * _MIB) // _PAGE, size // _PAGE)]
    while not all(map(_resident(path).__getitem__, pages)):
        assert time.monotonic() < until, "the pages did not come"
        time.sleep(0.01)


def test_what_changed_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(b"12345")
    (tmp_path / "grown").write_bytes(b"123456")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.cpython-312.pyc").write_bytes(b"12345")
    names = ("same", "grown", "gone", "folder", "pipe", "__pycache__/a.cpython-312.pyc", "x" * 300)
    reads = _reads(*(File(path=f"{tmp_path}/{name}", size=5) for name in names))
    assert prefetch(reads) == Prefetched(files=2, bytes=10, changed=5, left_out=0)


def test_memory_bounds_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("a", 10), ("b", 100), ("c", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
    reads = _reads(*(File(path=f"{tmp_path}/{name}", size=size) for name, size in (("a", 10), ("b", 100), ("c", 10))))
    assert prefetch(reads, memory_bytes=25) == Prefetched(files=2, bytes=20, changed=0, left_out=1)
    assert prefetch(reads, memory_bytes=0).left_out == 3
    monkeypatch.setattr(asking_module.hardware, "available_bytes", lambda: 4 * 20)
    assert prefetch(reads).bytes == 20


def test_it_stops_when_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    stop = threading.Event()
    stop.set()
    assert prefetch(_reads(File(path=f"{tmp_path}/a", size=1)), stop=stop).left_out == 1


def test_without_posix_fadvise_nothing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.delattr(os, "posix_fadvise")
    assert prefetch(_reads(File(path=f"{tmp_path}/a", size=1))) == Prefetched(files=0, bytes=0, changed=0, left_out=1)


def test_it_runs_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    reads = _reads(File(path=f"{tmp_path}/a", size=1))
    may_begin, results = threading.Event(), []

    def waiting(reads: ReadRecord, *, stop: threading.Event) -> None:
        may_begin.wait(20)
        results.append(prefetch(reads, stop=stop))

    monkeypatch.setattr(asking_module, "prefetch", waiting)
    start_read_ahead(reads.encode())
    start_read_ahead(reads.encode()).set()
    assert results == []
    may_begin.set()
    until = time.monotonic() + 20
    while len(results) < 2:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert sorted(result.files for result in results) == [0, 1]


def test_without_a_record_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Thread", lambda **_: pytest.fail("a thread was started"))
    for data in (None, b"rubbish"):
        assert not start_read_ahead(data).is_set()
