"""What the engine is told to load, and how it may go about it.

A job is made by whoever holds the credentials (`coldstream.load`), and handed to the streamer over a private socket: it
holds links that open the bucket, so it is never an argument, a file or a log line. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DIGEST_BYTES = 16
_UNKNOWN = bytes(DIGEST_BYTES)

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """One file to load.

    Attributes:
        path: Relative to its model, for messages.
        size: In bytes.
        etag: The version that every answer must be of, without quotes; None when there is none to hold on to.
        url: Where to GET it, or None when it is here only. A secret.
        headers: To send along. Secrets.
        local: A file on this machine that holds it, or a copy under way of which `have` tells what is there.
        have: One byte per chunk: 1 where `local` holds it. Empty: all of it.
        stops: One past the last byte of each chunk.
        digests: XXH3-128 of each chunk, 16 bytes each, big-endian; zeros where unknown, empty when all are.
        extents: Runs `[first, stop)` of chunks that must lie in one piece of memory, in order.
    """

    path: str
    size: int
    etag: str | None
    url: str | None = field(default=None, repr=False)
    headers: Headers = field(default=(), repr=False)
    local: str | None = None
    have: bytes = field(default=b"", repr=False)
    stops: tuple[int, ...] = field(repr=False)
    digests: bytes = field(default=b"", repr=False)
    extents: tuple[tuple[int, int], ...] = field(repr=False)

    def chunk(self, index: int) -> tuple[int, int]:
        """The chunk's bytes as `[start, stop)`."""
        return (self.stops[index - 1] if index else 0), self.stops[index]

    def digest(self, index: int) -> bytes:
        """The chunk's digest; empty when unknown."""
        found = self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        return b"" if found == _UNKNOWN else found

    def here(self, index: int) -> bool:
        """Whether `local` holds the chunk."""
        return self.local is not None and (not self.have or self.have[index] == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a load may go about it.

    Attributes:
        memory_limit: Most bytes of the arena.
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
    consumers: int = 1
    listen: str | None = None
    verify: bool = True
    in_order: bool = False
    give_up_seconds: float = 180.0
    attach_seconds: float = 600.0
    cache: str | None = None
    cache_bytes_max: int | None = None


def pack_settings(settings: Settings) -> bytes:
    """For the wire."""
    return json.dumps({name: getattr(settings, name) for name in Settings.__slots__}).encode()


def unpack_settings(data: bytes) -> Settings:
    """What `pack_settings` packed."""
    return Settings(**json.loads(data))


def pack_files(files: Sequence[FileJob]) -> bytes:
    """For the wire."""
    return json.dumps([_plain(file) for file in files]).encode()


def unpack_files(data: bytes) -> tuple[FileJob, ...]:
    """What `pack_files` packed."""
    return tuple(_file(entry) for entry in json.loads(data))


def _plain(file: FileJob) -> dict[str, Any]:
    entry = {name: getattr(file, name) for name in FileJob.__slots__}
    return entry | {"have": file.have.hex(), "digests": file.digests.hex()}


def _file(entry: Mapping[str, Any]) -> FileJob:
    return FileJob(
        **{
            **entry,
            "headers": tuple((name, value) for name, value in entry["headers"]),
            "have": bytes.fromhex(entry["have"]),
            "digests": bytes.fromhex(entry["digests"]),
            "stops": tuple(entry["stops"]),
            "extents": tuple((first, stop) for first, stop in entry["extents"]),
        }
    )
