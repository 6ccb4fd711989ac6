"""Plans are read back as they were written, or not at all; a copy claims only what its journal and files agree on."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import xxhash

from coldstream.cache.cache import Cache
from coldstream.cache.copy_records import RECORD, CopyPlan, parse_plan
from coldstream.cache.copy_writer import CopyWriter
from coldstream.errors import DiskError
from tests.unit.cache.cached_models import (
    URI,
    Model,
    begun,
    files_below,
    journal_of,
)


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
    monkeypatch.setattr("coldstream.cache.copy_records.PLAN_BYTES_MAX", 100)
    assert cache.latest(URI) is None


def test_a_plan_comes_back_as_it_was() -> None:
    for hashed in (True, False):
        plan = CopyPlan(uri=URI, name="org/model", version="x", files=tuple(Model(hashed=hashed).files))
        assert parse_plan(plan.serialize()) == plan


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
