"""The scheduler's vocabulary: chunks, failures, and the actions to carry out. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """One range of one file: where it comes from and where it goes."""

    file: int  # index of the file
    segment: int  # number, over all files, of the segment that holds it
    index: int  # of the chunk in its file
    extent: int  # index of the extent that it lies in
    position: int  # offset in the extent, in bytes
    size: int  # in bytes, above 0
    is_local: bool = False  # whether it is read from this machine
    remote: bool = True  # whether it can be fetched over the network
    cdn: bool = False  # whether a CDN has it too, and its digest is known


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection did not deliver its chunk."""

    # As in `net.http_message.FetchError`, or "corrupt": the digest differs; "local": the local file cannot be read, or
    # is wrong; "lost": the fetching process died.
    kind: str
    received: int = 0  # bytes in place, counted from where the request began
    message: str = ""  # for users; without links
    retry_after_seconds: float | None = None  # what the server asked for, or None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Receive bytes `[skip, size)` of a chunk into the arena at `offset + skip`; from the bucket without a flag."""

    connection: int
    chunk: int
    offset: int
    skip: int
    is_local: bool
    cdn: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """End the fetch of this connection; its result says how far it came."""

    connection: int


@dataclass(frozen=True, slots=True)
class Ready:
    """An extent is complete: the `order`-th, at `offset` in the arena."""

    extent: int
    offset: int
    order: int


@dataclass(frozen=True, slots=True)
class StoreChunk:
    """Write this chunk, at `offset` in the arena, to the local copy; then call `stored_chunk` or `store_failed`."""

    chunk: int
    offset: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the refused link of this segment, then call `renewed`."""

    segment: int


@dataclass(frozen=True, slots=True)
class Fail:
    """End the load; once it has finished, end only the local copy."""

    kind: str  # "unavailable", "credentials", "not-found", "conflict", "integrity", "memory"
    chunk: int | None  # which it failed on, or None
    message: str  # of the last attempt


Action = Fetch | Stop | Ready | StoreChunk | Renew | Fail
