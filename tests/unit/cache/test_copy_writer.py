"""Chunks are written in any order, forgotten, and synced within bounds."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from coldstream.cache import copy_writer as writer_module
from coldstream.cache.cache import Cache
from coldstream.errors import DiskError
from coldstream.machine.atomic_file import TEMPORARY_PREFIX
from tests.unit.cache.cached_models import (
    HUGE,
    SIZES,
    URI,
    Model,
    begun,
    files_below,
    open_descriptors,
    run_python,
)


@pytest.mark.parametrize("hashed", [True, False])
def test_chunks_in_any_order_become_a_plain_folder(cache: Cache, *, hashed: bool) -> None:
    model = Model(hashed=hashed)
    order = model.chunks()
    random.Random(1).shuffle(order)
    with model.open(cache) as copy:
        assert model.check(copy) == 0
        with begun(copy) as writer:
            for done, (file, chunk) in enumerate(order):
                assert model.check(copy) == done
                assert not writer.have(file, chunk)
                model.write(writer, file, chunk)
        assert copy.complete
        assert model.check(copy) == len(order)
        assert copy.writer() is None
        plain = {path for path in files_below(copy.folder) if not path.startswith(".coldstream/")}
        assert plain == {*SIZES}
        assert copy.folder == cache.root / "models/org--model/sha256-1"


def test_a_file_is_partial_until_its_last_chunk(cache: Cache) -> None:
    model = Model({"a": [5, 5], "b": [5]})
    with model.open(cache) as copy, begun(copy) as writer:
        model.write(writer, 0, 1)
        assert copy.path(0) == copy.folder / ".coldstream/partial/a"
        assert not (copy.folder / "a").exists()
        assert copy.have(0) == b"\0\1"
        model.write(writer, 0, 0)
        assert copy.path(0) == copy.folder / "a"
        assert not copy.complete
        assert cache.latest(URI) is None


def test_models_of_empty_files_alone_are_complete_at_once(cache: Cache) -> None:
    model = Model({"x": [], "y/z": []})
    with model.open(cache) as copy:
        assert not copy.complete
        assert copy.writer() is None
        assert copy.complete
        assert (copy.folder / "y/z").read_bytes() == b""
    assert cache.latest(URI) is not None
    with Model({}).open(cache, name="no/files") as copy:
        assert copy.complete


def test_chunks_that_are_not_the_plans_are_refused(cache: Cache) -> None:
    model = Model({"a": [5, 5]})
    digest = model.files[0].digests or b""
    with model.open(cache) as copy:
        writer = begun(copy)
        with pytest.raises(ValueError, match="has 5 bytes"):
            writer.write(0, 0, memoryview(b"1234"), digest[:16])
        with pytest.raises(ValueError, match="not verified"):
            writer.write(0, 0, memoryview(b"12345"), digest[16:])
        for file, chunk in [(1, 0), (0, 2), (-1, 0), (0, -1)]:
            with pytest.raises(IndexError):
                writer.write(file, chunk, memoryview(b"12345"), bytes(16))
        writer.close()
        writer.close()
        with pytest.raises(ValueError, match="closed"):
            model.write(writer, 0, 0)
        assert model.check(copy) == 0


def test_many_files_take_few_descriptors(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "OPEN_FILES_MAX", 3)
    model = Model({f"f{number}": [4, 4] for number in range(20)})
    with model.open(cache) as copy, begun(copy) as writer:
        before = open_descriptors()
        for chunk in (1, 0):
            for file in range(20):
                model.write(writer, file, chunk)
                assert open_descriptors() <= before + 3
        assert model.check(copy) == 40


def test_dirty_pages_are_bounded(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SYNC_BYTES", 10)
    synced: list[int] = []
    monkeypatch.setattr(writer_module, "_sync_data", synced.append)
    model = Model({"a": [4] * 10, "b": [4] * 10})
    with model.open(cache) as copy, begun(copy) as writer:
        for chunk in range(9):
            model.write(writer, 0, chunk)
            model.write(writer, 1, chunk)
        # 72 bytes, every third chunk both files.
        assert len(synced) == 12


def test_a_flipped_bit_is_forgotten_and_mended(cache: Cache) -> None:
    model = Model()
    folder = model.fill(cache)
    with (folder / "a.safetensors").open("r+b") as opened:
        opened.seek(41)
        flipped = bytes([model.data[0][41] ^ 4])
        opened.write(flipped)
    with model.open(cache) as copy:
        assert copy.complete
        data = copy.path(0).read_bytes()
        assert xxhash.xxh3_128_digest(data[40:43]) != copy.digests(0)[16:32]
        with copy.writer(repair=True) or pytest.fail("no writer") as writer:
            writer.forget(0, 1)
            assert not copy.complete
            assert copy.have(0) == b"\1\0\1"
            assert not (folder / "a.safetensors").exists()
            model.write(writer, 0, 1)
        assert copy.complete
        model.check(copy)


@pytest.mark.parametrize("hashed", [True, False])
def test_forget_takes_a_file_from_its_place(cache: Cache, *, hashed: bool) -> None:
    model = Model({"a": [5, 5], "b": [5]}, hashed=hashed)
    with model.open(cache) as copy, begun(copy) as writer:
        model.write(writer, 0, 0)
        writer.forget(0, 0)
        writer.forget(0, 1)
        assert model.check(copy) == 0
        for chunk in (0, 1):
            model.write(writer, 0, chunk)
        assert (copy.folder / "a").exists()
        writer.forget(0, 1)
        assert not (copy.folder / "a").exists()
        assert copy.have(0) == b"\1\0"
        assert hashed or copy.digests(0)[16:] == bytes(16)
        assert model.check(copy) == 1
        model.write(writer, 0, 1)
        model.write(writer, 1, 0)
        assert copy.complete
        writer.forget(1, 0)
        assert not copy.complete
        assert cache.latest(URI) is None
        model.write(writer, 1, 0)
        assert copy.complete
        assert model.check(copy) == 3


def test_a_chunk_is_forgotten_even_if_its_file_cannot_be_moved(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model({"a": [5, 5]})
    model.fill(cache)

    def broken(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with model.open(cache) as copy:
        with copy.writer(repair=True) or pytest.fail("no writer") as writer:
            monkeypatch.setattr(os, "replace", broken)
            with pytest.raises(DiskError):
                writer.forget(0, 0)
            monkeypatch.undo()
            assert writer.closed
        assert copy.have(0) == b"\0\1"
        assert not copy.complete
        with begun(copy) as writer:
            assert not (copy.folder / "a").exists()
            model.write(writer, 0, 0)
        assert copy.complete


def test_a_full_disk_leaves_what_is_there(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model({"a": [5] * 10})
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset >= 30:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with model.open(cache) as copy:
        writer = begun(copy)
        for chunk in range(6):
            model.write(writer, 0, chunk)
        with pytest.raises(DiskError, match="quota"):
            model.write(writer, 0, 6)
        assert writer.closed
        writer.close()
        assert model.check(copy) == 6
        monkeypatch.undo()
        with begun(copy) as again:
            assert again.have(0, 5)
            assert not again.have(0, 6)


def test_a_failed_sync_takes_its_claims_back(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model({"a": [5, 5], "b": [5, 5]})
    with model.open(cache) as copy:
        writer = begun(copy)
        for file, chunk in [(0, 0), (0, 1), (1, 0)]:
            model.write(writer, file, chunk)

        def broken(descriptor: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(writer_module, "_sync_data", broken)
        with pytest.raises(DiskError, match="Input/output"):
            writer.close()
        assert writer.closed
        assert [copy.have(0), copy.have(1)] == [b"\1\1", b"\0\0"]


def test_a_file_size_limit_is_a_disk_error(cache: Cache) -> None:
    """The real thing: a write(2) beyond the limit stops short, the next one fails."""
    code = """
