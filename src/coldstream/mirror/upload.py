"""Upload: a model from its source into the store, through memory alone, verified, resumable.

`plan_upload` looks and decides, and writes nothing; `upload` does it. Killed at any point and run again it goes on:

- The journal (see `records`) says which files are stored, with their hashes; those are kept.
- Of a file that was under way, parts already stored are kept if they hold the source's bytes: the bytes are read from
  the source again, which the whole-file hash needs anyway, and only what is missing or different is sent.
- A file becomes an object only after its hash equals what the source promised; the manifest comes last.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from coldstream import manifest
from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    UploadNotFoundError,
    UsageError,
)
from coldstream.manifest import FileEntry, Manifest, StoredObject
from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest
from coldstream.mirror.pump import CONNECTIONS, MEMORY_BYTES, Pump
from coldstream.mirror.records import JournalWriter, read_record, record_key
from coldstream.paths import KEY_BYTES_MAX, MANIFEST_NAME, checked_name
from coldstream.plan import PART_BYTES, part_bytes_for, part_count, parts
from coldstream.progress import Progress
from coldstream.selection import INDEX_NAME, is_weights, select
from coldstream.source import Source, SourceFile
from coldstream.store import ObjectInfo, Part, PendingUpload, Store
from coldstream.units import MIB

# The largest index seen is 12 MB (a model of 160 shards); more is no index.
_INDEX_BYTES_MAX = 64 * MIB
_SHA256_METADATA = "coldstream-sha256"
_MARK_METADATA = "coldstream-upload"
# A file whose unfinished multipart upload vanishes, or cannot be used after all, is sent anew, and once more.
_ROUNDS_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlan:
    """What an upload will do.

    Attributes:
        name: The model's name in the store.
        label: The source, for people.
        source: The source, for the manifest.
        files: All files of the model.
        part_bytes: Path to part size.
        skipped: Path to why it is left out.
        skipped_bytes: Path to size of what is left out.
        kept: Path to entry, for files whose bytes are in the store already.
        stale: Keys, relative to the model, of objects of an earlier revision that are not part of it any more.
        pending: Unfinished multipart uploads below the model, to be continued or dropped.
        state: What the store holds now: "absent", "foreign", "uploading" or "ready".
        up_to_date: Whether there is nothing at all to do.
        etag: The manifest object's present version, None when there is none.
        entries: What the present manifest or journal says.
    """

    name: str
    label: str
    source: manifest.Source
    files: tuple[SourceFile, ...]
    part_bytes: Mapping[str, int]
    skipped: Mapping[str, str]
    skipped_bytes: Mapping[str, int]
    kept: Mapping[str, FileEntry]
    stale: tuple[str, ...]
    pending: tuple[PendingUpload, ...]
    state: str
    up_to_date: bool
    etag: str | None
    entries: tuple[FileEntry, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole model."""
        return sum(file.size for file in self.files)

    @property
    def to_send(self) -> tuple[SourceFile, ...]:
        """The files whose bytes are not in the store yet."""
        return tuple(file for file in self.files if file.path not in self.kept)

    @property
    def shards(self) -> int:
        """How many files are weights."""
        return sum(is_weights(file.path) for file in self.files)

    @property
    def parts(self) -> int:
        """How many parts or single objects are to be sent."""
        return sum(part_count(file.size, self.part_bytes[file.path]) for file in self.to_send)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadReport:
    """What an upload did.

    Attributes:
        name: The model's name in the store.
        digest: The manifest's digest, which names this version; None when it was up to date.
        files: Files of the model.
        bytes: Bytes of the model.
        sent_files: Files that were sent, wholly or in part.
        sent_bytes: Bytes that were sent.
        kept_bytes: Bytes that were in the store already, parts of files included.
        parts: Parts and single objects sent.
        seconds: From the first request to the manifest.
        retries: Requests that were repeated.
        conditional: Whether the store honours conditional writes.
    """

    name: str
    digest: str | None
    files: int
    bytes: int
    sent_files: int
    sent_bytes: int
    kept_bytes: int
    parts: int
    seconds: float
    retries: int
    conditional: bool


