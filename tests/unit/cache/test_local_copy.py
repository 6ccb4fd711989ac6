"""What a load sees of a copy while another process writes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from coldstream.cache.cache import Cache
from coldstream.errors import IntegrityError, UsageError
from tests.unit.cache.cached_models import (
    URI,
    Model,
    begun,
    files_below,
)


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


def test_names_that_climb_are_refused(cache: Cache) -> None:
    good = Model({"a": [5]}).files[0]
    for path in ["../a", "/a", "a/../../b", "", "a//b", "a\\b", "a\0", ".coldstream/journal", ".ColdStream/x", "."]:
        with pytest.raises(IntegrityError):
            cache.open(uri=URI, name="org/model", version="1", files=[replace(good, path=path)])
        with Model({}).open(cache):
            pass
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
