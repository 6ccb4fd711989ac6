"""Files as several objects: what an upload into segments leaves, with every cut that a manifest allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import msgspec
import xxhash

from coldstream.model.chunks import tensor_stops
from coldstream.model.header import parse_header
from coldstream.model.manifest import Chunks, FileEntry, Manifest, StoredObject, parse, serialize

Put = Callable[[str, bytes], str]  # stores an object under its key; its ETag


def in_segments(
    manifest: bytes,
    contents: Mapping[str, bytes],
    put: Put,
    *,
    every: int = 1,
    most: int = 1 << 30,
    chunk_bytes: int | None = None,
    root: str = "",
) -> bytes:
    """The manifest of the same model with its files in segments, which are stored.

    Args:
        manifest: Of the model in plain files.
        contents: Those.
        put: Where the segments go.
        every: How many chunks to a segment.
        most: How many segments at most; the last takes the rest.
        chunk_bytes: Cut the chunks of safetensors files anew, so small; None: as they are.
        root: What the keys begin with: "" for the model's own folder, "/somewhere/" for the store's.
    """
    record = parse(manifest, where="test")
    assert isinstance(record, Manifest)
    files = []
    for entry in record.files:
        data = contents[entry.path]
        chunks = _chunks(data, entry, chunk_bytes)
        edges = [*chunks.stops[every - 1 :: every]][: most - 1]
        if not edges or edges[-1] != len(data):
            edges.append(len(data))
        objects = []
        for number, (start, stop) in enumerate(pairwise((0, *edges))):
            key = f"{root}{entry.path}.d/{number:05d}"
            etag = put(key, data[start:stop])
            objects.append(StoredObject(key=key, size=stop - start, etag=etag))
        files.append(msgspec.structs.replace(entry, objects=tuple(objects), chunks=chunks))
    return serialize(msgspec.structs.replace(record, files=tuple(files)))


def _chunks(data: bytes, entry: FileEntry, chunk_bytes: int | None) -> Chunks:
    if chunk_bytes is None or not entry.path.endswith(".safetensors"):
        return entry.chunks
    header = parse_header(data, file_bytes=len(data), path=entry.path)
    stops = tensor_stops(header, chunk_bytes=chunk_bytes)
    hashes = "".join(xxhash.xxh3_128_hexdigest(data[start:stop]) for start, stop in pairwise((0, *stops)))
    return Chunks(stops=tuple(stops), xxh3_128=hashes)
