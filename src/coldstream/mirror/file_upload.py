"""Stores one file: as one object, part by part, or as segments in the pool that all models share.

An interrupted upload of an object resumes with the parts that are stored. A segment's key is its SHA-256, so
`SegmentUpload` holds its parts in memory until the last one is hashed, and sends it only if the store does not have it.
`SegmentCopy` lets the store copy ranges of a file that has just been stored in one piece. All segments are multipart
uploads with the same part size, so that on S3 and R2 two writers of one segment produce the same ETag.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UploadNotFoundError,
)
from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest, cut, read_header
from coldstream.mirror.manifest_records import JournalWriter
from coldstream.mirror.pump import Countdown, FileWork
from coldstream.mirror.segment_pool import segment_key
from coldstream.mirror.upload_plan import SHA256_METADATA, UploadPlan, UploadReport
from coldstream.model.chunks import PART_BYTES, PART_BYTES_MIN, parts
from coldstream.model.manifest import FileEntry, StoredObject
from coldstream.places.place import ObjectInfo, Snapshot, Store, UploadPart
from coldstream.progress import Progress
from coldstream.units import plural


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadContext:
    """What the works of one upload share."""

    store: Store
    source: Snapshot
    plan: UploadPlan
    journal: JournalWriter
    report: UploadReport
    progress: Progress
    connections: int
    memory_bytes: int
    whole: dict[str, FileEntry]  # as in the plan, and grows as files are stored; so does `segmented`
    segmented: dict[str, FileEntry]
    digests: dict[str, Digests] = field(default_factory=dict)  # of the files that were sent in one piece, by path
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self.report, name, getattr(self.report, name) + count)


class UploadWork(FileWork):
    """Uploads one file. `entry` is its manifest entry once it is stored."""

    parts: tuple[tuple[int, int], ...] = ()
    digest: OrderedDigest | None = None

    def __init__(self, context: UploadContext, file: ObjectInfo) -> None:
        self.file = file
        # Still None at the end if another run, unaware that this one took over, completed or aborted the unfinished
        # multipart upload. Then the file starts over.
        self.entry: FileEntry | None = None
        self._context = context
        self._store, self._source, self._progress = context.store, context.source, context.progress

    def fetch(self, start: int, view: memoryview) -> None:
        on_read = partial(self._progress.fetched, self.file.key)
        self._source.read_into(self.file.key, start, view, if_match=self.file.etag or None, on_read=on_read)

    def abort_if_bad(self) -> None:
        """Aborts multipart uploads whose parts no later run could use."""

    def _new_digest(self, on_segment: Callable[[int, str], None] | None = None) -> OrderedDigest:
        stream = StreamDigest(
            self.file.key,
            self.file.size,
            git=self.file.git_blob_id is not None,
            object_bytes_max=self._context.plan.limit(self.file.key),
            on_segment=on_segment,
        )
        return OrderedDigest(stream)

    def _on_sent(self, count: int) -> None:
        self._progress.stored(self.file.key, count)

    def _record(
        self,
        digests: Digests,
        objects: tuple[StoredObject, ...],
        *,
        object_bytes_max: int | None = None,
        plain: StoredObject | None = None,
        durable: bool = False,
    ) -> FileEntry:
        entry = FileEntry(
            path=self.file.key,
            size=self.file.size,
            sha256=digests.sha256,
            git_blob_id=self.file.git_blob_id,
            objects=objects,
            chunks=digests.chunks,
            object_bytes_max=object_bytes_max,
            plain=plain,
        )
        self._context.journal.add(entry, durable=durable)
        return entry


class FileUpload(UploadWork):
    """Uploads one file as one object; `resume` continues an unfinished multipart upload of the plan."""

    digest: OrderedDigest

    def __init__(self, context: UploadContext, file: ObjectInfo, *, resume: bool) -> None:
        super().__init__(context, file)
        plan = context.plan
        self.parts = tuple(parts(file.size, plan.part_bytes[file.key]))
        self.digest = self._new_digest()
        self._key = f"{plan.name}/{file.key}"
        self._pending = [upload.upload_id for upload in plan.pending if resume and upload.key == self._key]
        self._upload_id = ""  # empty for a file of one part
        self._bad = False
        self._lost = False
        self._earlier_parts: dict[int, UploadPart] = {}
        self._stored_parts: dict[int, UploadPart] = {}
        # The finished object carries this, so that it can be recognized when the reply to its completion is lost.
        self._mark = {SHA256_METADATA: file.sha256} if file.sha256 else {"coldstream-upload": uuid.uuid4().hex}

    def prepare(self) -> None:
        self._progress.begin(self.file.key, self.file.size)
        if len(self.parts) < 2:
            return
        # Continues the unfinished upload of this object with the most usable parts.
        expected = {n: stop - start for n, (start, stop) in enumerate(self.parts, start=1)}
        for upload_id in self._pending:
            try:
                stored = self._store.parts(self._key, upload_id)
            except UploadNotFoundError:
                continue
            # All parts but the last must have one size, so an upload with another part size cannot be used.
            if len(stored) > len(self._earlier_parts) and all(expected.get(p.number) == p.size for p in stored):
                self._upload_id, self._earlier_parts = upload_id, {part.number: part for part in stored}
        self._upload_id = self._upload_id or self._store.create_upload(self._key, metadata=self._mark)

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        if not self._upload_id:
            digests = self._verified_digests()
            metadata = {SHA256_METADATA: digests.sha256}
            etag = self._store.put(self._key, view, metadata=metadata, on_sent=self._on_sent)
            self._context.count(sent_bytes=len(view), parts=1)
            self._end(digests, etag, part_bytes=None)
        elif not self._lost:
            self._put_part(index + 1, view)
        stored()

    def _put_part(self, number: int, view: memoryview) -> None:
        earlier = self._earlier_parts.get(number)
        if earlier and earlier.etag == self._store.part_etag(view):
            self._on_sent(len(view))
            self._stored_parts[number] = earlier
            return
        try:
            etag = self._store.put_part(self._key, self._upload_id, number, view, on_sent=self._on_sent)
        except UploadNotFoundError:
            self._lost = True
            return
        except UnsupportedError:
            if not earlier:
                raise
            # This server (rclone) cannot replace a part that an earlier run stored with other bytes.
            self._bad = self._lost = True
            return
        self._context.count(sent_bytes=len(view), parts=1)
        self._stored_parts[number] = UploadPart(number, len(view), etag)

    def finish(self) -> None:
        if not self._upload_id:
            return
        digests = self._verified_digests()
        if not self._lost:
            # In the journal before the object exists: a run that is killed in between leaves a trace of it.
            self._record(digests, (), durable=True)
            self._lost = not self._complete()
        if self._lost:
            self._progress.end(self.file.key, "starting over: the unfinished upload cannot be used")
            return
        info = self._store.head(self._key)
        if info.size != self.file.size:
            raise IntegrityError(f"{self._store.uri}/{self._key} has {info.size} bytes, but {self.file.size} were sent")
        self._end(digests, info.etag, part_bytes=self._context.plan.part_bytes[self.file.key])

    def abort_if_bad(self) -> None:
        if self._bad and self._upload_id:
            self._store.abort_upload(self._key, self._upload_id)

    def _verified_digests(self) -> Digests:
        digests = self.digest.finish()
        try:
            digests.check(self.file, label=self._source.label)
        except IntegrityError:
            self._bad = True
            raise
        return digests

    def _complete(self) -> bool:
        """Makes the parts an object; False when the multipart upload is gone and the object is not from this upload."""
        try:
            stored_parts = [part for _, part in sorted(self._stored_parts.items())]
            self._store.complete_upload(self._key, self._upload_id, stored_parts)
        except UploadNotFoundError:
            # The request may have succeeded before its reply was lost and it was repeated.
            try:
                info = self._store.head(self._key)
            except NotFoundError:
                return False
            return info.size == self.file.size and self._mark.items() <= info.metadata.items()
        return True

    def _end(self, digests: Digests, etag: str, *, part_bytes: int | None) -> None:
        stored = StoredObject(key=self.file.key, size=self.file.size, etag=etag, part_bytes=part_bytes)
        self._context.digests[self.file.key] = digests
        self.entry = self._record(digests, (stored,))
        self._progress.end(self.file.key, "sha256 ok" if self.file.sha256 else "ok")


class SegmentWriter:
    """Finds and stores segments for one upload. Thread-safe. `copies` is True until the store fails to copy a range."""

    def __init__(self, context: UploadContext) -> None:
        self.context = context
        self.store = context.store
        self.copies = True
        # The ETags that an earlier upload of this model saw. A segment with another ETag has been replaced since, and
        # is stored again.
        self._known = {stored.key: stored.etag for entry in context.plan.entries for stored in entry.objects}

    def start(self, file: ObjectInfo, submit: Callable[[Callable[[], None]], None]) -> UploadWork:
        """The work that stores a file's segments: copies them in the store if it has the file in one piece."""
        plain = self.context.whole[file.key].objects[0] if file.key in self.context.whole else None
        digests = self.context.digests.get(file.key)
        if plain and digests and self.copies and plain.size > PART_BYTES_MIN:
            return SegmentCopy(self, file, plain, digests)
        return SegmentUpload(self, file, plain, submit)

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
        """Lets the store copy `[start, stop)` of an object; None when it cannot, or the multipart upload is gone."""
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
    """`[start, stop)` of a file, while it is uploaded as a segment."""

    start: int
    stop: int
    ready: Countdown = field(init=False)  # reaches zero when the hash is known and all parts are in memory
    left: Countdown = field(init=False)  # reaches zero when all parts are sent
    # The bytes of each part by its number, and the function to call when they are no longer needed.
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
    """Lets the store copy a file's segments from the object in one piece. `entry` remains None if it cannot copy."""

    def __init__(self, writer: SegmentWriter, file: ObjectInfo, plain: StoredObject, digests: Digests) -> None:
        super().__init__(writer, file, plain)
        self._digests = digests
        self._ranges = list(pairwise((0, *(stop for stop, _ in digests.segments))))
        self.parts = tuple((start, start) for start, _ in self._ranges)  # empty: nothing is read
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
