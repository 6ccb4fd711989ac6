"""Checkpoints: which reads the headers take, what is compared, and when the version changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coldstream.errors import ConflictError, HeaderError, IntegrityError, NotFoundError
from coldstream.model.header import parse_header
from coldstream.places.checkpoint import Checkpoint, ShardLocation, ShardObject, read_checkpoint
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Piece
from tests.models import safetensors_bytes

SHARD = safetensors_bytes({"a": 300_000, "b": 50_000})
OTHER = safetensors_bytes({"c": 100})


class CountingFolder(FolderSnapshot):
    """Records the ranges that are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ranges: list[tuple[str, int, int]] = []

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        self.ranges.append((key, start, stop))
        return super().read_piece(key, start, stop, etag=etag, where=where)


def location(*objects: tuple[str, int | None], path: str = "model.safetensors") -> ShardLocation:
    return ShardLocation(path=path, where=path, objects=tuple(ShardObject(key=key, size=size) for key, size in objects))


def read(place: FolderSnapshot, *locations: ShardLocation, uri: str = "file:///m") -> Checkpoint:
    return read_checkpoint(place, locations, uri=uri, name="m", version=None)


@pytest.fixture
def place(tmp_path: Path) -> CountingFolder:
    (tmp_path / "one").write_bytes(SHARD)
    (tmp_path / "two").write_bytes(OTHER)
    for number, (start, stop) in enumerate([(0, 5), (5, 60), (60, len(SHARD))]):
        (tmp_path / f"part{number}").write_bytes(SHARD[start:stop])
    return CountingFolder(tmp_path)


def test_a_header_takes_one_read(place: CountingFolder) -> None:
    checkpoint = read(place, location(("one", None)))
    (shard,) = checkpoint.shards
    header = parse_header(SHARD, file_bytes=len(SHARD), path="")
    assert (shard.size, shard.head, shard.header) == (len(SHARD), SHARD[: header.data_start], header)
    assert shard.is_local
    assert (checkpoint.bytes, checkpoint.verified, checkpoint.pinned) == (len(SHARD), False, True)
    assert len(place.ranges) == 1


def test_it_tells_how_far_away_the_place_is(place: CountingFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.06])
    monkeypatch.setattr("coldstream.places.checkpoint.time.monotonic", lambda: next(clock))
    assert read(place, location(("one", None))).answer_seconds == 0.06


def test_a_header_in_several_objects(place: CountingFolder) -> None:
    objects = (("part0", 5), ("part1", 55), ("part2", len(SHARD) - 60))
    (shard,) = read(place, location(*objects)).shards
    assert shard.header == read(place, location(("one", None))).shards[0].header
    assert [segment.stop for segment in shard.segments] == [5, 60, len(SHARD)]


def test_the_version_changes_with_the_content_and_the_uri(place: CountingFolder) -> None:
    first = read(place, location(("two", None)))
    assert read(place, location(("two", None))).version == first.version
    assert read(place, location(("two", None)), uri="file:///n").version != first.version
    os.utime(place.root / "two", ns=(1, 1))
    assert read(place, location(("two", None))).version != first.version


def test_damaged_checkpoints_are_refused(place: CountingFolder) -> None:
    with pytest.raises(NotFoundError, match="no safetensors weights"):
        read(place)
    with pytest.raises(ConflictError, match="was replaced"):
        read(place, location(("two", len(OTHER) + 1)))
    with pytest.raises(IntegrityError, match="both hold the tensor"):
        read(place, location(("two", None), path="x"), location(("two", None), path="y"))
    (place.root / "page").write_bytes(b"<html>not here</html>")
    with pytest.raises(HeaderError, match="not a safetensors file"):
        read(place, location(("page", None)))
