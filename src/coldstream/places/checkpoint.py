"""A checkpoint: a model's shards, with their headers read, in parallel and mostly by one request each, and checked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import xxhash

from coldstream.errors import IntegrityError, NotFoundError
from coldstream.machine.parallel import in_parallel
from coldstream.model.chunks import CHUNK_BYTES, tensor_stops
from coldstream.model.header import (
    LENGTH_BYTES,
    Header,
    Tensor,
    check_duplicate_tensors,
    header_stop,
    parse_header,
    rank_of,
)
from coldstream.model.job import DIGEST_BYTES, Segment
from coldstream.places.place import Link, Piece, Place, replaced
from coldstream.units import KIB, MIB

if TYPE_CHECKING:
    from coldstream.model.manifest import FileEntry

# Holds the header of nearly every shard: a thousand tensors take about 100 KiB.
SPECULATIVE_BYTES = 256 * KIB
# Other tools may cut larger chunks; beyond this size it does not pay to fetch one for its hash.
_FIRST_CHUNK_BYTES_MAX = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of weights: where it is, how it is cut, and what is in it.

    Attributes:
        segments: The objects that hold it, in order; one for most files. Either all or none are on this machine.
        head: The file's first `header.data_start` bytes.
        stops: One past the last byte of each chunk of the whole file.
        digests: XXH3-128 of each chunk, 16 bytes each, big-endian, joined; None where no manifest has them.
    """

    path: str
    size: int
    segments: tuple[Segment, ...]
    header: Header = field(repr=False)
    head: bytes = field(repr=False)
    stops: tuple[int, ...] = field(repr=False)
    digests: bytes | None = field(repr=False)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return self.segments[0].local is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's weights, as vLLM would load them.

    Attributes:
        uri: Canonical, without a secret.
        name: For people and for folders: it passes `checked_name`.
        version: In lower-case hexadecimal; distinguishes this content from any other under this URI.
        verified: Whether a manifest has the hash of every chunk.
        pinned: Whether `version` changes with the content. False when there is no manifest and the server sends no
            ETag: then an earlier copy may be out of date although its version is the same.
        shards: In the order of their paths; at least one.
        left_out: Weights beside them, and an index, that are not loaded: path to reason.
        cdn: The URL and the headers (secrets) of the CDN that also has its objects, as far as a manifest verifies them.
        answer_seconds: How far away the place is: how long reading a header took, the median of all, or the manifest,
            if that has the headers. 0 if that is not known.
    """

    uri: str
    name: str
    version: str
    verified: bool
    pinned: bool
    shards: tuple[Shard, ...]
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)
    cdn: Link | None = field(default=None, repr=False)
    answer_seconds: float = 0.0

    @property
    def tensors(self) -> list[Tensor]:
        """Of all shards."""
        return [tensor for shard in self.shards for tensor in shard.header.tensors]

    @property
    def whole_tensors(self) -> list[Tensor]:
        """Of all shards; none of a model with files for each rank, which hold parts of tensors."""
        return [] if any(rank_of(shard.path) for shard in self.shards) else self.tensors

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(shard.size for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardObject:
    """An object that holds a shard, or a segment of it; `size` is known when there are several."""

    key: str
    size: int | None
    # The version that the manifest requires.
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLocation:
    """A shard whose header is not read yet; `where` names it in messages, `entry` is its entry in the manifest."""

    path: str
    where: str
    entry: FileEntry | None = None
    objects: tuple[ShardObject, ...]


def read_checkpoint(
    place: Place,
    locations: Sequence[ShardLocation],
    *,
    uri: str,
    name: str,
    version: str | None,
    left_out: Mapping[str, str] | None = None,
    salt: str = "",
    answer_seconds: float = 0.0,
) -> Checkpoint:
    """Reads all headers of the `locations`, which are sorted by path.

    `version` is that of the manifest or the commit; None: it is derived from the shards, and from `salt` (which may be
    a secret) where nothing else distinguishes contents. `answer_seconds` is how long the manifest took.

    Raises:
        NotFoundError: There are no shards.
        IntegrityError: A header or a chunk is not what it should be, or two shards hold a tensor of one name.
        ConflictError: A file is of another version than the listed one.
    """
    if not locations:
        raise NotFoundError(
            f"{uri} has no safetensors weights",
            hint="only safetensors can be streamed: convert the model, or name the folder that holds them",
            target=uri,
        )
    read = in_parallel(partial(_read_shard, place), locations)
    shards = tuple(shard for shard, _, _ in read)
    check_duplicate_tensors({shard.path: shard.header for shard in shards}, where=uri)
    pinned = version is not None or all(stamp for _, stamp, _ in read)
    if version is None:
        # With the URI: two fine-tunes of one model have the same paths, sizes and headers.
        lines = [uri] + [f"{shard.path}\0{shard.size}\0{stamp}" for shard, stamp, _ in read]
        if not pinned:
            lines += [salt] + [hashlib.sha256(shard.head).hexdigest() for shard in shards]
        version = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Checkpoint(
        uri=uri,
        name=name,
        version=version,
        verified=all(shard.digests is not None for shard in shards),
        pinned=pinned,
        shards=shards,
        left_out=left_out or {},
        answer_seconds=sorted(seconds for _, _, seconds in read)[len(read) // 2] or answer_seconds,
    )


def _read_shard(place: Place, location: ShardLocation) -> tuple[Shard, str, float]:
    """The shard, its `Piece.stamp`, and how long its first bytes took: 0 if they are in the manifest."""
    began = time.monotonic()
    chunks = location.entry.chunks if location.entry else None
    first_stop = chunks.stops[0] if chunks and chunks.stops else 0
    stop = first_stop if LENGTH_BYTES <= first_stop <= _FIRST_CHUNK_BYTES_MAX else SPECULATIVE_BYTES
    start = _ShardStart(place, location)
    start.read(stop)
    seconds = time.monotonic() - began if start.pieces else 0.0
    data_start = header_stop(start.body, file_bytes=start.size, path=location.where)
    if data_start > len(start.body):
        # Up to the end of the chunk in which the header ends, so that all of it can be checked.
        ends = (end for end in chunks.stops if data_start <= end <= data_start + CHUNK_BYTES) if chunks else ()
        start.read(next(iter(ends), data_start))
        if len(start.body) < data_start:
            raise replaced(location.where)
    body = start.body
    digests = bytes.fromhex(chunks.xxh3_128) if chunks else None
    if chunks and digests is not None:
        _check(body, chunks.stops, digests, location.where)
    header = parse_header(body, file_bytes=start.size, path=location.where)
    shard = Shard(
        path=location.path,
        size=start.size,
        segments=start.segments(),
        header=header,
        head=body[: header.data_start],
        stops=chunks.stops if chunks else tuple(tensor_stops(header)),
        digests=digests,
    )
    return shard, start.pieces[0].stamp if start.pieces else "", seconds


def _header_copy(location: ShardLocation) -> bytes:
    """The first bytes of a shard out of the manifest, if they hold its header; empty if they have to be read.

    Where no ETag is known, a read tells it.
    """
    if location.entry is None or not all(stored.etag for stored in location.objects):
        return b""
    # Imported here: models without a manifest do not need its schema.
    from coldstream.model.manifest import unpack_header

    body = unpack_header(location.entry) or b""
    is_enough = body and header_stop(body, file_bytes=location.entry.size, path=location.where) <= len(body)
    return body if is_enough else b""


class _ShardStart:
    """The first bytes of a shard, out of the object or the objects that hold them."""

    def __init__(self, place: Place, location: ShardLocation) -> None:
        self.body = _header_copy(location)
        # The first answer of each object that was read.
        self.pieces: list[Piece] = []
        self._place, self._where, self._objects = place, location.where, location.objects

    @property
    def size(self) -> int:
        if self.pieces and len(self._objects) == 1:
            return self.pieces[0].size
        return sum(stored.size or 0 for stored in self._objects)

    def read(self, stop: int) -> None:
        """Reads on, up to `stop` or the end of an object that is shorter than it should be."""
        start = 0
        for number, stored in enumerate(self._objects):
            end = stop if len(self._objects) == 1 else start + (stored.size or 0)
            if start <= len(self.body) < min(end, stop):
                first = self.pieces[number] if number < len(self.pieces) else None
                etag = stored.etag or (first.etag if first else None)
                piece = self._place.read_piece(
                    stored.key, len(self.body) - start, min(end, stop) - start, etag=etag, where=self._where
                )
                if first is None:
                    self.pieces.append(piece)
                before = first or piece
                if stored.size not in {None, piece.size} or (piece.size, piece.stamp) != (before.size, before.stamp):
                    raise replaced(self._where)
                self.body += piece.body
            start = end

    def segments(self) -> tuple[Segment, ...]:
        segments = []
        stop = 0
        for number, stored in enumerate(self._objects):
            stop += stored.size if stored.size is not None else self.size
            piece = self.pieces[number] if number < len(self.pieces) else None
            location = piece.location if piece else self._place.locate(stored.key)
            etag = stored.etag or (piece.etag if piece else None)
            segments.append(
                Segment(stop=stop, etag=etag, url=location.url, headers=location.headers, local=location.local)
            )
        return tuple(segments)


def _check(body: bytes, stops: Sequence[int], digests: bytes, where: str) -> None:
    """Compares the chunks that lie in `body`, the first bytes of a file, with their digests."""
    start = 0
    for index, stop in enumerate(stops):
        if stop > len(body):
            break
        expected = digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        actual = xxhash.xxh3_128_digest(body[start:stop])
        if actual != expected:
            raise IntegrityError(
                f"{where}: [{start}, {stop}) has the XXH3-128 {actual.hex()}, the manifest says {expected.hex()}",
                hint="the file is damaged where it lies, or a proxy changed it; run: coldstream verify",
                target=where,
            )
        start = stop
