"""Where files are: one contract for what can be listed, described, read by ranges and linked to, and its writable part.

A `Place` is read: a bucket, a folder, a commit on the Hub, a web server. A `Snapshot` is a place whose files are one
model, as an upload reads it. A `Store` can be written to as well. `tests/conformance` holds each of them to this.

Keys are relative to the place's root, with `/` between segments. Byte ranges are `[start, stop)`. ETags are opaque,
without quotes; two equal ETags of one key mean equal bytes. Methods are thread-safe. Each retries what may succeed
later (429, 5xx, cut connections) by itself, within the place's `Retry`; what it raises has been given up on.

Raises, everywhere: CredentialsError, BucketNotFoundError, UnavailableError, CancelledError; where stated, more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Protocol

from coldstream.errors import ConflictError, UnavailableError
from coldstream.model.job import Headers
from coldstream.net.retry import Retry
from coldstream.units import MIB

if TYPE_CHECKING:
    from coldstream.model.manifest import Provenance

Body = bytes | bytearray | memoryview
# A URL to GET, and the headers to send along. Both may be secrets.
Link = tuple[str, Headers]
# Of an object whose place does not say when it was written.
LONG_AGO = datetime.fromtimestamp(0, timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """A place's description of an object.

    Attributes:
        key: Relative to the place's root; it stays inside it unless `fault` says otherwise.
        size: In bytes.
        etag: Opaque, without quotes. From `list` it may be missing ("") on some servers.
        modified: When it was last written, with a time zone.
        metadata: User metadata, keys in lower case; only from `head`, and empty at places that keep none.
        sha256: In hexadecimal, where the place knows it.
        git_blob_id: The Git object id of the content, where the place knows it.
        fault: Why it cannot be read or stored ("it is a broken link"); None when it can.
    """

    key: str
    size: int
    etag: str = ""
    modified: datetime = LONG_AGO
    metadata: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None
    git_blob_id: str | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Location:
    """Where the engine reads an object by itself: a link, or a file on this machine. Exactly one of them is set."""

    url: str | None = field(default=None, repr=False)
    headers: Headers = field(default=(), repr=False)
    local: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A range of an object, and where the rest is.

    Attributes:
        body: From the requested start on; shorter than requested where the object ends.
        size: Of the whole object.
        etag: Of the response; None for a local file or where the server sends none.
        stamp: What tells this content from an older one of the same size: the ETag, or a file's time; "" for nothing.
        location: Where the whole object is.
    """

    body: bytes = field(repr=False)
    size: int
    etag: str | None
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
    """A place that files are read from. It holds the credentials, and shows none.

    Attributes:
        uri: Its root, such as `s3://bucket[/prefix]` or `file:///folder`, without a trailing slash or a secret.
        retry: The policy that its calls run under.
        pins_by_etag: Whether its responses carry the ETags that a manifest records. A copy of a store has others.
    """

    @property
    def pins_by_etag(self) -> bool: ...
    @property
    def uri(self) -> str: ...
    @property
    def retry(self) -> Retry: ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose keys start with `prefix`, in the order of their keys."""

    def get(self, key: str, *, if_match: str | None = None, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        """A small object's bytes and description, from one request.

        Raises:
            NotFoundError: There is none.
            ConflictError: Its ETag is not `if_match`.
            IntegrityError: It is larger than `bytes_max`.
        """

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        """Reads a range over the link, or from the file, that the engine will read the rest by.

        Args:
            key: The object.
            start: First byte.
            stop: One past the last byte; the object may end before.
            etag: The version that it must be of, or None.
            where: What it is part of, for messages.
        """

    def locate(self, key: str) -> Location:
        """Where the engine reads an object, without a request where that can be avoided."""

    def renew(self, key: str, *, where: str) -> Link:
        """A fresh link to an object whose old one was refused: links expire.

        Raises:
            UsageError: It is a file on this machine.
        """

    def session(self) -> AbstractContextManager[object]:
        """Within it, connections of `read_piece` are kept open."""


class Readable(Protocol):
    """A place whose objects can be read by large ranges."""

    def read_into(
        self,
        key: str,
        start: int,
        buffer: memoryview,
        *,
        if_match: str | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        """Fills `buffer` with `[start, start + len(buffer))`. Continues where a cut connection left off.

        Args:
            key: The object.
            start: First byte.
            buffer: Writable, contiguous bytes; undefined after an error.
            if_match: The ETag that it must have; places that pin their version by themselves ignore it.
            on_read: Called with byte counts as they are read.

        Raises:
            NotFoundError: There is no such object.
            ConflictError: Its ETag is not `if_match`.
            IntegrityError: The object ends before the range does, or the server sent another range.
        """


class Snapshot(Place, Readable, Protocol):
    """A place that holds one model, pinned: what is listed is what will be read, or an error.

    Attributes:
        label: For people: "org/model @ 0e9e39f".
        provenance: For the manifest.
    """

    @property
    def label(self) -> str: ...
    @property
    def provenance(self) -> Provenance: ...

    def branches_with_weights(self) -> Sequence[str]:
        """Other revisions that have safetensors where this one has none; empty when that cannot be known."""


class Store(Place, Readable, Protocol):
    """A place that can be written to.

    Attributes:
        write_interval_seconds: The shortest time between two writes of one key (R2: one a second, then 429).
    """

    @property
    def write_interval_seconds(self) -> float: ...

    def head(self, key: str) -> ObjectInfo:
        """Describes one object.

        Raises:
            NotFoundError: There is none.
        """

    def put(
        self,
        key: str,
        body: Body,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        on_sent: Callable[[int], None] | None = None,
    ) -> str:
        """Stores an object in one request, atomically, and returns its ETag.

        Raises:
            ConflictError: `if_match` names another version than the present one, or `if_absent` and there is one.
                A server may ignore conditions (rclone does); `honours_conditions` tells.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; those that do not exist are fine. Not atomic over several."""

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begins a multipart upload and returns its id. Costs storage until completed or aborted."""

    def put_part(
        self, key: str, upload_id: str, number: int, body: Body, *, on_sent: Callable[[int], None] | None = None
    ) -> str:
        """Stores part `number` (from 1), replacing an earlier one of that number, and returns its ETag.

        A server that cannot replace a part (rclone) refuses with a permanent error.

        Args:
            key: As given to `create_upload`.
            upload_id: As returned by it.
            number: From 1.
            body: Not changed and not kept; the caller's again when this returns.
            on_sent: Called with byte counts as they leave; a repeated attempt gives a negative count first.

        Raises:
            UploadNotFoundError: The upload is gone.
        """

    def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, stop: int, *, if_match: str
    ) -> str | None:
        """Stores `[start, stop)` of the object `source` as part `number`, without the bytes coming here.

        Args:
            key: As given to `create_upload`.
            upload_id: As returned by it.
            number: From 1.
            source: Another object of this store, larger than 5 MiB (S3 copies no range of a smaller one).
            start: First byte.
            stop: One past the last byte.
            if_match: The ETag that the source must have. A server may ignore it (moto does): look with `head` before
                completing.

        Returns:
            The part's ETag, as `put_part` gives it for those bytes; None when the server cannot copy (rclone), which
            leaves an upload that is good for nothing.

        Raises:
            NotFoundError: There is no such source.
            ConflictError: Its ETag is not `if_match`.
            UploadNotFoundError: The upload is gone.
        """

    def part_etag(self, body: Body) -> str:
        """The ETag that `put_part` gives for this content: what tells whether a stored part holds it."""

    def parts(self, key: str, upload_id: str) -> Sequence[UploadPart]:
        """The stored parts, by number.

        Raises:
            UploadNotFoundError: The upload is gone.
        """

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[UploadPart]) -> None:
        """Makes the object out of its parts, atomically. Repeating it after it worked is an UploadNotFoundError.

        Raises:
            UploadNotFoundError: The upload is gone, perhaps because an earlier attempt worked: look with `head`.
            ConflictError: A part is missing or is not the one named.
        """

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drops an upload and its parts; one that is gone already is fine."""

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
    on_read: Callable[[int], None] | None = None,
) -> None:
    """Fills `buffer` out of as many responses as it takes: the loop of every `read_into`.

    Args:
        buffer: Where to.
        open_range: Opens what is left, behind that many bytes; called again after each retryable error.
        retry: The policy.
        where: What is read, for messages.
        on_read: As in `Readable.read_into`.
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


def replaced(where: str) -> ConflictError:
    """The error for an object that is not the one that was seen or listed a moment ago."""
    return ConflictError(
        f"{where} was replaced while it was being read, or since its upload",
        hint="the model was written to; run the same command again, or look with: coldstream verify",
        operation="GET",
        target=where,
    )


def honours_conditions(store: Store, key: str, body: Body) -> bool:
    """Tries whether a store refuses conditional writes whose condition is false, of both kinds.

    Some servers ignore one of them or both; rclone does.

    Args:
        store: Which.
        key: An existing object.
        body: Its present content, so that a store which ignores conditions changes nothing.
    """
    return _is_refused(lambda: store.put(key, body, if_absent=True)) and _is_refused(
        lambda: store.put(key, body, if_match="0" * 32)
    )


def _is_refused(write: Callable[[], str]) -> bool:
    try:
        write()
    except ConflictError:
        return True
    return False
