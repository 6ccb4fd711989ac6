"""What the engine loads, and under which limits. Pure.

A job goes from the process that holds the credentials to the streamer over a private socket: it holds links that open
the bucket, so it is never an argument, a file or a log line.
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

DIGEST_BYTES = 16
_UNKNOWN = bytes(DIGEST_BYTES)
_LENGTH_BYTES = 8

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One object that holds a file, or a run of its chunks. Exactly one of `url` and `local` is set."""

    stop: int  # one past its last byte in the file; it starts where the one before it stops
    # The version that every answer must be of, without quotes; a weak one keeps its `W/`. None when there is none to
    # hold on to.
    etag: str | None = None
    url: str | None = field(default=None, repr=False)  # where to GET it; a secret, as it may be signed
    headers: Headers = field(default=(), repr=False)  # to send along; secrets
    local: str | None = None  # the absolute path of the object, when it is a file on this machine
    cdn: str | None = field(default=None, repr=False)  # where a CDN has the same object, or None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """One file to load."""

    path: str  # relative to its model, for messages
    segments: tuple[Segment, ...]  # where its bytes are, in order; their edges are edges of chunks
    # A file on this machine that is a copy of it, or one under way; `have` is 1 for each chunk that it holds.
    copy: str | None = None
    have: bytes = field(default=b"", repr=False)
    stops: tuple[int, ...] = field(repr=False)  # one past the last byte of each chunk in the file, and so in memory
    # The same in the objects that hold the file, laid end to end; empty where chunks are stored as they are loaded. A
    # chunk that is stored in another form, such as compressed, has another length there.
    wire_stops: tuple[int, ...] = field(default=(), repr=False)
    # XXH3-128 of each chunk, 16 bytes each, big-endian; zeros where unknown, empty when all are.
    digests: bytes = field(default=b"", repr=False)
    # Runs `[first, stop)` of chunks that must lie in one piece of memory, in order.
    extents: tuple[tuple[int, int], ...] = field(repr=False)
    cdn_headers: Headers = field(default=(), repr=False)  # for the CDN only; secrets

    def span(self, index: int) -> tuple[int, int]:
        """The chunk's bytes in the file, and so in memory, as `[start, stop)`."""
        return (self.stops[index - 1] if index else 0), self.stops[index]

    def wire(self, index: int) -> tuple[int, int]:
        """The chunk's bytes in the object that holds it, as `[start, stop)`: the range of its request."""
        stops = self.wire_stops or self.stops
        segment = self.segment(index)
        # Segments end where chunks do, so the last chunk of the one before it tells where this object starts.
        before = stops[bisect_left(self.stops, self.segments[segment - 1].stop)] if segment else 0
        return (stops[index - 1] if index else 0) - before, stops[index] - before

    def digest(self, index: int) -> bytes:
        """The chunk's digest; empty when unknown."""
        digest = self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        return b"" if digest == _UNKNOWN else digest

    def segment(self, index: int) -> int:
        return bisect_right(self.segments, self.stops[index] - 1, key=lambda segment: segment.stop)

    @property
    def whole_path(self) -> str | None:
        """The file on this machine that has all of its chunks where they are in memory, or None."""
        if self.wire_stops:
            return None
        if self.copy is not None and all(self.have):
            return self.copy
        return self.segments[0].local if len(self.segments) == 1 else None

    def is_local(self, index: int) -> bool:
        if self.copy is not None and self.have[index] == 1:
            return True
        return self.segments[self.segment(index)].local is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSource:
    """A segment as a worker needs it: what to ask for, or which file to read."""

    path: str  # of the file that it belongs to, for messages
    start: int  # its first byte in that file
    segment: Segment  # where it is
    size: int  # of the object that holds it, in bytes
    copy: str | None = None  # as in `FileJob`
    cdn_headers: Headers = field(default=(), repr=False)  # as in `FileJob`


