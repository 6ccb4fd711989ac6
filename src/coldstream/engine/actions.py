"""What the scheduler is asked about, and what it answers: chunks, failures, and the actions to carry out. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """One range of one file: where it comes from and where it goes.

    Attributes:
        file: Index of the file.
        segment: Of the load, counted over all files: the object that it lies in.
        index: Of the chunk in its file.
        extent: Index of the extent that it lies in.
        position: Where in the extent, in bytes.
        size: In bytes, above 0.
        here: Whether it is read from this machine.
        remote: Whether it can be fetched from elsewhere.
        cdn: Whether a CDN has it too, and its digest is known.
    """

    file: int
    segment: int
    index: int
    extent: int
    position: int
    size: int
    here: bool = False
    remote: bool = True
    cdn: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection did not bring what it should.

    Attributes:
        kind: As in `engine.http.FetchError`, or "corrupt": the bytes have another digest; "local": the file on this
            machine could not be read, or holds other bytes; "lost": the fetching process died.
        received: Bytes that are in place, from where the request began.
        message: For people; without links.
        retry_after_seconds: What the server asked for, or None.
    """

    kind: str
    received: int = 0
    message: str = ""
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Receive bytes `[skip, size)` of a chunk into the arena at `offset + skip`; `skip` is below the chunk's size.

    From this machine if `here`, through the CDN if `cdn`, from the bucket otherwise.
    """

    connection: int
    chunk: int
    offset: int
    skip: int
    here: bool
    cdn: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """End what this connection does now; it answers with how far it came."""

    connection: int


@dataclass(frozen=True, slots=True)
class Ready:
    """An extent is whole: the `order`-th to be so, at `offset` in the arena."""

    extent: int
    offset: int
    order: int


@dataclass(frozen=True, slots=True)
class StoreChunk:
    """Write this chunk, at `offset` in the arena, to the local copy, and say `stored_chunk` or `store_failed`."""

    chunk: int
    offset: int


@dataclass(frozen=True, slots=True)
class Renew:
    """The link of this segment is refused; whoever can should make a new one and say `renewed`."""

    segment: int


@dataclass(frozen=True, slots=True)
class Fail:
    """The load cannot go on; once it was finished already, only what was to be fetched for the local copy cannot.

    Attributes:
        kind: "unavailable", "credentials", "not-found", "conflict", "integrity", "memory".
        chunk: The chunk that it failed on, or None.
        message: What the last attempt said.
    """

    kind: str
    chunk: int | None
    message: str


Action = Fetch | Stop | Ready | StoreChunk | Renew | Fail
