"""What makes room for a copy, and what stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from coldstream.cache import copy_writer as writer_module
from coldstream.cache import space as room_module
from coldstream.cache.cache import Cache
from coldstream.errors import DiskError
from tests.unit.cache.cached_models import (
    HUGE,
    Model,
    begun,
    entry_of,
    files_below,
)


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
    monkeypatch.setattr(room_module.disk, "size_and_free", lambda root: (1 << 30, free))
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
    monkeypatch.setattr(room_module.disk, "size_and_free", lambda root: (1000, 600))
    assert cache.limit_bytes(0) == 500
    assert cache.limit_bytes(100) == 500
    monkeypatch.setattr(room_module.disk, "size_and_free", lambda root: (1000, 50))
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
    monkeypatch.setattr(room_module.disk, "size_and_free", lambda root: (2 * 10**12, 15 * 10**9))
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


def test_a_foreign_folder_among_the_models_is_listed_and_pruned(cache: Cache) -> None:
    Model({}).open(cache).close()
    (cache.root / "models/some--thing/v1").mkdir(parents=True)
    entry = entry_of(cache, "some/thing")
    assert (entry.uri, entry.complete, entry.in_use) == ("", False, False)
    cache.prune()
    assert cache.entries() == []
