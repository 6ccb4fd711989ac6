"""What the engine loads, and under which limits.

A job is made by the process that holds the credentials (`coldstream.load`) and handed to the streamer over a private
socket: it holds links that open the bucket, so it is never an argument, a file or a log line. Pure.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DIGEST_BYTES = 16
_UNKNOWN = bytes(DIGEST_BYTES)

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One object that holds a file, or a run of its chunks. Exactly one of `url` and `local` is set.

    Attributes:
        stop: One past its last byte in the file; it starts where the one before it stops.
        etag: The version that every answer must be of, without quotes; a weak one keeps its `W/`. None when there is
            none to hold on to.
        url: Where to GET it. A secret: it may be signed.
        headers: To send along. Secrets.
        local: The absolute path of the object, when it is a file on this machine.
        cdn: Where a CDN has the same object, or None.
    """

    stop: int
    etag: str | None = None
    url: str | None = field(default=None, repr=False)
    headers: Headers = field(default=(), repr=False)
    local: str | None = None
    cdn: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """One file to load.

    Attributes:
        path: Relative to its model, for messages.
        segments: Where its bytes are, in order; their edges are edges of chunks.
        copy: A file on this machine that is a copy of it, or one under way; `have` tells what is there.
        have: One byte per chunk: 1 where `copy` holds it.
        stops: One past the last byte of each chunk in the file, and so in memory.
        wire_stops: The same in the objects that hold the file, laid end to end; empty where chunks are stored as they
            are loaded. A chunk that is stored in another form, such as compressed, has another length there.
        digests: XXH3-128 of each chunk, 16 bytes each, big-endian; zeros where unknown, empty when all are.
        extents: Runs `[first, stop)` of chunks that must lie in one piece of memory, in order.
        cdn_headers: Headers for the CDN only. Secrets.
    """

    path: str
    segments: tuple[Segment, ...]
    copy: str | None = None
    have: bytes = field(default=b"", repr=False)
    stops: tuple[int, ...] = field(repr=False)
    wire_stops: tuple[int, ...] = field(default=(), repr=False)
    digests: bytes = field(default=b"", repr=False)
    extents: tuple[tuple[int, int], ...] = field(repr=False)
    cdn_headers: Headers = field(default=(), repr=False)

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
        """The number of the segment that the chunk lies in."""
        return bisect_right(self.segments, self.stops[index] - 1, key=lambda segment: segment.stop)

    def is_local(self, index: int) -> bool:
        """Whether the chunk is on this machine."""
        if self.copy is not None and self.have[index] == 1:
            return True
        return self.segments[self.segment(index)].local is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSource:
    """A segment as a worker needs it: what to ask for, or which file to read.

    Attributes:
        path: Of the file that it belongs to, for messages.
        start: Its first byte in that file.
        segment: Where it is.
        copy: As in `FileJob`.
        cdn_headers: As in `FileJob`.
    """

    path: str
    start: int
    segment: Segment
    copy: str | None = None
    cdn_headers: Headers = field(default=(), repr=False)


def sources(file: FileJob) -> list[SegmentSource]:
    """The segments of a file, for the workers."""
    starts = (0, *(segment.stop for segment in file.segments))
    return [
        SegmentSource(path=file.path, start=start, segment=segment, copy=file.copy, cdn_headers=file.cdn_headers)
        for start, segment in zip(starts, file.segments, strict=False)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a load may go about it.

    Attributes:
        memory_limit: Most bytes of the arena.
        arena_bytes_max: Most address space for it, where that is limited.
        consumers: How many will attach and see every tensor.
        listen: Path of a socket where consumers of other processes attach, or None.
        verify: Whether chunks are compared with their digests.
        in_order: Whether extents become ready in the order of the files, or as they arrive.
        give_up_seconds: A load of which nothing has moved for so long fails.
        attach_seconds: How long after the first consumer the last one may attach.
        cache: The folder of the local copy to fill, or None.
        cache_bytes_max: How large that cache may be, or None.
    """

    memory_limit: int
    arena_bytes_max: int | None = None
    consumers: int = 1
    listen: str | None = None
    verify: bool = True
    in_order: bool = False
    give_up_seconds: float = 180.0
    attach_seconds: float = 600.0
    cache: str | None = None
    cache_bytes_max: int | None = None


def pack_options(settings: JobOptions) -> bytes:
    """For the wire."""
    return json.dumps({name: getattr(settings, name) for name in JobOptions.__slots__}).encode()


def unpack_options(data: bytes) -> JobOptions:
    """What `pack_options` packed."""
    return JobOptions(**json.loads(data))


def pack_files(files: Sequence[FileJob]) -> bytes:
    """For the wire."""
    return json.dumps([_plain(file) for file in files]).encode()


def unpack_files(data: bytes) -> tuple[FileJob, ...]:
    """What `pack_files` packed."""
    return tuple(_file(entry) for entry in json.loads(data))


def pack_source(source: SegmentSource) -> bytes:
    """For the wire."""
    entry = {name: getattr(source, name) for name in SegmentSource.__slots__}
    return json.dumps(entry | {"segment": _plain_segment(source.segment)}).encode()


def unpack_source(data: bytes) -> SegmentSource:
    """What `pack_source` packed."""
    entry = json.loads(data)
    return SegmentSource(
        **{**entry, "segment": _segment(entry["segment"]), "cdn_headers": _headers(entry["cdn_headers"])}
    )


def _plain(file: FileJob) -> dict[str, Any]:
    entry = {name: getattr(file, name) for name in FileJob.__slots__}
    segments = [_plain_segment(segment) for segment in file.segments]
    return entry | {"segments": segments, "have": file.have.hex(), "digests": file.digests.hex()}


def _plain_segment(segment: Segment) -> dict[str, Any]:
    return {name: getattr(segment, name) for name in Segment.__slots__}


def _segment(entry: Mapping[str, Any]) -> Segment:
    return Segment(**{**entry, "headers": _headers(entry["headers"])})


def _headers(pairs: Sequence[Sequence[str]]) -> Headers:
    return tuple((name, value) for name, value in pairs)


def _file(entry: Mapping[str, Any]) -> FileJob:
    return FileJob(
        **{
            **entry,
            "segments": tuple(_segment(segment) for segment in entry["segments"]),
            "cdn_headers": _headers(entry["cdn_headers"]),
            "have": bytes.fromhex(entry["have"]),
            "digests": bytes.fromhex(entry["digests"]),
            "stops": tuple(entry["stops"]),
            "wire_stops": tuple(entry["wire_stops"]),
            "extents": tuple((first, stop) for first, stop in entry["extents"]),
        }
    )