def plan_upload(
    store: Store,
    source: Source,
    name: str,
    *,
    include: Sequence[str] = (),
    also: Sequence[str] = (),
    exclude: Sequence[str] = (),
    part_bytes: int = PART_BYTES,
) -> UploadPlan:
    """Looks at the source and the store and decides. Writes nothing.

    Raises:
        UsageError: The name is unusable or lies in or around another model, or no weights are left to upload.
        IntegrityError: The source is inconsistent, or a file's name is refused.
        And what the source and the store raise.
    """
    checked_name(name)
    every = {file.path: file for file in source.files()}
    index = source.read(every[INDEX_NAME], bytes_max=_INDEX_BYTES_MAX) if INDEX_NAME in every else None
    selection = select(every, index=index, include=include, also=also, exclude=exclude)
    files = tuple(every[path] for path in selection.chosen)
    for file in files:
        if len(f"{store.uri}/{name}/{file.path}".encode()) > KEY_BYTES_MAX:
            raise UsageError(f"{name}/{file.path[:80]}… makes a key longer than {KEY_BYTES_MAX} bytes")
    _refuse_nesting(store, name)
    # Before the record is read: if that is ready, these belong to nobody any more.
    pending = tuple(store.uploads(f"{name}/"))
    listing = {info.key.removeprefix(f"{name}/"): info for info in store.list(f"{name}/")}
    found = read_record(store, name)
    record = found[0] if found else None
    entries = record.files if record else ()
    kept = _kept(store, source, name, files, entries, listing)
    chosen = set(selection.chosen)
    stale = {stored.key for entry in entries if entry.path not in chosen for stored in entry.objects}
    complete = isinstance(record, Manifest) and len(kept) == len(files) == len(record.files)
    return UploadPlan(
        name=name,
        label=source.label,
        source=source.record,
        files=files,
        part_bytes={file.path: part_bytes_for(file.size, wanted=part_bytes) for file in files},
        skipped=selection.skipped,
        skipped_bytes={path: every[path].size for path in selection.skipped},
        kept=kept,
        stale=tuple(sorted(key for key in stale if key in listing and key not in chosen)),
        pending=pending,
        state=record.state if record else "foreign" if listing else "absent",
        up_to_date=complete and isinstance(record, Manifest) and record.source == source.record,
        etag=found[1] if found else None,
        entries=entries,
    )


def upload(
    store: Store,
    source: Source,
    plan: UploadPlan,
    *,
    progress: Progress | None = None,
    connections: int = CONNECTIONS,
    memory_bytes: int = MEMORY_BYTES,
) -> UploadReport:
    """Carries the plan out. `store.retry.cancel` must be the source's too.

    Raises:
        IntegrityError: A file is not what the source promised; its upload is aborted, the model is not ready.
        ConflictError: Another upload of the same model took over, or objects were changed meanwhile.
        And what the source and the store raise. What was stored stays, for the next run to go on from.
    """
    began = time.monotonic()
    progress = progress or Progress()
    tally = _Tally()
    journal = JournalWriter(
        store,
        name=plan.name,
        source=plan.source,
        planned=(len(plan.files), plan.size, plan.shards),
        entries=[plan.kept.get(entry.path, entry) for entry in plan.entries],
        etag=plan.etag,
    )
    digest = None
    if plan.up_to_date:
        for orphan in plan.pending:
            store.abort_upload(orphan.key, orphan.upload_id)
    else:
        digest = _transfer(store, source, plan, journal, tally, progress, connections, memory_bytes)
    return UploadReport(
        name=plan.name,
        digest=digest,
        files=len(plan.files),
        bytes=plan.size,
        sent_files=len(plan.to_send),
        sent_bytes=tally.sent_bytes,
        kept_bytes=plan.size - tally.sent_bytes,
        parts=tally.parts,
        seconds=time.monotonic() - began,
        retries=store.retry.count,
        conditional=journal.conditional,
    )


