"""Where files are: one contract for what can be listed, described, read by ranges and linked to, and its writable part.

A `Place` is read: a bucket, a folder, a commit on the Hub, a web server. A `Snapshot` is a place whose files are one
model, as an upload reads it. A `Store` can be written to as well. `tests/conformance` tests each implementation.

Keys are relative to the place's root, with `/` between segments. Byte ranges are `[start, stop)`. ETags are opaque,
without quotes; two equal ETags of one key mean equal bytes. Methods are thread-safe, and retry 429, 5xx and cut
connections themselves, within the place's `Retry`. All raise CredentialsError, BucketNotFoundError, UnavailableError
and CancelledError; others where stated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, BinaryIO, Protocol

from coldstream.errors import ColdstreamError, ConflictError, IntegrityError, UnavailableError
from coldstream.machine.parallel import in_parallel
from coldstream.model.job import Headers
from coldstream.net.retry import Retry
from coldstream.units import MIB

if TYPE_CHECKING:
    from coldstream.model.manifest import Provenance

Body = bytes | bytearray | memoryview
# Called with byte counts as they are read or sent.
OnBytes = Callable[[int], None]
# A URL, and the headers to send along. Both may be secrets.
Link = tuple[str, Headers]
# For an object whose time is unknown.
LONG_AGO = datetime.fromtimestamp(0, timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """A place's description of an object."""

    key: str
    size: int
    # Some servers leave it out of listings.
    etag: str = ""
    modified: datetime = LONG_AGO
    # Keys in lower case; only from `head`.
    metadata: Mapping[str, str] = field(default_factory=dict)
    # In hexadecimal, where the place knows them.
    sha256: str | None = None
    git_blob_id: str | None = None
    # Why it cannot be read or stored ("it is a broken link").
    fault: str | None = None
    # How long the place took to begin its answer; only from `get`, and 0 where it is not measured.
    answer_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Location:
    """Where the engine reads an object itself: by a URL, or from a `local` file."""

    url: str | None = field(default=None, repr=False)
    headers: Headers = field(default=(), repr=False)
    local: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A range of an object, and where the whole object is, of which `size` is the size."""

    # Shorter than requested where the object ends.
    body: bytes = field(repr=False)
    size: int
    etag: str | None
    # Distinguishes contents of the same size: the ETag, or a file's time; "" if neither is known.
    stamp: str
    location: Location


@dataclass(frozen=True, slots=True)
class UploadPart:
    """One stored part of an unfinished multipart upload; `number` counts from 1."""

    number: int
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """An unfinished multipart upload."""

    key: str
    upload_id: str


class Place(Protocol):
    """A place that files are read from."""

    @property
    def pins_by_etag(self) -> bool:
        """Whether its responses carry the ETags that a manifest records. A copy of a store has others."""

    @property
    def uri(self) -> str:
        """Its root, such as `s3://bucket[/prefix]` or `file:///folder`, without a trailing slash or a secret."""

    @property
    def retry(self) -> Retry: ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose keys start with `prefix`, in the order of their keys."""

    def get(self, key: str, *, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        """A small object, from one request. IntegrityError: larger than `bytes_max`."""

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        """Reads a range of the version `etag` as the engine will read the rest; the object may end before `stop`."""

    def locate(self, key: str) -> Location:
        """Where the engine reads an object, if possible without a request."""

    def renew(self, key: str, *, where: str) -> Link:
        """A fresh link to an object whose old one has expired; UsageError for a local file."""

    def session(self) -> AbstractContextManager[object]:
        """Keeps the connections of `read_piece` open."""


class Readable(Protocol):
    """A place whose objects can be read by large ranges."""

    def read_into(
        self, key: str, start: int, buffer: memoryview, *, if_match: str | None = None, on_read: OnBytes | None = None
    ) -> None:
        """Fills `buffer` with `[start, start + len(buffer))`. Continues where a cut connection left off.

        Raises NotFoundError, ConflictError (not `if_match`, which places that pin their version ignore), and
        IntegrityError: the object ends before the range does, or the server sent another range.
        """


class Snapshot(Place, Readable, Protocol):
    """A place that holds one model, pinned: what is listed is what will be read, or an error.

    `label` is for people ("org/model @ 0e9e39f"), `provenance` for the manifest.
    """

    @property
    def label(self) -> str: ...
    @property
    def provenance(self) -> Provenance: ...

    def branches_with_weights(self) -> Sequence[str]:
        """Other revisions that have safetensors, as far as that is known; for a hint."""


class Store(Place, Readable, Protocol):
    """A place that can be written to."""

    @property
    def write_interval_seconds(self) -> float:
        """The shortest time between two writes of one key (R2: one a second, then 429)."""

    def head(self, key: str) -> ObjectInfo:
        """Describes one object, or raises NotFoundError."""

    def put(
        self,
        key: str,
        body: Body,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        on_sent: OnBytes | None = None,
    ) -> str:
        """Stores an object in one request, atomically, and returns its ETag.

        ConflictError: the present version is not `if_match`, or there is one despite `if_absent`. A server may ignore
        conditions (rclone does): see `honours_conditions`.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; those that do not exist are fine. Not atomic over several."""

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begins a multipart upload and returns its id. Costs storage until completed or aborted."""

    def put_part(self, key: str, upload_id: str, number: int, body: Body, *, on_sent: OnBytes | None = None) -> str:
        """Stores part `number` (from 1), replacing an earlier one of that number, and returns its ETag.

        A repeated attempt calls `on_sent` with a negative count first. Raises UploadNotFoundError, and
        UnsupportedError when the server cannot replace a part (rclone).
        """

    def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, stop: int, *, if_match: str
    ) -> str | None:
        """Stores `[start, stop)` of the object `source` as part `number`, on the server's side, and returns its ETag.

        None: the server cannot copy (rclone), and the upload can only be aborted. S3 does not copy from objects below
        5 MiB. A server may ignore `if_match` (moto does): compare with `head` before completing. Raises NotFoundError,
        ConflictError and UploadNotFoundError.
        """

    def part_etag(self, body: Body) -> str:
        """The ETag that `put_part` gives for this content, to compare a stored part with it."""

    def parts(self, key: str, upload_id: str) -> Sequence[UploadPart]:
        """The stored parts, by number, or UploadNotFoundError."""

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[UploadPart]) -> None:
        """Makes the object out of its parts, atomically.

        UploadNotFoundError may mean that an earlier attempt worked: look with `head`. ConflictError: a part is missing
        or has another ETag.
        """

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drops an upload and its parts; idempotent."""

    def uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """The unfinished uploads of keys that start with `prefix`."""


class RangeReader(Protocol):
    """The body of a response, or an open file."""

    def readinto(self, buffer: memoryview, /) -> int: ...


def fill(
    buffer: memoryview,
    open_range: Callable[[int], AbstractContextManager[RangeReader]],
    *,
    retry: Retry,
    where: str,
    on_read: OnBytes | None = None,
) -> None:
    """Fills `buffer` out of as many responses as it takes: the loop of every `read_into`.

    `open_range` opens the rest behind that many bytes, and is called again after each retryable error.
    """
    done = 0

    def attempt() -> None:
        nonlocal done
        with open_range(done) as body:
            while done < len(buffer):
                retry.check()
                count = body.readinto(buffer[done : done + MIB])
                if not count:
                    raise UnavailableError(
                        f"{where}: the connection ended {len(buffer) - done} bytes early", target=where
                    )
                done += count
                if on_read:
                    on_read(count)

    if buffer:
        retry.run(attempt, progress=lambda: done)


def check_small(where: str, size: int, bytes_max: int | None) -> None:
    """Raises IntegrityError for an object that is too large to be read whole."""
    if bytes_max is not None and size > bytes_max:
        raise IntegrityError(f"{where} has {size} bytes; at most {bytes_max} are read")


def put_file(
    store: Store, key: str, file: BinaryIO, *, part_bytes: int, connections: int, on_sent: OnBytes | None = None
) -> None:
    """Stores a file by a multipart upload, which is aborted after any error; `on_sent` as in `Store.put_part`."""
    upload, descriptor = store.create_upload(key), file.fileno()

    def put(number: int) -> UploadPart:
        body = os.pread(descriptor, part_bytes, (number - 1) * part_bytes)
        return UploadPart(number, len(body), store.put_part(key, upload, number, body, on_sent=on_sent))

    try:
        numbers = range(1, -(-os.fstat(descriptor).st_size // part_bytes) + 1)
        store.complete_upload(key, upload, in_parallel(put, numbers, threads=connections))
    except BaseException:
        with store.retry.shielded(), suppress(ColdstreamError):
            store.abort_upload(key, upload)
        raise


def replaced(where: str) -> ConflictError:
    """The error for an object of another version than the one that was listed."""
    return ConflictError(
        f"{where} was replaced while it was being read, or since its upload",
        hint="the model was written to; run the same command again, or look with: coldstream verify",
        target=where,
    )


def stale(where: str, etag: str, expected: str) -> ConflictError:
    """The error for an object that does not have the ETag that was required."""
    return ConflictError(
        f"{where} was replaced: its ETag is {etag}, expected {expected}",
        hint="the model was written to; run: coldstream verify",
        target=where,
    )


def honours_conditions(store: Store, key: str, body: Body) -> bool:
    """Whether a store refuses conditional writes whose condition is false, of both kinds; rclone ignores them.

    `body` is the present content of the object `key`, so that a store which ignores conditions changes nothing.
    """
    for if_absent, if_match in ((True, None), (False, "0" * 32)):
        try:
            store.put(key, body, if_absent=if_absent, if_match=if_match)
        except ConflictError:
            continue
        return False
    return True
