"""What every store promises. `tests/conformance` holds each of them to it.

Keys are relative to the store's root, with `/` between segments. Byte ranges are `[start, stop)`. ETags are opaque,
without quotes; two equal ETags of one key mean equal bytes. Methods are thread-safe. Each retries what may succeed
later (429, 5xx, cut connections) by itself, within the store's `Retry`; what it raises has been given up on.

Raises, everywhere: CredentialsError, BucketNotFoundError, UnavailableError, CancelledError; where stated, more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from coldstream.errors import ConflictError
from coldstream.net.retry import Retry

Body = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a store says of an object.

    Attributes:
        key: Relative to the store's root.
        size: In bytes.
        etag: Opaque, without quotes. From `list` it may be missing ("") on some servers.
        modified: When it was last written, with a time zone.
        metadata: User metadata, keys in lower case; only from `head`, and empty on stores that keep none.
    """

    key: str
    size: int
    etag: str
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


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


class Store(Protocol):
    """A place for objects.

    Attributes:
        uri: Its root, `s3://bucket[/prefix]` or `file:///folder`, without a trailing slash. Never holds a secret.
        retry: The policy that its calls run under.
        write_interval_seconds: The shortest time between two writes of one key (R2: one a second, then 429).
    """

    @property
    def uri(self) -> str: ...
    @property
    def retry(self) -> Retry: ...
    @property
    def write_interval_seconds(self) -> float: ...

    def head(self, key: str) -> ObjectInfo:
        """Describes one object.

        Raises:
            NotFoundError: There is none.
        """

    def get(self, key: str, *, if_match: str | None = None, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        """A small object's bytes and description, from one request.

        Raises:
            NotFoundError: There is none.
            ConflictError: Its ETag is not `if_match`.
            IntegrityError: It is larger than `bytes_max`.
        """

    def read_into(
        self,
        key: str,
        start: int,
        buffer: memoryview,
        *,
        if_match: str | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        """Fills `buffer` with `[start, start + len(buffer))`. Goes on where a cut connection left off.

        Args:
            key: The object.
            start: First byte wanted.
            buffer: Writable, contiguous bytes; undefined after an error.
            if_match: The ETag that it must have.
            on_read: Called with byte counts as they arrive.

        Raises:
            NotFoundError: There is no such object.
            ConflictError: Its ETag is not `if_match`.
            IntegrityError: The object ends before the range does, or the server sent another range.
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

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose keys start with `prefix`, in the order of their keys."""

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

    def presign(self, key: str, *, seconds: int = 3600) -> str:
        """A URL that reads this object for so long, without credentials: a secret itself, not to be logged."""


def honours_conditions(store: Store, key: str, body: Body) -> bool:
    """Whether a store refuses conditional writes whose condition is false, by trying both kinds.

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