import resource, signal, sys
from pathlib import Path
from coldstream.cache.cache import Cache
from coldstream.errors import DiskError
from tests.unit.cache.cached_models import HUGE, Model, begun
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = Model({"a": [1000] * 10, "b": [3000, 3000]})
with model.open(Cache(Path(sys.argv[1]), bytes_max=HUGE)) as copy:
    writer = begun(copy)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    for chunk in range(9):
        model.write(writer, 0, chunk)
    model.write(writer, 1, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_500, 9_500))
    try:
        model.write(writer, 0, 9)
    except DiskError as exc:
        print(exc.message)
"""
    done = run_python(code, cache.root)
    assert "cannot write: the limit on file size (ulimit -f: 9.50 kB) is reached" in done
    model = Model({"a": [1000] * 10, "b": [3000, 3000]})
    with model.open(cache) as copy:
        assert model.check(copy) == 10
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 9_500


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes, where this user may make one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    model = Model({"a": [100_000] * 15})
    cache = Cache(tiny_disk, bytes_max=HUGE)
    with Model({"a": [100_000] * 30}).open(cache, name="m/large") as copy, pytest.raises(DiskError, match="MB free"):
        copy.writer()
    cache.prune()
    with model.open(cache) as copy:
        writer = begun(copy)
        # Somebody else takes what was free.
        (tiny_disk / "other").write_bytes(bytes(1_000_000))
        with pytest.raises(DiskError, match="No space left") as caught:
            model.write_all(writer)
        assert "free some space" in (caught.value.hint or "")
        count = model.check(copy)
        assert 3 < count < 15
        assert not [path for path in files_below(copy.folder) if TEMPORARY_PREFIX in path]
        (tiny_disk / "other").unlink()
        with begun(copy) as writer:
            model.write_all(writer)
        assert model.check(copy) == 15
