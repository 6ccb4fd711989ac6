"""The local cache: whatever happens to its writers and its disk, what it claims is there, and right."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import xxhash
from click.testing import CliRunner

from coldstream.cache import copy_writer as writer_module
from coldstream.cache import space as room_module
from coldstream.cache.cache import Cache, configured
from coldstream.cache.copy_records import RECORD, CachedFile, CopyPlan, parse_plan
from coldstream.cache.copy_writer import CopyWriter
from coldstream.cache.local_copy import LocalCopy
from coldstream.cache.space import CachedCopy
from coldstream.cli.cache_command import command
from coldstream.cli.session import State
from coldstream.engine.rendezvous import SocketFolder
from coldstream.errors import ColdstreamError, ConfigError, DiskError, IntegrityError, NotFoundError, UsageError
from coldstream.machine import disk as disk_module
from coldstream.machine.atomic_file import TEMPORARY_PREFIX
from coldstream.machine.disk import make_folders, open_private, temporary_root

REPOSITORY = Path(__file__).resolve().parents[3]
URI = "s3://models/org/model"
HUGE = 1 << 40
SIZES = {"a.safetensors": [40, 3, 50], "sub/b.safetensors": [7] * 9, "empty": [], "c.bin": [1]}


class Model:
    """A small model with known bytes."""

    def __init__(self, sizes: dict[str, list[int]] | None = None, *, seed: int = 0, hashed: bool = True) -> None:
        rng = random.Random(seed)
        self.data: list[bytes] = []
        self.files: list[CachedFile] = []
        for path, chunks in (SIZES if sizes is None else sizes).items():
            data = rng.randbytes(sum(chunks))
            stops = tuple(sum(chunks[: count + 1]) for count in range(len(chunks)))
            pieces = [data[start:stop] for start, stop in pairwise((0, *stops))]
            digests = b"".join(xxhash.xxh3_128_digest(piece) for piece in pieces)
            self.data.append(data)
            self.files.append(CachedFile(path=path, size=len(data), stops=stops, digests=digests if hashed else None))

    def chunks(self) -> list[tuple[int, int]]:
        return [(file, chunk) for file, entry in enumerate(self.files) for chunk in range(len(entry.stops))]

    def piece(self, file: int, chunk: int) -> bytes:
        start, stop = self.files[file].bounds(chunk)
        return self.data[file][start:stop]

    def write(self, writer: CopyWriter, file: int, chunk: int) -> None:
        piece = self.piece(file, chunk)
        writer.write(file, chunk, memoryview(piece), xxhash.xxh3_128_digest(piece))

    def write_all(self, writer: CopyWriter) -> None:
        for file, chunk in self.chunks():
            self.write(writer, file, chunk)

    def open(self, cache: Cache, *, uri: str = URI, name: str = "org/model", version: str = "sha256:1") -> LocalCopy:
        return cache.open(uri=uri, name=name, version=version, files=self.files)

    def fill(self, cache: Cache, *, name: str = "org/model", version: str = "sha256:1", uri: str = URI) -> Path:
        """Puts the whole model into the cache."""
        with self.open(cache, uri=uri, name=name, version=version) as copy:
            with begun(copy) as writer:
                self.write_all(writer)
            assert copy.complete
            return copy.folder

    def check(self, copy: LocalCopy, *, moving: bool = False) -> int:
        """Reads back what the copy claims, byte for byte; returns how many chunks that is.

        `moving`: another process writes it meanwhile.
        """
        count = 0
        for file, entry in enumerate(self.files):
            claimed, digests = copy.have(file), copy.digests(file)
            assert len(claimed) == len(entry.stops)
            for chunk, there in enumerate(claimed):
                if there:
                    start, stop = entry.bounds(chunk)
                    with opened_where_it_is(copy, file) as opened:
                        opened.seek(start)
                        assert opened.read(stop - start) == self.piece(file, chunk)
                    digest = digests[chunk * 16 : chunk * 16 + 16]
                    assert digest == xxhash.xxh3_128_digest(self.piece(file, chunk))
                    count += 1
        for file, entry in enumerate(self.files):
            plain = copy.folder / entry.path
            if plain.exists():
                assert plain.read_bytes() == self.data[file]
        assert moving or copy.complete == all((copy.folder / entry.path).exists() for entry in self.files)
        return count


def opened_where_it_is(copy: LocalCopy, file: int) -> BinaryIO:
    """The file, which another process may move once while we look."""
    try:
        return copy.path(file).open("rb")
    except FileNotFoundError:
        return copy.path(file).open("rb")


def begun(copy: LocalCopy) -> CopyWriter:
    writer = copy.writer()
    assert writer is not None
    return writer


def latest_of(cache: Cache, uri: str = URI) -> LocalCopy:
    found = cache.latest(uri)
    assert found is not None
    return found


def entry_of(cache: Cache, name: str) -> CachedCopy:
    (found,) = [entry for entry in cache.entries() if entry.name == name]
    return found


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", bytes_max=HUGE)


# Writing and reading


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
        copy.put("config.json", b"{}")
        copy.put("sub/deep/tokenizer.json", b"[]")
        copy.put("config.json", b"{1}")
        plain = {path for path in files_below(copy.folder) if not path.startswith(".coldstream/")}
        assert plain == {*SIZES, "config.json", "sub/deep/tokenizer.json"}
        assert (copy.folder / "config.json").read_bytes() == b"{1}"
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


def test_without_a_manifest_the_journal_has_the_digests(cache: Cache) -> None:
    model = Model({"a": [5, 5]}, hashed=False)
    with model.open(cache) as copy, begun(copy) as writer:
        model.write(writer, 0, 1)
        assert copy.digests(0) == bytes(16) + xxhash.xxh3_128_digest(model.piece(0, 1))


def test_a_reader_follows_a_writer_and_a_descriptor_stays_good(cache: Cache) -> None:
    model = Model({"a": [5, 5]})
    with model.open(cache) as reader, model.open(cache) as copy, begun(copy) as writer:
        model.write(writer, 0, 0)
        with reader.path(0).open("rb") as opened:
            model.write(writer, 0, 1)
            assert opened.read() == model.data[0]
        assert reader.complete


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
        with pytest.raises(ValueError, match="in the plan"):
            copy.put("a", b"12345")
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


# Forgetting


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


# The journal and the plan, damaged


def journal_of(copy: LocalCopy) -> Path:
    return copy.folder / ".coldstream" / "journal"


def test_torn_and_nonsense_records_are_ignored(cache: Cache) -> None:
    model = Model({"a": [5, 5, 5], "b": [5]})
    with model.open(cache) as copy:
        with begun(copy) as writer:
            model.write(writer, 0, 0)
        right = xxhash.xxh3_128_digest(model.piece(0, 1))
        with journal_of(copy).open("ab") as journal:
            journal.write(RECORD.pack(7, 0, right) + RECORD.pack(0, 9, right) + RECORD.pack(1, 0, right))
            journal.write(RECORD.pack(0xFFFFFFFF, 0xFFFFFFFF, right) + RECORD.pack(0, 0, right))
            journal.write(RECORD.pack(0, 1, b"not its digest  "))
            journal.write(RECORD.pack(0, 2, xxhash.xxh3_128_digest(model.piece(0, 2)))[:-1])
        assert model.check(copy) == 1
        with begun(copy) as writer:
            assert journal_of(copy).stat().st_size % RECORD.size == 0
            assert model.check(copy) == 1
            model.write(writer, 0, 2)
            assert model.check(copy) == 2


def test_a_reader_that_saw_a_torn_record_sees_the_next_one(cache: Cache) -> None:
    model = Model({"a": [5, 5]})
    with model.open(cache) as copy:
        journal_of(copy).write_bytes(b"torn")
        assert copy.have(0) == b"\0\0"
        with begun(copy) as writer:
            model.write(writer, 0, 0)
            assert copy.have(0) == b"\1\0"


def test_a_journal_that_is_far_too_long_counts_as_none(cache: Cache) -> None:
    model = Model({"a": [5, 5]})
    with model.open(cache) as copy:
        with begun(copy) as writer:
            model.write(writer, 0, 0)
        assert copy.have(0) == b"\1\0"
        with journal_of(copy).open("ab") as journal:
            journal.write(journal_of(copy).read_bytes() * 10_000)
        assert copy.have(0) == b"\0\0"
        with begun(copy) as writer:
            assert journal_of(copy).stat().st_size == 0
            model.write(writer, 0, 1)
        assert model.check(copy) == 1


@pytest.mark.parametrize("damage", ["journal", "partial", "short", "plain", "resized", "both", "symlink"])
def test_what_does_not_fit_the_files_is_not_claimed(cache: Cache, damage: str) -> None:
    model = Model({"a": [5, 5, 5], "b": [5, 5]})
    with model.open(cache) as copy:
        with begun(copy) as writer:
            for file, chunk in [(0, 0), (0, 2), (1, 0), (1, 1)]:
                model.write(writer, file, chunk)
        partial, plain = copy.path(0), copy.folder / "b"
        expected = 4
        if damage == "journal":
            journal_of(copy).unlink()
            expected = 0
        elif damage == "partial":
            partial.unlink()
            expected = 2
        elif damage == "short":
            os.truncate(partial, 12)
            expected = 3
        elif damage == "plain":
            plain.unlink()
            expected = 2
        elif damage == "resized":
            plain.write_bytes(b"other")
            expected = 2
        elif damage == "both":
            (partial.parent / "b").write_bytes(b"junk")
        elif damage == "symlink":
            partial.unlink()
            partial.symlink_to(plain)
            expected = 2
        assert sum(sum(copy.have(file)) for file in (0, 1)) == expected
        if damage == "symlink":
            # Nothing is written through it.
            with begun(copy) as writer, pytest.raises(DiskError):
                model.write(writer, 0, 0)
            partial.unlink()
        with begun(copy) as writer:
            assert model.check(copy) == expected
            model.write_all(writer)
        assert copy.complete
        model.check(copy)
        assert not files_below(copy.folder / ".coldstream/partial")


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: b"",
        lambda plan: b"{",
        lambda plan: b"[]",
        lambda plan: b"[" * 100_000,
        lambda plan: b"\xff" + plan,
        lambda plan: plan.replace(b'"format":1', b'"format":2'),
        lambda plan: plan.replace(b'"size":15', b'"size":16'),
        lambda plan: plan.replace(b'"size":15', b'"size":true'),
        lambda plan: plan.replace(b"[5,10,15]", b"[5,5,15]"),
        lambda plan: plan.replace(b"[5,10,15]", b"[5.0,10,15]"),
        lambda plan: plan.replace(b"[5,10,15]", b"[-5,10,15]"),
        lambda plan: plan.replace(b"[5,10,15]", b"[5,15]"),
        lambda plan: plan.replace(b'"path":"a"', b'"path":"../a"'),
        lambda plan: plan.replace(b'"path":"a"', b'"path":"/a"'),
        lambda plan: plan.replace(b'"path":"a"', b'"path":".coldstream/journal"'),
        lambda plan: plan.replace(b'"name":"org/model"', b'"name":"../x"'),
        lambda plan: plan.replace(b'"name":"org/model"', b'"name":7'),
        lambda plan: plan.replace(b'"version":"sha256:1"', b'"version":".."'),
        lambda plan: plan.replace(b'"files":[', b'"files":[7,'),
        lambda plan: plan.replace(b'"xxh3_128":"', b'"xxh3_128":"zz'),
        lambda plan: plan.replace(b'"xxh3_128":"', b'"xxh3_128":"00'),
    ],
)
def test_a_plan_that_cannot_be_trusted_starts_over(cache: Cache, change: Callable[[bytes], bytes]) -> None:
    model = Model({"a": [5, 5, 5]})
    folder = model.fill(cache)
    path = folder / ".coldstream/plan.json"
    changed = change(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    assert parse_plan(changed) is None
    assert cache.latest(URI) is None
    (entry,) = cache.entries()
    assert not entry.complete
    with pytest.raises(DiskError, match="no plan"):
        CopyWriter.open(folder)
    with model.open(cache) as copy:
        assert model.check(copy) == 0
        assert not (folder / "a").exists()


def test_plans_are_read_within_bounds(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    model.fill(cache)
    monkeypatch.setattr("coldstream.cache.cached_files.PLAN_BYTES_MAX", 100)
    assert cache.latest(URI) is None


def test_a_plan_comes_back_as_it_was() -> None:
    for hashed in (True, False):
        plan = CopyPlan(uri=URI, name="org/model", version="x", files=tuple(Model(hashed=hashed).files))
        assert parse_plan(plan.serialize()) == plan


def test_another_plan_under_the_same_version_starts_over(cache: Cache) -> None:
    Model().fill(cache)
    other = Model(seed=1)
    with other.open(cache) as copy:
        assert other.check(copy) == 0
    assert len(cache.entries()) == 1
    with Model(hashed=False).open(cache) as copy:
        assert not copy.complete
        with pytest.raises(DiskError, match="different list of files"):
            other.open(cache)
    cache.prune(names=["none"])
    assert {path.name for path in cache.root.iterdir()} == {"latest", "lock", "models"}


def test_names_that_climb_are_refused(cache: Cache) -> None:
    good = Model({"a": [5]}).files[0]
    for path in ["../a", "/a", "a/../../b", "", "a//b", "a\\b", "a\0", ".coldstream/journal", ".ColdStream/x", "."]:
        with pytest.raises(IntegrityError):
            cache.open(uri=URI, name="org/model", version="1", files=[replace(good, path=path)])
        with Model({}).open(cache) as copy, pytest.raises(IntegrityError):
            copy.put(path, b"x")
    for name in ["../x", "a/../b", "/x", "", ".hidden", "a b"]:
        with pytest.raises(UsageError):
            cache.open(uri=URI, name=name, version="1", files=[good])
    for version in ["", "..", ".x", "a/b", "x" * 201, "a b"]:
        with pytest.raises(UsageError):
            cache.open(uri=URI, name="org/model", version=version, files=[good])
    for files in ([good, good], [good, replace(good, path="a/b")], [replace(good, size=6)], [replace(good, stops=())]):
        with pytest.raises(IntegrityError):
            cache.open(uri=URI, name="org/model", version="1", files=files)
    assert {path.parts[0] for path in map(Path, files_below(cache.root))} == {"latest", "lock", "models"}
    assert {entry.bytes_total for entry in cache.entries()} == {0}


def test_long_names_and_twins_have_folders_of_their_own(cache: Cache) -> None:
    model = Model()
    stem = "org/" + "x" * 230
    folders = {model.fill(cache, name=stem + end) for end in "ab"}
    assert len(folders) == 2
    # "a--b/c" and "a/b--c" share a folder, and so start over, but never mix.
    model.fill(cache, name="a--b/c")
    with model.open(cache, name="a/b--c") as copy:
        assert copy.name == "a/b--c"
        assert model.check(copy) == 0


# Latest


def test_latest_is_what_the_uri_had_last(cache: Cache) -> None:
    first, second = Model(), Model(seed=1)
    assert cache.latest(URI) is None
    first.fill(cache, version="1")
    with second.open(cache, version="2") as copy, begun(copy) as writer:
        second.write(writer, 0, 0)
        latest = cache.latest(URI)
        assert latest is not None
        with latest:
            assert (latest.version, latest.name, latest.uri) == ("1", "org/model", URI)
            assert latest.files == tuple(first.files)
            first.check(latest)
    second.fill(cache, version="2")
    with latest_of(cache) as latest:
        assert latest.version == "2"
    # The bucket went back.
    first.open(cache, version="1").close()
    with latest_of(cache) as latest:
        assert latest.version == "1"
    assert cache.latest("s3://models/other") is None


def test_two_uris_share_a_copy(cache: Cache) -> None:
    model = Model()
    model.fill(cache)
    with model.open(cache, uri="https://cdn/org/model") as copy:
        assert copy.complete
    for uri in (URI, "https://cdn/org/model"):
        with latest_of(cache, uri) as latest:
            assert latest.uri == uri
    assert entry_of(cache, "org/model").uri == "https://cdn/org/model"


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format":1,"uri":"x","name":"../..","version":"x"}', b"\xff"])
def test_a_damaged_note_of_the_latest_counts_as_none(cache: Cache, data: bytes) -> None:
    Model().fill(cache)
    (note,) = (cache.root / "latest").iterdir()
    assert note.name == hashlib.sha256(URI.encode()).hexdigest() + ".json"
    note.write_bytes(data)
    assert cache.latest(URI) is None
    cache.prune(names=["nothing"])
    assert not note.exists()


# Room


def test_the_least_recently_used_goes_first_and_none_in_use(tmp_path: Path) -> None:
    unbounded = Cache(tmp_path / "cache", bytes_max=HUGE)
    sizes = {"w": [100_000] * 3}
    for number in range(4):
        folder = Model(sizes, seed=number).fill(unbounded, name=f"m/{number}")
        os.utime(folder / ".coldstream/used", (1000 + number, 1000 + number))
    assert [entry.name for entry in unbounded.entries()] == ["m/0", "m/1", "m/2", "m/3"]
    held = Model(sizes, seed=0).open(unbounded, name="m/0")
    os.utime(held.folder / ".coldstream/used", (1000, 1000))
    each = entry_of(unbounded, "m/1").bytes
    cache = Cache(tmp_path / "cache", bytes_max=each * 3 + 1)
    Model(sizes, seed=9).fill(cache, name="m/9")
    assert [entry.name for entry in cache.entries()] == ["m/0", "m/3", "m/9"]
    assert sum(entry.bytes for entry in cache.entries()) <= each * 3 + 1
    held.close()
    Model(sizes, seed=10).fill(cache, name="m/10")
    assert {entry.name for entry in cache.entries()} == {"m/3", "m/9", "m/10"}
    assert {path.name for path in cache.root.iterdir()} == {"latest", "lock", "models"}


def test_a_model_that_cannot_fit_is_refused_before_a_byte(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", bytes_max=100_000)
    Model({"w": [50_000]}).fill(cache, name="m/small")
    with Model({"w": [100_001]}).open(cache, name="m/large") as copy:
        with pytest.raises(DiskError, match=r"100 kB and the cache may hold 100 kB") as caught:
            copy.writer()
        assert "COLDSTREAM_CACHE_LIMIT" in (caught.value.hint or "")
        assert not files_below(copy.folder / ".coldstream/partial")
    with (
        Model({"w": [50_000]}).open(cache, name="m/small"),
        Model({"w": [60_000]}).open(cache, name="m/other") as copy,
        pytest.raises(DiskError, match="in use take most"),
    ):
        copy.writer()
    # Nothing was evicted in vain.
    assert entry_of(cache, "m/small").complete


def test_a_copy_being_written_counts_as_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", bytes_max=1_000_000)
    with (
        Model({"w": [300_000] * 2}).open(cache, name="m/1") as one,
        begun(one) as writer,
        Model({"w": [250_000] * 2}).open(cache, name="m/2") as two,
    ):
        assert entry_of(cache, "m/1").bytes_reserved >= 600_000
        with pytest.raises(DiskError, match="in use"):
            two.writer()
        writer.close()
        one.close()
        with begun(two):
            assert entry_of(cache, "m/2").writing


def test_room_is_asked_for_again_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "ROOM_BYTES", 10)
    free = 1_000_000
    monkeypatch.setattr(room_module, "size_and_free", lambda root: (1 << 30, free))
    model = Model({"w": [60_000] * 10})
    cache = Cache(tmp_path / "cache", bytes_max=HUGE)
    with model.open(cache) as copy:
        writer = begun(copy)
        model.write(writer, 0, 0)
        free = 0
        with pytest.raises(DiskError, match="and the disk has 0 B free"):
            model.write(writer, 0, 1)
        assert writer.closed
        assert model.check(copy) == 1


def test_by_default_half_of_the_disk_and_a_tenth_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    monkeypatch.setattr(room_module, "size_and_free", lambda root: (1000, 600))
    assert cache.limit_bytes(0) == 500
    assert cache.limit_bytes(100) == 500
    monkeypatch.setattr(room_module, "size_and_free", lambda root: (1000, 50))
    assert cache.limit_bytes(200) == 150
    assert cache.limit_bytes(0) == 0
    with (
        Model({"w": [400]}).open(cache) as copy,
        pytest.raises(DiskError, match="50 B free, 100 B for others") as caught,
    ):
        copy.writer()
    assert "COLDSTREAM_CACHE_LIMIT" in (caught.value.hint or "")
    with Model({"w": [501]}).open(cache) as copy, pytest.raises(DiskError, match="may hold 500 B"):
        copy.writer()


def test_of_a_large_disk_no_more_than_10_gb_are_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    monkeypatch.setattr(room_module, "size_and_free", lambda root: (2 * 10**12, 15 * 10**9))
    assert cache.limit_bytes(0) == 5 * 10**9


def test_leftovers_of_killed_evictions_are_deleted(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    folder = model.fill(cache)
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    assert [entry.folder for entry in cache.prune()] == [folder]
    assert not folder.parent.exists()
    assert cache.entries() == []
    monkeypatch.undo()
    assert any(path.name.startswith(".trash-") for path in cache.root.iterdir())
    model.fill(cache, name="m/2")
    assert not any(path.name.startswith(".trash-") for path in cache.root.iterdir())


def test_prune_chooses(cache: Cache) -> None:
    now = time.time()
    for number in range(4):
        folder = Model({"w": [100_000]}, seed=number).fill(cache, name=f"m/{number % 3}", version=str(number))
        os.utime(folder / ".coldstream/used", (now, now - 1000 * (4 - number)))
    each = cache.entries()[0].bytes

    def would(**options: Any) -> list[str]:
        return [entry.version for entry in cache.prune(dry_run=True, **options)]

    assert would() == ["0", "1", "2", "3"]
    assert would(keep_bytes=2 * each) == ["0", "1"]
    assert would(keep_bytes=9 * each) == []
    assert would(names=["m/0"]) == ["0", "3"]
    assert would(names=["m/0"], keep_bytes=3 * each) == ["0"]
    assert would(older_seconds=2500) == ["0", "1"]
    assert would(older_seconds=0) == ["0", "1", "2", "3"]
    with Model({"w": [100_000]}).open(cache, name="m/0", version="0"):
        assert would() == ["1", "2", "3"]
        cache.prune()
    (left,) = cache.entries()
    assert left.name == "m/0"
    assert left.complete
    assert not left.in_use
    assert not (cache.root / "models/m--1").exists()


def test_a_foreign_folder_among_the_models_is_listed_and_pruned(cache: Cache) -> None:
    Model({}).open(cache).close()
    (cache.root / "models/some--thing/v1").mkdir(parents=True)
    entry = entry_of(cache, "some/thing")
    assert (entry.uri, entry.complete, entry.in_use) == ("", False, False)
    cache.prune()
    assert cache.entries() == []


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "none")
    assert cache.entries() == []
    assert cache.prune() == []
    assert cache.latest(URI) is None
    assert not (tmp_path / "none").exists()


# Permissions


def test_everything_is_private(cache: Cache) -> None:
    before = os.umask(0)
    try:
        folder = Model().fill(cache)
        with Model().open(cache) as copy:
            copy.put("x/config.json", b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    for path in cache.root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert folder.is_dir()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o2775, 0o2777, 0o1777])
def test_in_a_volume_that_is_shared_each_user_has_a_folder(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emptyDir of Kubernetes is root's, with mode 0777, or 2777 and 2775 where fsGroup is set."""
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(mode)
    cache = Cache(volume)
    assert cache.root == volume / f"coldstream-{os.geteuid()}"
    before = os.umask(0)
    try:
        with Model().open(cache) as copy:
            assert copy.folder.is_relative_to(cache.root)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.root.stat().st_mode) & ~stat.S_ISGID == 0o700
    assert Cache(cache.root).root == cache.root, "it is private, so there is no other one in it"
    assert stat.S_IMODE(volume.stat().st_mode) == mode
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert Cache(volume).root == volume / f"coldstream-{owner + 1}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_that_another_user_planted_in_a_shared_volume_is_refused(tmp_path: Path) -> None:
    volume, mine = tmp_path / "volume", tmp_path / "mine"
    for folder, mode in ((volume, 0o777), (mine, 0o700)):
        folder.mkdir()
        folder.chmod(mode)
    cache = Cache(volume)
    cache.root.symlink_to(mine)
    os.lchown(cache.root, 12345, 12345)
    with pytest.raises(DiskError, match="is a link created by user 12345"):
        Model().open(cache)
    assert not list(mine.iterdir())
    cache.root.unlink()
    cache.root.mkdir()
    os.chown(cache.root, 12345, 12345)
    with pytest.raises(DiskError, match="belongs to user 12345"):
        Model().open(cache)


