"""Stores a file's segments in the pool that all models share.

A segment's key is its SHA-256, so its bytes must be hashed before it is sent. `SegmentUpload` holds the parts of a
segment in memory until the last one is hashed, looks whether the store has the segment, and sends it only if not.
`SegmentCopy` needs no bytes: the file has just been stored in one piece and hashed, and the store copies ranges of it.
All segments are multipart uploads with the same part size, so that on S3 and R2 two writers of one segment produce the
same ETag, and neither disturbs a reader of the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from coldstream.errors import ColdstreamError, ConflictError, IntegrityError, NotFoundError, UploadNotFoundError
from coldstream.mirror.digest import Digests, OrderedDigest, cut, read_header
from coldstream.mirror.multipart import UploadContext, UploadWork
from coldstream.mirror.pump import Countdown
from coldstream.mirror.segment_pool import segment_key
from coldstream.model.chunks import PART_BYTES, PART_BYTES_MIN, parts
from coldstream.model.manifest import StoredObject
from coldstream.places.place import ObjectInfo, UploadPart
from coldstream.units import plural


class SegmentWriter:
    """Finds and stores segments for one upload. Thread-safe. `copies` is True until the store fails to copy a range."""

    def __init__(self, context: UploadContext) -> None:
        self.context = context
        self.store = context.store
        self.copies = True
        # The ETags that an earlier upload of this model saw. A segment with another ETag has been replaced since, and
        # is stored again.
        self._known = {stored.key: stored.etag for entry in context.plan.entries for stored in entry.objects}

    def find_or_copy(self, sha256: str, start: int, stop: int, plain: StoredObject | None) -> StoredObject | None:
        """Returns the segment if the store has it or can copy it from `plain`; otherwise it has to be sent."""
        if segment := self._find(sha256, stop - start):
            self.context.count(kept_segments=1)
            return segment
        # S3 cannot copy a range of an object below 5 MiB.
        can_copy = plain and self.copies and plain.size > PART_BYTES_MIN
        return self._copy(sha256, start, stop, plain) if plain and can_copy else None

    def _find(self, sha256: str, size: int) -> StoredObject | None:
        key = segment_key(sha256)
        try:
            info = self.store.head(key[1:])
        except NotFoundError:
            return None
        if info.size != size or self._known.get(key, info.etag) != info.etag:
            return None
        return StoredObject(key=key, size=size, etag=info.etag, part_bytes=PART_BYTES)

    def complete(self, sha256: str, size: int, upload_id: str, stored: Sequence[UploadPart]) -> StoredObject | None:
        """Makes the parts a segment; None when the multipart upload is gone and the segment does not exist."""
        key = segment_key(sha256)
        try:
            self.store.complete_upload(key[1:], upload_id, stored)
        except UploadNotFoundError:
            # The request may have succeeded before its reply was lost, or another upload stored the same segment.
            return self._find(sha256, size)
        info = self.store.head(key[1:])
        if info.size != size:
            raise IntegrityError(f"{self.store.uri}{key} has {info.size} bytes, but {size} were sent")
        return StoredObject(key=key, size=size, etag=info.etag, part_bytes=PART_BYTES)

    def _copy(self, sha256: str, start: int, stop: int, plain: StoredObject) -> StoredObject | None:
        """Lets the store copy `[start, stop)` of an object; None when it cannot, or the multipart upload is gone.

        Raises ConflictError if the object is not the one that was hashed.
        """
        key = segment_key(sha256)[1:]
        upload_id = self.store.create_upload(key)
        whole = f"{self.context.plan.name}/{plain.key}"
        copied_parts = []
        try:
            for number, (first, last) in enumerate(parts(stop - start, PART_BYTES), start=1):
                etag = self.store.copy_part(
                    key, upload_id, number, whole, start + first, start + last, if_match=plain.etag
                )
                if etag is None:
                    self.copies = False
                    self.store.abort_upload(key, upload_id)
                    return None
                copied_parts.append(UploadPart(number, last - first, etag))
            # Every later upload trusts an object with this key, and a server may ignore the condition.
            if self.store.head(whole).etag != plain.etag:
                raise ConflictError(f"{self.store.uri}/{whole} was changed while the upload ran")
        except UploadNotFoundError:
            return None
        except ColdstreamError:
            with self.store.retry.shielded():
                self.store.abort_upload(key, upload_id)
            raise
        segment = self.complete(sha256, stop - start, upload_id, copied_parts)
        self.context.count(copied_segments=segment is not None)
        return segment


class _SegmentedUpload(UploadWork):
    """What the two ways to store a file's segments share; `plain` is the object that holds the file in one piece."""

    def __init__(self, writer: SegmentWriter, file: ObjectInfo, plain: StoredObject | None) -> None:
        super().__init__(writer.context, file)
        self._writer, self._plain = writer, plain

    def _end(self, digests: Digests, segments: Sequence[StoredObject]) -> None:
        limit = self._context.plan.object_bytes_max
        plain = self._plain if self._context.plan.plain else None
        self.entry = self._record(digests, tuple(segments), object_bytes_max=limit, plain=plain)
        self._progress.end(self.file.key, plural(len(segments), "segment"))