def sources(file: FileJob) -> list[SegmentSource]:
    """The segments of a file, for the workers."""
    starts = (0, *(segment.stop for segment in file.segments))
    return [
        SegmentSource(
            path=file.path,
            start=start,
            segment=segment,
            size=file.wire(bisect_left(file.stops, segment.stop))[1],
            copy=file.copy,
            cdn_headers=file.cdn_headers,
        )
        for start, segment in zip(starts, file.segments, strict=False)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a load may go about it."""

    memory_limit: int  # most bytes of the arena
    arena_bytes_max: int | None = None  # most address space for it, where that is limited
    consumers: int = 1  # how many will attach and see every tensor
    listen: str | None = None  # path of a socket where consumers of other processes attach, or None
    verify: bool = True  # whether chunks are compared with their digests
    in_order: bool = False  # whether extents become ready in the order of the files, or as they arrive
    give_up_seconds: float = 180.0  # a load of which nothing has moved for so long fails
    attach_seconds: float = 600.0  # how long after the first consumer the last one may attach
    answer_seconds: float = 0.0  # how long the place took to answer so far; 0 if that is not known
    connection_table: str | None = None  # the file of a `machine.connections.ConnectionTable`, or None
    shares_connections: bool = False  # whether to have fewer connections while other loads in it have some
    cache: str | None = None  # the folder of the local copy to fill, or None
    cache_bytes_max: int | None = None  # how large that cache may be, or None


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """A file as a consumer sees it: enough to find its tensors."""

    path: str  # relative to its model
    size: int
    head: bytes  # the file's first bytes, up to its data: the safetensors header and its length, already checked
    head_stops: tuple[int, ...] = ()  # of the chunks that lie completely in the head


@dataclass(frozen=True, slots=True)
class Catalog:
    """What every consumer gets: the files; for each extent (file, first byte in it, one past the last).

    Shared through a descriptor: u64 length of the JSON, the JSON, the heads of the files one after the other.
    """

    files: tuple[CatalogFile, ...]
    extents: tuple[tuple[int, int, int], ...]

    def pack(self) -> bytes:
        files = [[file.path, file.size, len(file.head), file.head_stops] for file in self.files]
        text = pack({"files": files, "extents": self.extents})
        return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *(file.head for file in self.files)])

    @classmethod
    def unpack(cls, data: bytes | mmap.mmap) -> Catalog:
        position = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        index = json.loads(data[_LENGTH_BYTES:position])
        files = []
        for path, size, head_bytes, stops in index["files"]:
            files.append(CatalogFile(path, size, bytes(data[position : position + head_bytes]), tuple(stops)))
            position += head_bytes
        return cls(tuple(files), _tuples(index["extents"]))


def pack(record: object) -> bytes:
    """A record of this module, or several, as JSON."""
    return json.dumps(record, default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else {name: getattr(value, name) for name in value.__slots__}


def unpack_options(data: bytes) -> JobOptions:
    """Reverses `pack` of options."""
    return JobOptions(**json.loads(data))


def unpack_source(data: bytes) -> SegmentSource:
    """Reverses `pack` of a source."""
    return SegmentSource(**_fields(json.loads(data)))


def unpack_files(data: bytes) -> tuple[FileJob, ...]:
    """Reverses `pack` of files."""
    return tuple(FileJob(**_fields(entry)) for entry in json.loads(data))


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: _READERS[name](value) if name in _READERS else value for name, value in entry.items()}


def _tuples(lists: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(map(tuple, lists))


def _segment(entry: dict[str, Any]) -> Segment:
    return Segment(**_fields(entry))


# Of the fields that JSON has no type for.
_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("have", "digests"), bytes.fromhex),
    **dict.fromkeys(("stops", "wire_stops"), tuple),
    **dict.fromkeys(("extents", "headers", "cdn_headers"), _tuples),
    "segment": _segment,
    "segments": lambda entries: tuple(map(_segment, entries)),
}