@pytest.mark.parametrize("mask", [0, 0o277, 0o777])
def test_modes_are_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        make_folders(tmp_path / "a/b")
        os.close(open_private(tmp_path / "a/b/file", os.O_WRONLY | os.O_CREAT))
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/file")] == [
        0o700,
        0o700,
        0o600,
    ]


def test_a_user_without_a_home_has_a_cache_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and an entry in passwd
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o1777)
    assert configured(None, None).root == tmp_path / f"coldstream-{os.geteuid()}"


def test_without_temporary_files_there_is_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only root without an emptyDir at /tmp."""
    # Sockets need a short path, as /dev/shm is.
    memory = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(disk_module, "SHARED_MEMORY", memory)
    memory.chmod(0o1777)
    folder = SocketFolder()
    try:
        assert Path(folder.path).parent == memory
        assert temporary_root() == memory / f"coldstream-{os.geteuid()}"
    finally:
        folder.close()
        shutil.rmtree(memory)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_root_that_others_can_write_is_refused(cache: Cache, mode: int) -> None:
    cache.root.mkdir()
    cache.root.chmod(mode)
    refused: Sequence[Callable[[], object]] = (
        lambda: Model().open(cache),
        lambda: cache.latest(URI),
        cache.entries,
        cache.prune,
        lambda: CopyWriter.open(cache.root / "models/a/b"),
    )
    for act in refused:
        with pytest.raises(DiskError, match="is writable by other users"):
            act()


def test_a_root_of_another_user_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.root.mkdir(mode=0o755)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(DiskError, match=f"belongs to user {owner}, not to user {owner + 1}"):
        Model().open(cache)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(DiskError):
            Model().open(Cache(root))
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(DiskError):
        Model().open(Cache(tmp_path / "nowhere/below"))


def test_links_are_not_followed(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"untouched")
    model = Model({"a": [5]})
    with model.open(cache) as copy:
        journal_of(copy).unlink()
        journal_of(copy).symlink_to(tmp_path / "secret")
        with pytest.raises(DiskError):
            copy.writer()
    assert (tmp_path / "secret").read_bytes() == b"untouched"


# Failing disks


def nothing() -> None:
    """No fault."""


class Faults:
    """Counts the operating system's calls that change a disk, and does something at the Nth.

    Syncs are counted and left out: they matter to a machine that loses power, not to a process that is killed.
    """

    NAMES = ("open", "mkdir", "pwrite", "write", "fsync", "fdatasync", "ftruncate", "replace", "rename", "utime")

    def __init__(self, at: int = 0, act: Callable[[], None] = nothing) -> None:
        self.at, self.act, self.count = at, act, 0
        self.real = {name: getattr(os, name) for name in self.NAMES if hasattr(os, name)}

    def __enter__(self) -> Faults:
        for name, function in self.real.items():
            setattr(os, name, self._counted(name, function))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name, function in self.real.items():
            setattr(os, name, function)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                if name in {"write", "pwrite"}:
                    # Half of it arrives.
                    half = memoryview(args[1])[: len(args[1]) // 2]
                    function(args[0], half, *args[2:])
                self.act()
            return None if name in {"fsync", "fdatasync"} else function(*args, **options)

        return call


# Small, for it is run once for every call that it makes.
SMALL = {"a.safetensors": [40, 3], "sub/b.safetensors": [7] * 3, "empty": []}


def scenario(model: Model, cache: Cache) -> None:
    """What a load's writer does: write, forget, write again, put."""
    with model.open(cache) as copy:
        copy.put("config.json", b'{"a": 1}')
        writer = copy.writer()
        if writer is not None:
            with writer:
                order = model.chunks()
                random.Random(5).shuffle(order)
                for done, (file, chunk) in enumerate(order):
                    model.write(writer, file, chunk)
                    if done in {1, 3}:
                        writer.forget(file, chunk)
                        model.write(writer, file, chunk)


