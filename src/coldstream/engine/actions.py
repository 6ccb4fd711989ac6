"""The scheduler's vocabulary: chunks, failures, and the actions to carry out. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """One range of one file: where it comes from and where it goes.

    Attributes:
        file: Index of the file.
        segment: Number, over all files, of the segment that holds it.
        index: Of the chunk in its file.
        extent: Index of the extent that it lies in.
        position: Offset in the extent, in bytes.
        size: In bytes, above 0.
        is_local: Whether it is read from this machine.
        remote: Whether it can be fetched over the network.
        cdn: Whether a CDN has it too, and its digest is known.
    """

    file: int
    segment: int
    index: int
    extent: int
    position: int
    size: int
    is_local: bool = False
    remote: bool = True
    cdn: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection did not deliver its chunk.

    Attributes:
        kind: As in `net.http_message.FetchError`, or "corrupt": the digest differs; "local": the local file cannot be
            read, or is wrong; "lost": the fetching process died.
        received: Bytes in place, counted from where the request began.
        message: For users; without links.
        retry_after_seconds: What the server asked for, or None.
    """

    kind: str
    received: int = 0
    message: str = ""
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Receive bytes `[skip, size)` of a chunk into the arena at `offset + skip`; `skip` is below the chunk's size.

    From this machine if `is_local`, through the CDN if `cdn`, from the bucket otherwise.
    """

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
    """End the load; once it has finished, end only the local copy.

    Attributes:
        kind: "unavailable", "credentials", "not-found", "conflict", "integrity", "memory".
        chunk: Which it failed on, or None.
        message: Of the last attempt.
    """

    kind: str
    chunk: int | None
    message: str


Action = Fetch | Stop | Ready | StoreChunk | Renew | Fail