def _transfer(
    store: Store,
    source: Source,
    plan: UploadPlan,
    journal: JournalWriter,
    tally: _Tally,
    progress: Progress,
    connections: int,
    memory_bytes: int,
) -> str:
    journal.open()
    if not journal.conditional:
        progress.say("this store ignores conditional writes: do not upload one model from two places at once")
    for path in plan.kept:
        progress.begin(path, 0)
        progress.end(path, "kept")
    entries = dict(plan.kept)
    pending = plan.pending
    for _ in range(_ROUNDS_MAX):
        files = [file for file in plan.to_send if file.path not in entries]
        works = [_FileUpload(store, source, plan, file, pending, journal, tally, progress) for file in files]
        try:
            Pump(cancel=store.retry.cancel, connections=connections, memory_bytes=memory_bytes).run(
                works, tick=journal.flush_if_due
            )
        except BaseException:
            _last_words(store, journal, works)
            raise
        entries |= {work.file.path: work.entry for work in works if work.entry}
        # Nothing may be dropped any more that an upload which took over goes on from.
        journal.check()
        if len(entries) == len(plan.files):
            break
        for work in works:
            work.abort_if_bad()
        pending = ()
    else:
        raise ConflictError(
            f"something else drops the unfinished uploads below {store.uri}/{plan.name}",
            hint="run the same command again; it keeps what is stored",
        )
    _clean(store, plan)
    _check_objects(store, plan.name, entries)
    return journal.commit(entries.values())


def _last_words(store: Store, journal: JournalWriter, works: Sequence[_FileUpload]) -> None:
    """After a failure: notes what is stored, so that the next run keeps it. Best effort; the failure is the news."""
    with store.retry.shielded():
        for work in works:
            work.abort_if_bad()
        with suppress(ColdstreamError):
            journal.flush()


def _clean(store: Store, plan: UploadPlan) -> None:
    """Removes what an earlier revision or a killed upload left. The model is not ready at this moment."""
    store.delete([f"{plan.name}/{key}" for key in plan.stale])
    for pending in store.uploads(f"{plan.name}/"):
        store.abort_upload(pending.key, pending.upload_id)


def _check_objects(store: Store, name: str, entries: Mapping[str, FileEntry]) -> None:
    """Compares what is about to be declared ready with what is there now."""
    listing = {info.key.removeprefix(f"{name}/"): info for info in store.list(f"{name}/")}
    for entry in entries.values():
        if _present(store, name, entry, listing) is None:
            raise ConflictError(
                f"{store.uri}/{name}/{entry.path} was changed while the upload ran",
                hint=f"run the same command again; is something else writing to {name}?",
            )