def recover(model: Model, cache: Cache) -> None:
    """Whatever happened before: what is claimed is right, and the rest can be written."""
    scratch = {TEMPORARY_PREFIX}
    with model.open(cache) as copy:
        model.check(copy)
        assert (copy.folder / "config.json").read_bytes() if (copy.folder / "config.json").exists() else True
        writer = copy.writer()
        if writer is not None:
            with writer:
                model.check(copy)
                model.write_all(writer)
        assert copy.complete
        model.check(copy)
        extra = {path for path in files_below(copy.folder / ".coldstream") if not path.startswith(tuple(scratch))}
        assert extra == {"plan.json", "journal", "lock", "writer.lock", "used"}
    latest = cache.latest(URI)
    assert latest is not None
    latest.close()
    assert [entry.in_use for entry in cache.entries()] == [False]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_call_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(writer_module, "SYNC_BYTES", 60)
    model = Model(SMALL, hashed=number == errno.EIO)

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    for at in range(1, 1000):
        cache = Cache(tmp_path / str(at), bytes_max=HUGE)
        before = open_descriptors()
        failed = False
        with Faults(at, fail) as faults:
            try:
                scenario(model, cache)
            except DiskError as exc:
                failed = True
                assert os.strerror(number) in exc.message
                assert ("free some space" in (exc.hint or "")) == (number == errno.ENOSPC)
        assert open_descriptors() == before
        with Faults():
            recover(model, cache)
        if faults.count < at:
            break
        assert failed
    assert 50 < at < 999


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
from tests.unit.cache.test_cache import HUGE, Model, begun
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
        subprocess.run(["umount", str(folder)], check=True)


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
        with pytest.raises(DiskError):
            copy.put("config.json", bytes(1 << 20))
        assert "config.json" not in files_below(copy.folder)
        assert not [path for path in files_below(copy.folder) if TEMPORARY_PREFIX in path]
        (tiny_disk / "other").unlink()
        with begun(copy) as writer:
            model.write_all(writer)
        assert model.check(copy) == 15


