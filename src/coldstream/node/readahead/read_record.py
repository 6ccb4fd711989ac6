"""The record of what a start read: compressed JSON of at most `RECORD_BYTES_MAX`, checked before it is believed. Pure.

It comes out of a bucket, and names files of the machine that reads it. Their content is neither shown nor executed: a
hostile record could only make a machine read what it did not need. Even so, it may only name files below folders that
hold programs, and not devices.
"""

from __future__ import annotations

import posixpath
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from coldstream.errors import IntegrityError

FILES_MAX = 50_000
RANGES_MAX = 1_000_000
# vLLM's CPU build takes 0.1 MiB.
RECORD_BYTES_MAX = 8 << 20
_JSON_BYTES_MAX = 64 << 20
_FILE_BYTES_MAX = 1 << 40
# Opening a file there may have side effects.
DEVICES = ("/proc", "/sys", "/dev", "/run")

Offset = Annotated[int, Meta(ge=0, le=_FILE_BYTES_MAX)]
Path = Annotated[str, Meta(min_length=2, max_length=4096, pattern=r"^/[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*\Z")]


class File(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that was read: an absolute, normal path, and its size then; another size is another file.

    `ranges` are starts and stops in turn, each range `[start, stop)`, growing, not touching, within the size. Without
    any, all of it was read.
    """

    path: Path
    size: Annotated[int, Meta(ge=1, le=_FILE_BYTES_MAX)]
    ranges: tuple[Offset, ...] = ()

    def __post_init__(self) -> None:
        if self.path != posixpath.normpath(self.path):
            raise ValueError(f"path {self.path[:80]!r} is not normal")
        if len(self.ranges) % 2 or any(stop <= start for start, stop in pairwise(self.ranges)):
            raise ValueError(f"{self.path[:80]}: the ranges do not grow")
        if self.ranges and self.ranges[-1] > self.size:
            raise ValueError(f"{self.path[:80]}: a range ends behind the file's {self.size} bytes")

    def spans(self) -> Iterable[tuple[int, int]]:
        """The ranges as `[start, stop)`."""
        if not self.ranges:
            return ((0, self.size),)
        return zip(self.ranges[::2], self.ranges[1::2], strict=True)

    @property
    def read_bytes(self) -> int:
        """How many bytes the ranges have."""
        return sum(stop - start for start, stop in self.spans())


class ReadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a start read: files in the order of need, each below one of `prefixes`, folders that hold programs."""

    format: Literal[1] = 1
    prefixes: Annotated[tuple[Path, ...], Meta(max_length=64)]
    files: Annotated[tuple[File, ...], Meta(max_length=FILES_MAX)]

    def __post_init__(self) -> None:
        for prefix in self.prefixes:
            if prefix != posixpath.normpath(prefix) or is_below(prefix, DEVICES):
                raise ValueError(f"prefix {prefix[:80]!r} is not usable")
        seen: set[str] = set()
        ranges = 0
        for file in self.files:
            if file.path in seen:
                raise ValueError(f"{file.path[:80]} is listed twice")
            if not is_below(file.path, self.prefixes):
                raise ValueError(f"{file.path[:80]} is below none of the prefixes")
            seen.add(file.path)
            ranges += len(file.ranges) // 2
        if ranges > RANGES_MAX:
            raise ValueError(f"{ranges} ranges; a record has at most {RANGES_MAX}")

    def encode(self) -> bytes:
        """The bytes to store. Raises IntegrityError if they would be more than `RECORD_BYTES_MAX`."""
        data = zlib.compress(msgspec.json.encode(self), 6)
        if len(data) > RECORD_BYTES_MAX:
            raise IntegrityError(f"a record of reads has {len(data)} bytes; at most {RECORD_BYTES_MAX} are allowed")
        return data


# Made here: two threads that make the first decoder of a type at once can crash msgspec 0.22.
_DECODER = msgspec.json.Decoder(ReadRecord)


def decode(data: bytes) -> ReadRecord:
    """Reads what `ReadRecord.encode` wrote. Raises IntegrityError if it is too large, damaged or inconsistent."""
    if len(data) > RECORD_BYTES_MAX:
        raise IntegrityError(f"a record of reads has {len(data)} bytes; at most {RECORD_BYTES_MAX} are allowed")
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(data, _JSON_BYTES_MAX)
        if not unpacking.eof:
            raise IntegrityError("a record of reads is cut short, or too large")
        return _DECODER.decode(text)
    except (zlib.error, ValueError, RecursionError) as exc:
        raise IntegrityError(f"a record of reads cannot be read: {exc}") from exc


def is_below(path: str, prefixes: Sequence[str]) -> bool:
    """Whether a normal path is one of some folders, or lies below one."""
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)
