"""A file on its way into the one object that holds it, part by part, resumable."""

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
from coldstream.places.source import Source, SourceFile
from coldstream.places.store import PendingUpload, Store, UploadPart
from coldstream.progress import Progress

SHA256_METADATA = "coldstream-sha256"
_MARK_METADATA = "coldstream-upload"


@dataclass(slots=True)
class Tally:
    """Counts what was sent. Thread-safe."""

    sent_bytes: int = 0
    parts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count
            self.parts += 1


class FileUpload:
    """One file on its way. Implements `FileWork`.

    Attributes:
        file: The file.
        entry: What was stored, once it is. None after the end when the multipart upload was lost: another run of the
            same upload, not yet aware that this one took over, completed or dropped it. Then the file starts over.
        digests: Its hashes, once it is stored.
        parts: As it is cut to be sent.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        file: SourceFile,
        *,
        name: str,
        part_bytes: int,
        object_bytes_max: int | None,
        pending: Sequence[PendingUpload],
        journal: JournalWriter,
        tally: Tally,
        progress: Progress,
    ) -> None:
        """Prepares.

        Args:
            store: Where to.
            source: Where from.
            file: The file.
            name: The model's.
            part_bytes: The size of all its parts but the last.
            object_bytes_max: Hash its segments of at most so many bytes too; None for a file without.
            pending: Unfinished uploads below the model; one of this file may be gone on with.
            journal: Told what is stored.
            tally: Told what was sent.
            progress: Who is told.
        """
        self.file = file
        self.size = file.size
        self.part_bytes = part_bytes
        self.parts = tuple(parts(self.size, self.part_bytes))
        self.entry: FileEntry | None = None
        self.digests: Digests | None = None
        self._key = f"{name}/{file.path}"
        self._store, self._source, self._journal = store, source, journal
        self._tally, self._progress = tally, progress
        self._pending = [upload.upload_id for upload in pending if upload.key == self._key]
        self._digest: OrderedDigest | None = None
        self._multipart = len(self.parts) > 1
        self._object_bytes_max = object_bytes_max
        self._upload_id: str | None = None
        self._bad = False
        self._lost = False
        self._kept: dict[int, UploadPart] = {}
        self._made: dict[int, UploadPart] = {}
        # What the finished object carries, so that it is recognised when the answer to completing it gets lost.
        self._mark = {SHA256_METADATA: file.sha256} if file.sha256 else {_MARK_METADATA: uuid.uuid4().hex}

    @property
    def digest(self) -> OrderedDigest:
        assert self._digest is not None
        return self._digest

    def prepare(self) -> None:
        stream = StreamDigest(
            self.file.path,
            self.size,
            git=self.file.git_blob_id is not None,
            object_bytes_max=self._object_bytes_max,
        )
        self._digest = OrderedDigest(stream)
        self._progress.begin(self.file.path, self.size)
        if self._multipart:
            self._upload_id, self._kept = self._resumable()
            if self._upload_id is None:
                self._upload_id = self._store.create_upload(self._key, metadata=self._mark)

    def fetch(self, start: int, view: memoryview) -> None:
        self._source.read_into(
            self.file, start, view, on_read=lambda count: self._progress.fetched(self.file.path, count)
        )

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        if not self._multipart:
            self._put_whole(view)
        elif not self._lost:
            self._put_part(index + 1, view)
        stored()

    def _put_part(self, number: int, view: memoryview) -> None:
        assert self._upload_id is not None
        kept = self._kept.get(number)
        if kept and kept.etag == self._store.part_etag(view):
            self._progress.stored(self.file.path, len(view))
            self._made[number] = kept
            return
        try:
            etag = self._store.put_part(self._key, self._upload_id, number, view, on_sent=self._on_sent)
        except UploadNotFoundError:
            self._lost = True
            return
        except ColdstreamError as exc:
            if not (kept and "NotImplemented" in exc.message):
                raise
            # This server (rclone) cannot replace a part that an earlier run stored from other bytes.
            self._bad = self._lost = True
            return
        self._tally.sent(len(view))
        self._made[number] = UploadPart(number, len(view), etag)

    def finish(self) -> None:
        if self._multipart:
            digests = self._verified()
            entry = digests.entry(self.file, ())
            if not self._lost:
                self._journal.add_durably(entry)
                self._lost = not self._complete()
            if self._lost:
                self._progress.end(self.file.path, "starts over: its unfinished upload is gone or of no use")
                return
            info = self._store.head(self._key)
            if info.size != self.size:
                raise IntegrityError(f"{self._store.uri}/{self._key} has {info.size} bytes, {self.size} were sent")
            self._note(digests, info.etag)
        self._progress.end(self.file.path, "sha256 ok" if self.file.sha256 else "ok")

    def abort_if_bad(self) -> None:
        """Drops the parts of a file that turned out to be wrong: no later run could use them."""
        if self._bad and self._upload_id:
            self._store.abort_upload(self._key, self._upload_id)

    def _put_whole(self, view: memoryview) -> None:
        digests = self._verified()
        mark = {SHA256_METADATA: digests.sha256}
        etag = self._store.put(self._key, view, metadata=mark, on_sent=self._on_sent)
        self._tally.sent(len(view))
        self._note(digests, etag)

    def _resumable(self) -> tuple[str | None, dict[int, UploadPart]]:
        """The unfinished upload of this object with the most parts that fit, and those parts; else (None, {})."""
        best: tuple[str | None, dict[int, UploadPart]] = (None, {})
        expected = {n: stop - start for n, (start, stop) in enumerate(parts(self.size, self.part_bytes), start=1)}
        for upload_id in self._pending:
            try:
                stored = self._store.parts(self._key, upload_id)
            except UploadNotFoundError:
                continue
            # All parts but the last must be of one size, so an upload that was cut otherwise is of no use.
            if stored and len(stored) > len(best[1]) and all(expected.get(part.number) == part.size for part in stored):
                best = (upload_id, {part.number: part for part in stored})
        return best

    def _verified(self) -> Digests:
        """The file's hashes, equal to what the source promised.

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
        """Makes the parts an object; False when the multipart upload is gone and the object is not of this one."""
        assert self._upload_id is not None
        ordered = [self._made[number] for number in sorted(self._made)]
        try:
            self._store.complete_upload(self._key, self._upload_id, ordered)
        except UploadNotFoundError:
            # It may have worked although the answer was lost, and was then repeated.
            try:
                info = self._store.head(self._key)
            except NotFoundError:
                return False
            return info.size == self.size and self._mark.items() <= info.metadata.items()
        return True

    def _note(self, digests: Digests, etag: str) -> None:
        stored = StoredObject(
            key=self.file.path, size=self.size, etag=etag, part_bytes=self.part_bytes if self._multipart else None
        )
        self.digests = digests
        self.entry = digests.entry(self.file, (stored,))
        self._journal.add(self.entry)

    def _on_sent(self, count: int) -> None:
        self._progress.stored(self.file.path, count)
