"""The headers of the shards: one speculative read for each, in parallel, and everything checked that can be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from coldstream.errors import ConflictError, IntegrityError, NotFoundError
from coldstream.machine.parallel import in_parallel
from coldstream.model.chunks import CHUNK_BYTES, tensor_stops
from coldstream.model.header import LENGTH_BYTES, check_duplicate_tensors, header_stop, parse_header
from coldstream.model.job import Headers, Segment
from coldstream.places.origin import Checkpoint, Shard
from coldstream.units import KIB, MIB

if TYPE_CHECKING:
    from coldstream.model.manifest import FileEntry

# Holds the header of nearly every shard: a thousand tensors take about 100 KiB.
SPECULATIVE_BYTES = 256 * KIB
# Other tools may cut larger chunks; beyond this it does not pay to fetch one for its hash.
_FIRST_CHUNK_BYTES_MAX = 64 * MIB
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one read of an object brought.

    Attributes:
        body: From the wanted start on; shorter than wanted where the object ends.
        size: Of the whole object.
        etag: Of the answer; None for a local file or where the server names none.
        stamp: What tells this content from an older one of the same size: the ETag, or a file's time; "" for nothing.
        url: Where the rest is to be had, with `headers`; None for a local file.
        headers: To send along.
        local: The file, for a local one.
    """

    body: bytes = field(repr=False)
    size: int
    etag: str | None
    stamp: str
    url: str | None = field(default=None, repr=False)
    headers: Headers = field(default=(), repr=False)
    local: str | None = None


# Reads `[start, stop)` of an object, of the version with this ETag if it is not None; it may end before.
Read = Callable[[int, int, "str | None"], Piece]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An object that holds a shard, or a segment of it.

    Attributes:
        size: As listed, or None when nobody said; known when there are several.
        etag: The version that the manifest names, or None.
        read: How to read it.
        rest: Where all of it is to be had, for a segment behind the header: (url, headers, local).
    """

    size: int | None
    etag: str | None = None
    read: Read
    rest: Callable[[], tuple[str | None, Headers, str | None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A shard of which the header is still to be read.

    Attributes:
        path: Relative to the model.
        where: For messages; no secret.
        entry: What the manifest says of it, or None.
        parts: What holds it, in order.
    """

    path: str
    where: str
    entry: FileEntry | None = None
    parts: tuple[Part, ...]


def checkpoint_of(
    found: Sequence[Found],
    *,
    uri: str,
    name: str,
    version: str | None,
    left_out: Mapping[str, str] | None = None,
    salt: str = "",
) -> Checkpoint:
    """Reads all headers.

    Args:
        found: The shards, sorted by path.
        uri: As in `Checkpoint`.
        name: As in `Checkpoint`.
        version: Of the manifest or the commit; None: derived from what the shards are.
        left_out: As in `Checkpoint`.
        salt: What else tells one content from another where nothing better does; may be a secret.

    Raises:
        NotFoundError: There are no shards.
        IntegrityError: A header or a chunk is not what it should be, or two shards hold a tensor of one name.
        ConflictError: A file is not the one that was listed.
    """
    if not found:
        raise NotFoundError(
            f"{uri} has no safetensors weights",
            hint="only safetensors can be streamed: convert the model, or name the folder that holds them",
            target=uri,
        )
    read = in_parallel(_read_shard, found)
    shards = tuple(shard for shard, _ in read)
    check_duplicate_tensors({shard.path: shard.header for shard in shards}, where=uri)
    pinned = version is not None or all(stamp for _, stamp in read)
    if version is None:
        # The place counts: two fine-tunes of one model have the same paths, sizes and headers.
        lines = [uri] + [f"{shard.path}\0{shard.size}\0{stamp}" for shard, stamp in read]
        if not pinned:
            lines += [salt] + [hashlib.sha256(shard.head).hexdigest() for shard in shards]
        version = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    verified = all(shard.digests is not None for shard in shards)
    return Checkpoint(
        uri=uri,
        name=name,
        version=version,
        verified=verified,
        pinned=pinned,
        shards=shards,
        left_out=left_out or {},
    )


