"""Uploads a file as one object, part by part. An interrupted upload resumes with the parts that are stored."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from coldstream.errors import IntegrityError, NotFoundError, UnsupportedError, UploadNotFoundError
from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest
from coldstream.mirror.manifest_records import JournalWriter
from coldstream.mirror.pump import PartDigest
from coldstream.mirror.upload_plan import SHA256_METADATA, UploadPlan
from coldstream.model.chunks import parts
from coldstream.model.manifest import FileEntry, StoredObject
from coldstream.places.place import ObjectInfo, Snapshot, Store, UploadPart
from coldstream.progress import Progress

_MARK_METADATA = "coldstream-upload"


@dataclass(slots=True)
class UploadCounts:
    """Counts what an upload stores. Thread-safe.

    Attributes:
        sent_bytes: Bytes sent from here.
        parts: Parts and single objects sent from here.
        sent_segments: Segments sent from here.
        copied_segments: Segments that the store made from a file that it had in one piece.
        kept_segments: Segments that the store already had.
    """

    sent_bytes: int = 0
    parts: int = 0
    sent_segments: int = 0
    copied_segments: int = 0
    kept_segments: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Adds to several counts at once."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadContext:
    """What the works of one upload share."""

    store: Store
    source: Snapshot
    plan: UploadPlan
    journal: JournalWriter
    counts: UploadCounts
    progress: Progress


class UploadWork:
    """Uploads one file. The subclasses implement `FileWork`.

    Attributes:
        entry: The file's manifest entry once it is stored. Still None at the end if an unfinished multipart upload was
            lost: another run of the same upload, not yet aware that this one took over, completed or aborted it. Then
            the file starts over.
    """

    parts: tuple[tuple[int, int], ...]
    digest: PartDigest

    def __init__(self, context: UploadContext, file: ObjectInfo) -> None:
        self.file = file
        self.entry: FileEntry | None = None
        self._context = context
        self._store, self._source, self._progress = context.store, context.source, context.progress

    def fetch(self, start: int, view: memoryview) -> None:
        key = self.file.key
        self._source.read_into(
            key,
            start,
            view,
            if_match=self.file.etag or None,
            on_read=lambda count: self._progress.fetched(key, count),
        )

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


class FileUpload(UploadWork):
    """Uploads one file as one object.

    Attributes:
        digests: The file's hashes, once it is stored.
    """

    digest: OrderedDigest

    def __init__(self, context: UploadContext, file: ObjectInfo, *, resume: bool) -> None:
        """Prepares the upload; sends nothing.

        Args:
            resume: Whether to continue an unfinished multipart upload of the plan.
        """
        super().__init__(context, file)
        plan = context.plan
        self.size = file.size
        self.part_bytes = plan.part_bytes[file.key]
        self.parts = tuple(parts(self.size, self.part_bytes))
        self.digest = self._new_digest()
        self.digests: Digests | None = None
        self._key = f"{plan.name}/{file.key}"
        self._pending = [upload.upload_id for upload in plan.pending if resume and upload.key == self._key]
        self._multipart = len(self.parts) > 1
        self._upload_id: str | None = None
        self._bad = False
        self._lost = False
        self._earlier_parts: dict[int, UploadPart] = {}
        self._stored_parts: dict[int, UploadPart] = {}
        # The finished object carries this, so that it can be recognized when the reply to its completion is lost.
        self._mark = {SHA256_METADATA: file.sha256} if file.sha256 else {_MARK_METADATA: uuid.uuid4().hex}

    def prepare(self) -> None:
        self._progress.begin(self.file.key, self.size)
        if self._multipart:
            self._upload_id, self._earlier_parts = self._resumable()
            if self._upload_id is None:
                self._upload_id = self._store.create_upload(self._key, metadata=self._mark)

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        if not self._multipart:
            self._put_object(view)
        elif not self._lost:
            self._put_part(index + 1, view)
        stored()

    def _put_part(self, number: int, view: memoryview) -> None:
        assert self._upload_id is not None
        earlier = self._earlier_parts.get(number)
        if earlier and earlier.etag == self._store.part_etag(view):
            self._progress.stored(self.file.key, len(view))
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
        self._context.counts.add(sent_bytes=len(view), parts=1)
        self._stored_parts[number] = UploadPart(number, len(view), etag)

    def finish(self) -> None:
        if self._multipart:
            digests = self._verified_digests()
            if not self._lost:
                # In the journal before the object exists: a run that is killed in between leaves a trace of it.
                self._context.journal.add(digests.entry(self.file, ()), durable=True)
                self._lost = not self._complete()
            if self._lost:
                self._progress.end(self.file.key, "starting over: the unfinished upload cannot be used")
                return
            info = self._store.head(self._key)
            if info.size != self.size:
                raise IntegrityError(f"{self._store.uri}/{self._key} has {info.size} bytes, but {self.size} were sent")
            self._record(digests, info.etag)
        self._progress.end(self.file.key, "sha256 ok" if self.file.sha256 else "ok")

    def abort_if_bad(self) -> None:
        if self._bad and self._upload_id:
            self._store.abort_upload(self._key, self._upload_id)

    def _put_object(self, view: memoryview) -> None:
        digests = self._verified_digests()
        metadata = {SHA256_METADATA: digests.sha256}
        etag = self._store.put(self._key, view, metadata=metadata, on_sent=self._on_sent)
        self._context.counts.add(sent_bytes=len(view), parts=1)
        self._record(digests, etag)

    def _resumable(self) -> tuple[str | None, dict[int, UploadPart]]:
        """Returns the unfinished upload of this object with the most usable parts, and those parts, or (None, {})."""
        best: tuple[str | None, dict[int, UploadPart]] = (None, {})
        expected = {n: stop - start for n, (start, stop) in enumerate(self.parts, start=1)}
        for upload_id in self._pending:
            try:
                stored = self._store.parts(self._key, upload_id)
            except UploadNotFoundError:
                continue
            # All parts but the last must have one size, so an upload with another part size cannot be used.
            if stored and len(stored) > len(best[1]) and all(expected.get(part.number) == part.size for part in stored):
                best = (upload_id, {part.number: part for part in stored})
        return best

    def _verified_digests(self) -> Digests:
        """Returns the file's hashes, checked against the source."""
        digests = self.digest.finish()
        try:
            digests.check(self.file, label=self._source.label)
        except IntegrityError:
            self._bad = True
            raise
        return digests

    def _complete(self) -> bool:
        """Makes the parts an object; False when the multipart upload is gone and the object is not from this upload."""
        assert self._upload_id is not None
        ordered = [self._stored_parts[number] for number in sorted(self._stored_parts)]
        try:
            self._store.complete_upload(self._key, self._upload_id, ordered)
        except UploadNotFoundError:
            # The request may have succeeded before its reply was lost and it was repeated.
            try:
                info = self._store.head(self._key)
            except NotFoundError:
                return False
            return info.size == self.size and self._mark.items() <= info.metadata.items()
        return True

    def _record(self, digests: Digests, etag: str) -> None:
        stored = StoredObject(
            key=self.file.key, size=self.size, etag=etag, part_bytes=self.part_bytes if self._multipart else None
        )
        self.digests = digests
        self.entry = digests.entry(self.file, (stored,))
        self._context.journal.add(self.entry)