class _FileUpload:
    """One file on its way. Implements `FileWork`.

    Attributes:
        entry: What was stored, once it is. None after the end when the multipart upload was lost: another run of the
            same upload, not yet aware that this one took over, completed or dropped it. Then the file starts over.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        plan: UploadPlan,
        file: SourceFile,
        pending: Sequence[PendingUpload],
        journal: JournalWriter,
        tally: _Tally,
        progress: Progress,
    ) -> None:
        self.file = file
        self.size = file.size
        self.part_bytes = plan.part_bytes[file.path]
        self.entry: FileEntry | None = None
        self._key = f"{plan.name}/{file.path}"
        self._store, self._source, self._journal = store, source, journal
        self._tally, self._progress = tally, progress
        self._pending = [upload.upload_id for upload in pending if upload.key == self._key]
        self._digest: OrderedDigest | None = None
        self._multipart = part_count(self.size, self.part_bytes) > 1
        self._upload_id: str | None = None
        self._bad = False
        self._lost = False
        self._kept: dict[int, Part] = {}
        self._parts: dict[int, Part] = {}
        # What the finished object carries, so that it is recognised when the answer to completing it gets lost.
        self._mark = {_SHA256_METADATA: file.sha256} if file.sha256 else {_MARK_METADATA: uuid.uuid4().hex}

    @property
    def digest(self) -> OrderedDigest:
        assert self._digest is not None
        return self._digest

    def prepare(self) -> None:
        self._digest = OrderedDigest(StreamDigest(self.file.path, self.size, git=self.file.git_blob_id is not None))
        self._progress.begin(self.file.path, self.size)
        if self._multipart:
            self._upload_id, self._kept = self._resumable()
            if self._upload_id is None:
                self._upload_id = self._store.create_upload(self._key, metadata=self._mark)

    def fetch(self, start: int, view: memoryview) -> None:
        self._source.read_into(
            self.file, start, view, on_read=lambda count: self._progress.fetched(self.file.path, count)
        )

    def store(self, index: int, start: int, view: memoryview) -> None:
        if not self._multipart:
            self._put_whole(view)
            return
        if self._lost:
            return
        assert self._upload_id is not None
        number = index + 1
        kept = self._kept.get(number)
        if kept and kept.etag == self._store.part_etag(view):
            self._progress.stored(self.file.path, len(view))
            self._parts[number] = kept
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
        self._parts[number] = Part(number, len(view), etag)

    def finish(self) -> None:
        if self._multipart:
            entry = self._entry(self._verified(), ())
            if not self._lost:
                self._journal.add_durably(entry)
                self._lost = not self._complete()
            if self._lost:
                self._progress.end(self.file.path, "starts over: its unfinished upload is gone or of no use")
                return
            info = self._store.head(self._key)
            if info.size != self.size:
                raise IntegrityError(f"{self._store.uri}/{self._key} has {info.size} bytes, {self.size} were sent")
            self._note(entry, info.etag)
        self._progress.end(self.file.path, "sha256 ok" if self.file.sha256 else "ok")

    def abort_if_bad(self) -> None:
        """Drops the parts of a file that turned out to be wrong: no later run could use them."""
        if self._bad and self._upload_id:
            self._store.abort_upload(self._key, self._upload_id)

    def _put_whole(self, view: memoryview) -> None:
        digests = self._verified()
        mark = {_SHA256_METADATA: digests.sha256}
        etag = self._store.put(self._key, view, metadata=mark, on_sent=self._on_sent)
        self._tally.sent(len(view))
        self._note(self._entry(digests, ()), etag)

    def _resumable(self) -> tuple[str | None, dict[int, Part]]:
        """The unfinished upload of this object with the most parts that fit, and those parts; else (None, {})."""
        best: tuple[str | None, dict[int, Part]] = (None, {})
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
        for kind, promised, found in (
            ("SHA-256", self.file.sha256, digests.sha256),
            ("git blob id", self.file.git_blob_id, digests.git_blob_id),
        ):
            if promised is not None and promised != found:
                self._bad = True
                raise IntegrityError(
                    f"{self.file.path}: its {kind} is {(found or '')[:12]}…, "
                    f"{self._source.label} promises {promised[:12]}…",
                    hint="run the same command again; if it stays, a proxy or a mirror (HF_ENDPOINT) alters the bytes",
                )
        return digests

    def _complete(self) -> bool:
        """Makes the parts an object; False when the multipart upload is gone and the object is not of this one."""
        assert self._upload_id is not None
        ordered = [self._parts[number] for number in sorted(self._parts)]
        try:
            self._store.complete_upload(self._key, self._upload_id, ordered)
        except UploadNotFoundError:
            # It may have worked although the answer was lost, and was then repeated.
            try:
                info = self._store.head(self._key)
            except NotFoundError as exc:
                if type(exc) is not NotFoundError:
                    raise
                return False
            return info.size == self.size and self._mark.items() <= info.metadata.items()
        return True

    def _entry(self, digests: Digests, objects: tuple[StoredObject, ...]) -> FileEntry:
        return FileEntry(
            path=self.file.path,
            size=self.size,
            sha256=digests.sha256,
            git_blob_id=self.file.git_blob_id,
            objects=objects,
            chunks=digests.chunks,
        )

    def _note(self, entry: FileEntry, etag: str) -> None:
        stored = StoredObject(
            key=self.file.path, size=self.size, etag=etag, part_bytes=self.part_bytes if self._multipart else None
        )
        self.entry = msgspec.structs.replace(entry, objects=(stored,))
        self._journal.add(self.entry)

    def _on_sent(self, count: int) -> None:
        self._progress.stored(self.file.path, count)


@dataclass(slots=True)
class _Tally:
    """Counts what was sent. Thread-safe."""

    sent_bytes: int = 0
    parts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count
            self.parts += 1


def _refuse_nesting(store: Store, name: str) -> None:
    """A model inside another could not be listed or removed by itself."""
    segments = name.split("/")
    for depth in range(1, len(segments)):
        outer = "/".join(segments[:depth])
        try:
            store.head(record_key(outer))
        except NotFoundError as exc:
            if type(exc) is not NotFoundError:
                raise
            continue
        raise UsageError(f"{name} would lie inside the model {outer}", hint="choose another name with --as")
    own = record_key(name)
    inner = next((i.key for i in store.list(f"{name}/") if i.key.endswith(f"/{MANIFEST_NAME}") and i.key != own), None)
    if inner:
        raise UsageError(
            f"{name} would contain the model {inner.removesuffix(f'/{MANIFEST_NAME}')}",
            hint="choose another name with --as",
        )


def _kept(
    store: Store,
    source: Source,
    name: str,
    files: Sequence[SourceFile],
    entries: Sequence[FileEntry],
    listing: Mapping[str, ObjectInfo],
) -> dict[str, FileEntry]:
    """The files that need not be sent: stored in the version that the record names, with the source's content."""
    recorded = {entry.path: entry for entry in entries}
    kept = {}
    for file in files:
        entry = recorded.get(file.path)
        present = _present(store, name, entry, listing) if entry else None
        if present and _same(source, file, present):
            kept[file.path] = present
    return kept