def replaced(where: str) -> ConflictError:
    """The error for an object that is not the one that was seen or listed a moment ago."""
    return ConflictError(
        f"{where} was replaced while it was being read, or since its upload",
        hint="somebody wrote to the model; run the same command again, or look with: coldstream verify",
        operation="GET",
        target=where,
    )


def _read_shard(found: Found) -> tuple[Shard, str]:
    """The shard, and its `Piece.stamp`."""
    chunks = found.entry.chunks if found.entry else None
    first_stop = chunks.stops[0] if chunks and chunks.stops else 0
    stop = first_stop if LENGTH_BYTES <= first_stop <= _FIRST_CHUNK_BYTES_MAX else SPECULATIVE_BYTES
    start = _Start(found)
    start.read(stop)
    data_start = header_stop(start.body, file_bytes=start.size, path=found.where)
    if data_start > len(start.body):
        # Up to the end of the chunk in which the header ends, so that all of it can be checked.
        ends = (end for end in chunks.stops if data_start <= end <= data_start + CHUNK_BYTES) if chunks else ()
        start.read(next(iter(ends), data_start))
        if len(start.body) < data_start:
            raise replaced(found.where)
    body = start.body
    digests = bytes.fromhex(chunks.xxh3_128) if chunks else None
    if chunks and digests is not None:
        _check(body, chunks.stops, digests, found.where)
    header = parse_header(body, file_bytes=start.size, path=found.where)
    shard = Shard(
        path=found.path,
        size=start.size,
        segments=start.segments(),
        header=header,
        head=body[: header.data_start],
        stops=chunks.stops if chunks else tuple(tensor_stops(header)),
        digests=digests,
    )
    return shard, start.pieces[0].stamp


class _Start:
    """The first bytes of a shard, out of the object or the objects that hold them.

    Attributes:
        body: What has been read.
        pieces: The first answer of each object that was read.
    """

    def __init__(self, found: Found) -> None:
        self.body = b""
        self.pieces: list[Piece] = []
        self._found = found

    @property
    def size(self) -> int:
        """Of the shard, in bytes."""
        if len(self._found.parts) == 1:
            return self.pieces[0].size
        return sum(part.size or 0 for part in self._found.parts)

    def read(self, stop: int) -> None:
        """Reads on, up to `stop` or to where an object is shorter than it should be."""
        start = 0
        parts = self._found.parts
        for number, part in enumerate(parts):
            end = stop if len(parts) == 1 else start + (part.size or 0)
            if start <= len(self.body) < min(end, stop):
                self._read_part(number, len(self.body) - start, min(end, stop) - start)
            start = end

    def segments(self) -> tuple[Segment, ...]:
        """Where the whole shard is."""
        segments = []
        stop = 0
        for number, part in enumerate(self._found.parts):
            stop += part.size if part.size is not None else self.size
            if number < len(self.pieces):
                piece = self.pieces[number]
                etag, url, headers, local = part.etag or piece.etag, piece.url, piece.headers, piece.local
            else:
                assert part.rest is not None
                etag, (url, headers, local) = part.etag, part.rest()
            segments.append(Segment(stop=stop, etag=etag, url=url, headers=headers, local=local))
        return tuple(segments)

    def _read_part(self, number: int, start: int, stop: int) -> None:
        part, where = self._found.parts[number], self._found.where
        first = self.pieces[number] if number < len(self.pieces) else None
        piece = part.read(start, stop, part.etag or (first.etag if first else None))
        if part.size is not None and piece.size != part.size:
            raise replaced(where)
        if first is None:
            self.pieces.append(piece)
        elif (piece.size, piece.stamp) != (first.size, first.stamp):
            raise replaced(where)
        self.body += piece.body


def _check(body: bytes, stops: Sequence[int], digests: bytes, where: str) -> None:
    """Compares the chunks that lie in `body`, the first bytes of a file, with their digests."""
    start = 0
    for index, stop in enumerate(stops):
        if stop > len(body):
            break
        expected = digests[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES]
        actual = xxhash.xxh3_128_digest(body[start:stop])
        if actual != expected:
            raise IntegrityError(
                f"{where}: [{start}, {stop}) has the XXH3-128 {actual.hex()}, the manifest says {expected.hex()}",
                hint="the file is damaged where it lies, or a proxy changed it; run: coldstream verify",
                target=where,
            )
        start = stop
