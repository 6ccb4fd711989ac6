"""Uploads a file as one object, part by part. An interrupted upload resumes with the parts that are stored."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coldstream.errors import ColdstreamError, IntegrityError, NotFoundError, UploadNotFoundError
from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest
from coldstream.mirror.manifest_records import JournalWriter
from coldstream.model.chunks import parts
from coldstream.model.manifest import FileEntry, StoredObject
from coldstream.places.place import ObjectInfo, PendingUpload, Snapshot, Store, UploadPart
from coldstream.progress import Progress

SHA256_METADATA = "coldstream-sha256"
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


class FileUpload:
    """The upload of one file as one object. Implements `FileWork`.

    Attributes:
        entry: The file's manifest entry once it is stored. Still None at the end if the multipart upload was lost:
            another run of the same upload, not yet aware that this one took over, completed or aborted it. Then the
            file starts over.
        digests: Its hashes, once it is stored.
    """

    def __init__(
        self,
        store: Store,
        source: Snapshot,
        file: ObjectInfo,
        *,
        name: str,
        part_bytes: int,
        object_bytes_max: int | None,
        pending: Sequence[PendingUpload],
        journal: JournalWriter,
        counts: UploadCounts,
        progress: Progress,
    ) -> None:
        """Prepares the upload; sends nothing.

        Args:
            name: The model's name.
            part_bytes: The size of every part but the last.
            object_bytes_max: Also hash the file's segments of at most this many bytes; None without segments.
            pending: Unfinished multipart uploads below the model, from which this one may resume.
        """
        self.file = file
        self.size = file.size
        self.part_bytes = part_bytes
        self.parts = tuple(parts(self.size, self.part_bytes))
        self.entry: FileEntry | None = None
        self.digests: Digests | None = None
        self._key = f"{name}/{file.key}"
        self._store, self._source, self._journal = store, source, journal
        self._counts, self._progress = counts, progress
        self._pending = [upload.upload_id for upload in pending if upload.key == self._key]
        self._digest: OrderedDigest | None = None
        self._multipart = len(self.parts) > 1
        self._object_bytes_max = object_bytes_max
        self._upload_id: str | None = None
        self._bad = False
        self._lost = False
        self._earlier_parts: dict[int, UploadPart] = {}
        self._stored_parts: dict[int, UploadPart] = {}
        # The finished object carries this, so that it can be recognized when the reply to its completion is lost.
        self._mark = {SHA256_METADATA: file.sha256} if file.sha256 else {_MARK_METADATA: uuid.uuid4().hex}

    @property
    def digest(self) -> OrderedDigest:
        assert self._digest is not None
        return self._digest

    def prepare(self) -> None:
        stream = StreamDigest(
            self.file.key,
            self.size,
            git=self.file.git_blob_id is not None,
            object_bytes_max=self._object_bytes_max,
        )
        self._digest = OrderedDigest(stream)
        self._progress.begin(self.file.key, self.size)
        if self._multipart:
            self._upload_id, self._earlier_parts = self._resumable()
            if self._upload_id is None:
                self._upload_id = self._store.create_upload(self._key, metadata=self._mark)

    def fetch(self, start: int, view: memoryview) -> None:
        fetch_from_source(self._source, self.file, start, view, self._progress)

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
        except ColdstreamError as exc:
            if not (earlier and "NotImplemented" in exc.message):
                raise
            # This server (rclone) cannot replace a part that an earlier run stored with other bytes.
            self._bad = self._lost = True
            return
        self._counts.add(sent_bytes=len(view), parts=1)
        self._stored_parts[number] = UploadPart(number, len(view), etag)

    def finish(self) -> None:
        if self._multipart:
            digests = self._verified_digests()
            if not self._lost:
                # In the journal before the object exists: a run that is killed in between leaves a trace of it.
                self._journal.add_durably(digests.entry(self.file, ()))
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
        """Aborts the multipart upload of a file with wrong content: no later run could use its parts."""
        if self._bad and self._upload_id:
            self._store.abort_upload(self._key, self._upload_id)

    def _put_object(self, view: memoryview) -> None:
        digests = self._verified_digests()
        metadata = {SHA256_METADATA: digests.sha256}
        etag = self._store.put(self._key, view, metadata=metadata, on_sent=self._on_sent)
        self._counts.add(sent_bytes=len(view), parts=1)
        self._record(digests, etag)

    def _resumable(self) -> tuple[str | None, dict[int, UploadPart]]:
        """Returns the unfinished upload of this object with the most usable parts, and those parts, or (None, {})."""
        best: tuple[str | None, dict[int, UploadPart]] = (None, {})
        expected = {n: stop - start for n, (start, stop) in enumerate(parts(self.size, self.part_bytes), start=1)}
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
        """Returns the file's hashes, checked against the source.

        Raises:
            IntegrityError: They differ.
        """
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
        self._journal.add(self.entry)

    def _on_sent(self, count: int) -> None:
        self._progress.stored(self.file.key, count)


def fetch_from_source(source: Snapshot, file: ObjectInfo, start: int, view: memoryview, progress: Progress) -> None:
    """Fills `view` with the file's bytes from `start`, and reports the progress."""
    source.read_into(
        file.key,
        start,
        view,
        if_match=file.etag or None,
        on_read=lambda count: progress.fetched(file.key, count),
    )