def _present(store: Store, name: str, entry: FileEntry, listing: Mapping[str, ObjectInfo]) -> FileEntry | None:
    """The entry with its objects, if all of them are in the store in the version that was verified; else None."""
    if not entry.objects:
        return _completed(store, name, entry, listing)
    for stored in entry.objects:
        info = listing.get(stored.key)
        if info is None or info.size != stored.size or (info.etag and info.etag != stored.etag):
            return None
    return entry


def _completed(store: Store, name: str, entry: FileEntry, listing: Mapping[str, ObjectInfo]) -> FileEntry | None:
    """An entry noted just before its object was completed: did that happen before the kill?"""
    info = listing.get(entry.path)
    if info is None or info.size != entry.size:
        return None
    info = store.head(f"{name}/{entry.path}")
    if info.metadata.get(_SHA256_METADATA) != entry.sha256:
        return None
    stored = StoredObject(key=entry.path, size=info.size, etag=info.etag)
    return msgspec.structs.replace(entry, objects=(stored,))


def _same(source: Source, file: SourceFile, entry: FileEntry) -> bool:
    """Whether the stored file has the source's content, by hash."""
    if file.size != entry.size:
        return False
    if file.sha256 is not None:
        return file.sha256 == entry.sha256
    if file.git_blob_id is not None and entry.git_blob_id is not None:
        return file.git_blob_id == entry.git_blob_id
    digest = hashlib.sha256()
    for piece in _read(source, file):
        digest.update(piece)
    return digest.hexdigest() == entry.sha256


def _read(source: Source, file: SourceFile, piece_bytes: int = 16 * MIB) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(piece_bytes, file.size)))
    for start, stop in parts(file.size, piece_bytes):
        source.read_into(file, start, buffer[: stop - start])
        yield buffer[: stop - start]