@dataclass(slots=True)
class _Segment:
    """`[start, stop)` of a file, while it is uploaded as a segment.

    Attributes:
        ready: Reaches zero when the hash is known and all parts are in memory.
        left: Reaches zero when all parts are sent.
        parts: The bytes of each part by its number, and the function to call when they are no longer needed.
    """

    start: int
    stop: int
    ready: Countdown = field(init=False)
    left: Countdown = field(init=False)
    parts: dict[int, tuple[memoryview, Callable[[], None]]] = field(default_factory=dict)
    sha256: str = ""
    stored: StoredObject | None = None
    upload_id: str = ""
    stored_parts: dict[int, UploadPart] = field(default_factory=dict)


class SegmentUpload(_SegmentedUpload):
    """Reads and hashes a file, and sends the segments that the store lacks. `submit` is the pump's."""

    digest: OrderedDigest

    def __init__(
        self,
        writer: SegmentWriter,
        file: ObjectInfo,
        plain: StoredObject | None,
        submit: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__(writer, file, plain)
        self.digest = self._new_digest(on_segment=self._on_segment)
        self._submit = submit
        self._segments: dict[int, _Segment] = {}  # by stop
        self._places: list[tuple[_Segment, int]] = []  # each part's segment and its number in it
        self._lost = False

    def prepare(self) -> None:
        # The segments' stops must be known before the first part is read, so the header is read twice.
        header = read_header(partial(self._source.read_into, self.file.key, 0), path=self.file.key, size=self.file.size)
        _, stops = cut(header, self._context.plan.object_bytes_max)
        for start, stop in pairwise((0, *stops)):
            segment = self._segments[stop] = _Segment(start, stop)
            ranges = tuple(parts(stop - start, PART_BYTES))
            segment.ready = Countdown(len(ranges) + 1, partial(self._submit, partial(self._store_segment, segment)))
            segment.left = Countdown(len(ranges), partial(self._complete, segment))
            self.parts += tuple((start + first, start + last) for first, last in ranges)
            self._places += [(segment, number) for number in range(1, len(ranges) + 1)]
        self._progress.begin(self.file.key, self.file.size)

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        segment, number = self._places[index]
        segment.parts[number] = (view, stored)
        segment.ready.down()

    def finish(self) -> None:
        digests = self.digest.finish()
        digests.check(self.file, label=self._source.label)
        segments = [segment.stored for segment in self._segments.values() if segment.stored]
        if self._lost or len(segments) < len(self._segments):
            self._progress.end(self.file.key, "starting over: the unfinished upload of a segment is gone")
        else:
            self._end(digests, segments)

    def abort_if_bad(self) -> None:
        for segment in self._segments.values():
            if segment.upload_id and not segment.stored:
                with suppress(ColdstreamError):
                    self._store.abort_upload(segment_key(segment.sha256)[1:], segment.upload_id)

    def _on_segment(self, stop: int, sha256: str) -> None:
        segment = self._segments.get(stop)
        if segment is None:
            raise ConflictError(f"{self.file.key} changed while it was being read", hint="run the same command again")
        segment.sha256 = sha256
        segment.ready.down()

    def _store_segment(self, segment: _Segment) -> None:
        """Stores a segment whose bytes are all in memory and hashed, unless the store has it or can copy it."""
        segment.stored = self._writer.find_or_copy(segment.sha256, segment.start, segment.stop, self._plain)
        if segment.stored:
            for view, done in segment.parts.values():
                self._on_sent(len(view))
                done()
            return
        segment.upload_id = self._store.create_upload(segment_key(segment.sha256)[1:])
        for number in tuple(segment.parts):
            self._submit(partial(self._send, segment, number))

    def _send(self, segment: _Segment, number: int) -> None:
        view, done = segment.parts[number]
        key = segment_key(segment.sha256)[1:]
        try:
            etag = self._store.put_part(key, segment.upload_id, number, view, on_sent=self._on_sent)
            segment.stored_parts[number] = UploadPart(number, len(view), etag)
            self._context.count(sent_bytes=len(view), parts=1)
        except UploadNotFoundError:
            self._lost = True
        segment.left.down()
        done()

    def _complete(self, segment: _Segment) -> None:
        if len(segment.stored_parts) == len(segment.parts):
            stored_parts = [part for _, part in sorted(segment.stored_parts.items())]
            size = segment.stop - segment.start
            segment.stored = self._writer.complete(segment.sha256, size, segment.upload_id, stored_parts)
            self._context.count(sent_segments=1)


class SegmentCopy(_SegmentedUpload):
    """Lets the store copy a file's segments from the object in one piece; reads nothing, so its parts are empty.

    The entry remains None if the store cannot copy.
    """

    def __init__(self, writer: SegmentWriter, file: ObjectInfo, plain: StoredObject, digests: Digests) -> None:
        super().__init__(writer, file, plain)
        self._digests = digests
        self._ranges = list(pairwise((0, *(stop for stop, _ in digests.segments))))
        self.parts = tuple((start, start) for start, _ in self._ranges)
        self._stored: dict[int, StoredObject] = {}

    def prepare(self) -> None:
        self._progress.begin(self.file.key, 0)

    def fetch(self, start: int, view: memoryview) -> None:
        pass

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        sha256 = self._digests.segments[index][1]
        if segment := self._writer.find_or_copy(sha256, *self._ranges[index], self._plain):
            self._stored[index] = segment
        stored()

    def finish(self) -> None:
        if len(self._stored) == len(self._ranges):
            self._end(self._digests, [self._stored[index] for index in range(len(self._ranges))])
        else:
            self._progress.end(self.file.key, plural(len(self._stored), "segment"))