def test_a_read_only_disk_is_said(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(DiskError, match="Read-only") as caught:
        Model().open(cache)
    assert "COLDSTREAM_CACHE_DIR" in (caught.value.hint or "")


def test_a_file_system_without_locks_is_said(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(disk_module.fcntl, "flock", none)
    before = open_descriptors()
    with pytest.raises(DiskError, match="No locks") as caught:
        Model().open(cache)
    assert "no file locks" in (caught.value.hint or "")
    assert open_descriptors() == before


def test_a_stopped_holder_of_the_lock_does_not_stop_loads(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    Model().fill(cache)
    monkeypatch.setattr(disk_module, "ROOT_LOCK_SECONDS", 0.05)
    with disk_module.root_locked(cache.root), pytest.raises(DiskError, match="another process has held") as caught:
        Model().open(cache)
    assert caught.value.retryable


# Killed and concurrent processes


def run_python(code: str, *arguments: object) -> str:
    with start_python(code, *arguments) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_at_every_call(root: Path) -> None:
    """Runs the scenario in forked children, each killed one call later than the one before; prints how many."""
    model = Model(SMALL, hashed=False)
    for at in range(1, 1000):
        child = os.fork()
        if not child:
            with Faults(at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                scenario(model, Cache(root / str(at), bytes_max=HUGE))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        with Faults():
            recover(model, Cache(root / str(at), bytes_max=HUGE))
        shutil.rmtree(root / str(at))
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
    print(at)


def test_killed_at_any_call_the_next_open_is_right(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tests.unit.cache.test_cache import kill_at_every_call as f"
    points = int(run_python(f"{code}; f(Path(sys.argv[1]))", tmp_path))
    assert 50 < points < 999


ENDLESS = """
import random, sys
from pathlib import Path
from tests.unit.cache.test_cache import BIG, HUGE, Model, begun
from coldstream.cache.cache import Cache
model = Model(BIG)
order = model.chunks()
random.Random(int(sys.argv[2])).shuffle(order)
with model.open(Cache(Path(sys.argv[1]), bytes_max=HUGE)) as copy:
    while writer := copy.writer():
        with writer:
            for file, chunk in order:
                print(file, chunk, flush=True)
                model.write(writer, file, chunk)
"""
BIG = {f"{number}.safetensors": [70_000] * 20 for number in range(5)}


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_random_the_next_writer_goes_on(cache: Cache, seed: int) -> None:
    model = Model(BIG)
    rng = random.Random(seed)
    total = len(model.chunks())
    least = 0
    for _ in range(3):
        with start_python(ENDLESS, cache.root, rng.randrange(1000)) as process:
            assert process.stdout is not None
            lines = 0
            for _line in process.stdout:
                lines += 1
                if lines >= rng.randrange(5, total // 2):
                    break
            process.kill()
            rest = process.stdout.read().count("\n")
        with model.open(cache) as copy:
            there = model.check(copy)
            # Each line is printed before its chunk is written: all but the last are there.
            assert there >= min(least, total)
            assert there >= min(lines + rest - 1, total)
            least = there
    recover(model, cache)


HOLDER = """
import sys
from pathlib import Path
from tests.unit.cache.test_cache import HUGE, Model, begun
from coldstream.cache.cache import Cache
from coldstream.cache.copy_writer import CopyWriter
model = Model()
cache = Cache(Path(sys.argv[1]), bytes_max=HUGE)
copy = model.open(cache)
held = copy.writer() if sys.argv[2] == "writer" else copy
if sys.argv[2] == "writer":
    copy.close()
    model.write(held, 0, 0)
print("ready", flush=True)
sys.stdin.read()
held.close()
"""


@pytest.mark.parametrize("what", ["copy", "writer"])
def test_another_process_holds_a_copy(cache: Cache, what: str) -> None:
    model = Model()
    with start_python(HOLDER, cache.root, what) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        (entry,) = cache.entries()
        assert entry.in_use
        assert entry.writing == (what == "writer")
        assert cache.prune() == []
        with model.open(cache) as copy:
            assert model.check(copy) == int(what == "writer")
            second = copy.writer()
            assert (second is None) == (what == "writer")
            if second:
                second.close()
        with pytest.raises(DiskError, match="another process"):
            Model(seed=1).open(cache)
        process.stdin.close()
        assert process.wait(60) == 0
    (entry,) = cache.entries()
    assert not entry.in_use
    with model.open(cache) as copy, begun(copy) as writer:
        assert writer.have(0, 0) == (what == "writer")
    assert len(cache.prune()) == 1


def test_a_killed_holder_holds_nothing(cache: Cache) -> None:
    with start_python(HOLDER, cache.root, "writer") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    (entry,) = cache.entries()
    assert not entry.in_use
    assert not entry.writing


RACER = """
import random, sys
from pathlib import Path
from coldstream.cache.cache import Cache
from coldstream.errors import DiskError
from tests.unit.cache.test_cache import Model
rng = random.Random(int(sys.argv[2]))
cache = Cache(Path(sys.argv[1]), bytes_max=1_200_000)
for _ in range(60):
    number = rng.randrange(4)
    model = Model({"w": [100_000] * 4, "x/y": [10, 10]}, seed=number)
    with model.open(cache, name=f"m/{number}", uri=f"s3://b/m/{number}") as copy:
        model.check(copy, moving=True)
        try:
            writer = copy.writer()
            if writer:
                with writer:
                    for file, chunk in rng.sample(model.chunks(), rng.randrange(7)):
                        model.write(writer, file, chunk)
        except DiskError as exc:
            assert "in use" in exc.message, exc.message
        found = cache.latest(f"s3://b/m/{number}")
        if found:
            with found:
                assert found.complete
    if rng.random() < 0.2:
        cache.prune(keep_bytes=500_000)
print("done")
"""


def test_many_processes_at_once(cache: Cache) -> None:
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(start_python(RACER, cache.root, seed)) for seed in range(3)]
        for racer in racers:
            assert racer.communicate(timeout=120)[0] == "done\n"
            assert racer.returncode == 0
    assert not any(entry.in_use for entry in cache.entries())


# Settings and the command


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configured(None, None).root == tmp_path / ".cache/coldstream"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert configured(None, None).root == tmp_path / ".cache/coldstream"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert configured(None, None).root == tmp_path / "xdg/coldstream"
    chosen = configured("~/models", "10GB")
    assert (chosen.root, chosen.bytes_max) == (tmp_path / "models", 10**10)
    with pytest.raises(ConfigError, match="COLDSTREAM_CACHE_LIMIT"):
        configured(None, "much")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    """The cache that the command finds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return configured(None, "20GB")


def run(*arguments: str, code: int = 0) -> str:
    """Runs `coldstream cache …` and returns its stdout."""
    # Without standalone mode a verb's exit code is its return value, as `coldstream.cli.main` has it.
    result = CliRunner().invoke(command, arguments, obj=State(), standalone_mode=False)
    if isinstance(result.exception, ColdstreamError):
        assert result.exception.exit_code == code
        raise result.exception
    assert result.exception is None, result.exception
    assert (result.return_value or 0) == code
    return result.stdout


def document(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code))


def test_cache_list(home: Cache) -> None:
    """coldstream cache list"""
    assert "no models in" in run("list")
    assert not home.root.exists()
    model = Model({"w": [100_000] * 4})
    folder = model.fill(home, name="org/old", version="sha256:" + "0e9e39f" * 9)
    os.utime(folder / ".coldstream/used", (1000, 1000))
    with model.open(home, name="org/new", version="v2") as copy, begun(copy) as writer:
        model.write(writer, 0, 0)
        lines = run("list").splitlines()
        assert lines[0].split() == ["MODEL", "VERSION", "SIZE", "STATE", "LAST", "USED"]
        assert lines[1].split()[:2] == ["org/new", "v2"]
        assert "writing 2" in lines[1]
        assert lines[1].endswith("just now")
        assert lines[2].split()[:2] == ["org/old", "0e9e39f0e9e3"]
        assert "complete" in lines[2]
        assert "of at most" in lines[3]
        found = document("list")
        assert [entry["name"] for entry in found["copies"]] == ["org/new", "org/old"]
        assert found["copies"][0] | {"bytes": 0, "used": ""} == {
            "name": "org/new",
            "version": "v2",
            "uri": URI,
            "folder": str(copy.folder),
            "bytes": 0,
            "bytes_total": 400_000,
            "complete": False,
            "in_use": True,
            "writing": True,
            "used": "",
        }
        assert found["bytes"] == sum(entry["bytes"] for entry in found["copies"])
        assert found["folder"] == str(home.root)
    assert "partial 2" in run("list")


def test_cache_path(home: Cache) -> None:
    """coldstream cache path NAME"""
    assert run("path") == f"{home.root}\n"
    model = Model()
    for version in ("1", "2"):
        folder = model.fill(home, version=version)
    os.utime(home.root / "models/org--model/1/.coldstream/used", (1000, 1000))
    assert run("path", "org/model") == f"{folder}\n"
    assert document("path", "org/model") == {"path": str(folder), "name": "org/model", "version": "2"}
    with pytest.raises(NotFoundError, match="is not in the cache"):
        run("path", "org/other", code=10)
    model.open(home, name="org/other").close()
    with pytest.raises(NotFoundError, match="is not complete in"):
        run("path", "org/other", code=10)


def test_cache_prune(home: Cache) -> None:
    """coldstream cache prune NAME | --keep SIZE | --older-than AGE | --all"""
    model = Model({"w": [100_000]})
    for number in range(4):
        folder = model.fill(home, name=f"m/{number}")
        os.utime(folder / ".coldstream/used", (1000 + number, 1000 + number))
    for wrong in ([], ["m/1", "--all"]):
        with pytest.raises(UsageError):
            run("prune", *wrong, code=2)
    with pytest.raises(NotFoundError):
        run("prune", "m/9", code=10)
    assert "would remove   4 models" in run("prune", "--all", "--dry-run")
    assert "removed   1 model," in run("prune", "m/1")
    with model.open(home, name="m/2"):
        assert document("prune", "m/2", code=3)["in_use"][0]["name"] == "m/2"
        assert [entry["name"] for entry in document("prune", "--older-than", "7d")["removed"]] == ["m/0", "m/3"]
    assert document("prune", "--keep", "1GB")["removed"] == []
    with pytest.raises(UsageError, match="refusing to delete 1 model"):
        run("prune", "--all", code=2)
    assert len(home.entries()) == 1
    assert "m/2" in run("prune", "--all", "--yes")
    assert home.entries() == []
