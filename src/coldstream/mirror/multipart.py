"""Uploads a file as one object, part by part. An interrupted upload resumes with the parts that are stored."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from coldstream.errors import IntegrityError, NotFoundError, UnsupportedError, UploadNotFoundError
from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest
from coldstream.mirror.manifest_records import JournalWriter
from coldstream.mirror.pump import FileWork
from coldstream.mirror.upload_plan import SHA256_METADATA, UploadPlan, UploadReport
from coldstream.model.chunks import parts
from coldstream.model.manifest import FileEntry, StoredObject
from coldstream.places.place import ObjectInfo, Snapshot, Store, UploadPart
from coldstream.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadContext:
    """What the works of one upload share.

    `whole` and `segmented` are as in the plan, and grow as files are stored. `digests` are those of the files that were
    sent in one piece, by path.
    """

    store: Store
    source: Snapshot
    plan: UploadPlan
    journal: JournalWriter
    report: UploadReport
    progress: Progress
    connections: int
    memory_bytes: int
    whole: dict[str, FileEntry]
    segmented: dict[str, FileEntry]
    digests: dict[str, Digests] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, **counts: int) -> None:
        """Adds to counts of the report. Thread-safe."""
        with self._lock:
            for name, count in counts.items():
                setattr(self.report, name, getattr(self.report, name) + count)


class UploadWork(FileWork):
    """Uploads one file. `entry` is its manifest entry once it is stored.

    It is still None at the end if an unfinished multipart upload was lost: another run of the same upload, unaware
    that this one took over, completed or aborted it. Then the file starts over.
    """

    parts: tuple[tuple[int, int], ...] = ()
    digest: OrderedDigest | None = None

    def __init__(self, context: UploadContext, file: ObjectInfo) -> None:
        self.file = file
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
        """Adds the file, stored in these objects, to the journal."""
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
        if len(self.parts) > 1:
            self._find_earlier_parts()
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

    def _find_earlier_parts(self) -> None:
        """Chooses the unfinished upload of this object with the most usable parts."""
        expected = {n: stop - start for n, (start, stop) in enumerate(self.parts, start=1)}
        for upload_id in self._pending:
            try:
                stored = self._store.parts(self._key, upload_id)
            except UploadNotFoundError:
                continue
            # All parts but the last must have one size, so an upload with another part size cannot be used.
            if len(stored) > len(self._earlier_parts) and all(expected.get(p.number) == p.size for p in stored):
                self._upload_id, self._earlier_parts = upload_id, {part.number: part for part in stored}

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
