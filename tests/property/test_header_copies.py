"""A manifest's copies of headers: what was stored comes back, and whatever is wrong with one is refused in time."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import ColdstreamError, HeaderError, ManifestError
from coldstream.mirror.digest import StreamDigest
from coldstream.model.chunks import CHUNK_BYTES
from coldstream.model.header import parse_header
from coldstream.model.manifest import Chunks, FileEntry, StoredObject, pack_header, unpack_header
from coldstream.places.checkpoint import Shard, ShardLocation, ShardObject, read_checkpoint
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Location, Piece
from tests.models import safetensors_bytes

PATH = "model.safetensors"
sizes = st.dictionaries(st.text(max_size=20), st.integers(0, 300), min_size=1, max_size=30)


class FarPlace(FolderSnapshot):
    """A place whose ETags are those of the manifest; records what is read."""

    pins_by_etag = True

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))
        self.reads: list[str] = []

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        self.reads.append(key)
        raise NotImplementedError

    def locate(self, key: str) -> Location:
        return Location(url=f"https://bucket.example/{key}")


def entry_of(data: bytes, *, header: bytes | None = None, stops: tuple[int, ...] | None = None) -> FileEntry:
    digest = StreamDigest(PATH, len(data), stops=stops)
    digest.update(memoryview(data))
    digests = digest.finish()
    header = pack_header(data[: digests.chunks.stops[0]]) if header is None else header
    return FileEntry(
        path=PATH,
        size=len(data),
        sha256=digests.sha256,
        objects=(StoredObject(key=PATH, size=len(data), etag="e"),),
        chunks=msgspec.structs.replace(digests.chunks, header=header),
    )


def hostile(first_chunk: bytes, *, size: int | None = None, packed: bytes | None = None) -> FileEntry:
    """An entry whose hash is that of its copy, as only the writer of a manifest can make it."""
    size = len(first_chunk) + 1000 if size is None else size
    hashes = xxhash.xxh3_128_hexdigest(first_chunk) + "0" * 32
    return FileEntry(
        path=PATH,
        size=size,
        sha256="0" * 64,
        objects=(StoredObject(key=PATH, size=size, etag="e"),),
        chunks=Chunks(
            stops=(len(first_chunk), size),
            xxh3_128=hashes,
            header=zlib.compress(first_chunk) if packed is None else packed,
        ),
    )


def shard_of(entry: FileEntry, place: FarPlace, *, etag: str | None = "e") -> Shard:
    objects = (ShardObject(key=PATH, size=entry.size, etag=etag),)
    location = ShardLocation(path=PATH, where=PATH, entry=entry, objects=objects)
    checkpoint = read_checkpoint(place, [location], uri="s3://b/m", name="m", version="0", answer_seconds=0.07)
    assert checkpoint.answer_seconds == 0.07
    return checkpoint.shards[0]


def head_of(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@given(sizes)
def test_a_header_comes_from_the_manifest(tensors: dict[str, int]) -> None:
    data, place = safetensors_bytes(tensors), FarPlace()
    shard = shard_of(entry_of(data), place)
    assert shard.header == parse_header(data, file_bytes=len(data), path=PATH)
    assert shard.head == data[: shard.header.data_start]
    assert shard.size == len(data)
    assert [(s.stop, s.etag, s.url) for s in shard.segments] == [(len(data), "e", f"https://bucket.example/{PATH}")]
    assert place.reads == []


@given(sizes, st.binary(max_size=400), st.integers(0, 1 << 12))
def test_a_changed_copy_is_the_header_or_refused(tensors: dict[str, int], other: bytes, position: int) -> None:
    data = safetensors_bytes(tensors)
    packed = pack_header(data[: len(data) - sum(tensors.values())])
    cut = position % len(packed)
    for changed in (packed[:cut] + other + packed[cut:], packed[:cut] + other + packed[cut + len(other) :], other):
        entry = entry_of(data, header=changed)
        try:
            first_chunk = unpack_header(entry)
        except ManifestError as exc:
            assert PATH in exc.message  # most changes are refused, and none gives another header
        else:
            assert first_chunk == (data[: entry.chunks.stops[0]] if changed else None)


@given(st.integers(0, 200))
def test_a_truncated_copy_is_refused(cut: int) -> None:
    data = safetensors_bytes({"a": 10, "b": 20})
    packed = pack_header(data[:-30])
    with pytest.raises(ManifestError, match="copy of its header"):
        unpack_header(entry_of(data, header=packed[: 1 + cut % (len(packed) - 1)]))


def bombs() -> Iterator[FileEntry]:
    huge = zlib.compress(bytes(1 << 28), 9)
    yield hostile(bytes(100), packed=huge)
    # Its first chunk is announced as large as it is.
    chunks = Chunks(stops=(1 << 28,), xxh3_128="0" * 32, header=huge)
    yield FileEntry(path=PATH, size=1 << 28, sha256="0" * 64, objects=(), chunks=chunks)


def test_a_bomb_does_not_go_off() -> None:
    for entry in bombs():
        tracemalloc.start()
        with pytest.raises(ManifestError, match="copy of its header"):
            unpack_header(entry)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * CHUNK_BYTES


TENSOR = {"dtype": "U8", "shape": [500], "data_offsets": [0, 500]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": %s, "a": %s}' % ((json.dumps(TENSOR).encode(),) * 2), "duplicate key"),
        ({"a": TENSOR, "b": {**TENSOR, "data_offsets": [400, 900]}}, "overlaps"),
        ({"a": TENSOR, "b": {**TENSOR, "data_offsets": [501, 1001]}}, "gap"),
        ({"a": {**TENSOR, "shape": [1 << 40, 1 << 40], "data_offsets": [0, 1000]}}, "shape"),
        ({"a": TENSOR}, "end at byte"),
        (b"[" * 4000, "not valid JSON"),
    ],
)
def test_a_copy_is_checked_as_a_header_from_the_bucket_is(header: object, message: str) -> None:
    place = FarPlace()
    with pytest.raises(HeaderError, match=message):
        shard_of(hostile(head_of(header)), place)
    assert place.reads == []


def test_a_copy_without_all_of_the_header_is_not_used() -> None:
    data, place = safetensors_bytes({"a": 100}), FarPlace()
    with pytest.raises(NotImplementedError):
        shard_of(entry_of(data, stops=(20, len(data))), place)
    assert place.reads == [PATH]


def test_without_an_etag_or_a_copy_the_header_is_read() -> None:
    data = safetensors_bytes({"a": 100})
    for entry, etag in ((entry_of(data), None), (entry_of(data, header=b""), "e")):
        place = FarPlace()
        with pytest.raises((NotImplementedError, ColdstreamError)):
            shard_of(entry, place, etag=etag)
        assert place.reads == [PATH]


def test_of_a_file_in_segments_no_object_is_read() -> None:
    data, place = safetensors_bytes({"a": 100}), FarPlace()
    entry = entry_of(data)
    first = entry.chunks.stops[0]
    objects = (
        ShardObject(key="one", size=first, etag="e1"),
        ShardObject(key="two", size=len(data) - first, etag="e2"),
    )
    location = ShardLocation(path=PATH, where=PATH, entry=entry, objects=objects)
    (shard,) = read_checkpoint(place, [location], uri="s3://b/m", name="m", version="0").shards
    assert (shard.size, shard.head) == (len(data), data[:first])
    assert [(segment.stop, segment.etag) for segment in shard.segments] == [(first, "e1"), (len(data), "e2")]
    assert place.reads == []
