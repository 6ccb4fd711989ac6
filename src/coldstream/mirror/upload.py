"""Upload: a model from its source into the store, through memory alone, verified, resumable.

`plan_upload` looks and decides, and writes nothing; `upload` does it. Killed at any point and run again it goes on:

- The journal (see `records`) says which files are stored, with their hashes; those are kept.
- Of a file that was under way, parts already stored are kept if they hold the source's bytes: the bytes are read from
  the source again, which the whole-file hash needs anyway, and only what is missing or different is sent.
- A file becomes an object only after its hash equals what the source promised; the manifest comes last.

Weights may be stored in segments (see `segments` and `pool`), with or without the file in one piece beside them. First
whatever is in one piece is sent, then the segments: made by the store from the piece that it has, or else sent.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

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
from coldstream.mirror.pool import ROOT, pool_listing, segment_keys, sweep
from coldstream.mirror.pump import CONNECTIONS, MEMORY_BYTES, FileWork, Pump
from coldstream.mirror.records import JournalWriter, read_record, record_key
from coldstream.mirror.segments import Pool, SegmentCopy, SegmentUpload, Whole
from coldstream.paths import KEY_BYTES_MAX, MANIFEST_NAME, checked_name
from coldstream.plan import (
    PART_BYTES,
    PART_BYTES_MIN,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    part_bytes_for,
    part_count,
    parts,
)
from coldstream.progress import Progress
from coldstream.selection import INDEX_NAME, is_weights, select
from coldstream.source import Source, SourceFile
from coldstream.store import ObjectInfo, Part, PendingUpload, Store
from coldstream.units import MIB, format_bytes, plural

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
        object_bytes_max: What weights are cut into segments by, or None for every file in one piece.
        plain: Whether files in segments are stored in one piece too.
        kept: Path to entry, for files that are in the store as they should be.
        whole: Path to entry, for files that lack their segments alone: the object that holds them in one piece.
        segments: Path to entry, for files that lack their piece alone: their segments.
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
    object_bytes_max: int | None
    plain: bool
    skipped: Mapping[str, str]
    skipped_bytes: Mapping[str, int]
    kept: Mapping[str, FileEntry]
    whole: Mapping[str, FileEntry]
    segments: Mapping[str, FileEntry]
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
    def to_send_whole(self) -> tuple[SourceFile, ...]:
        """The files that are to be sent in one piece."""
        return tuple(
            file
            for file in self.to_send
            if not is_segmented(file.path, self.object_bytes_max) or (self.plain and file.path not in self.whole)
        )

    @property
    def to_cut(self) -> tuple[SourceFile, ...]:
        """The files whose segments are to be stored, as far as the store lacks them."""
        return tuple(
            file
            for file in self.to_send
            if is_segmented(file.path, self.object_bytes_max) and file.path not in self.segments
        )

    @property
    def to_read_bytes(self) -> int:
        """How many bytes are to be read from the source, if the store can copy."""
        whole = self.to_send_whole
        return sum(file.size for file in whole) + sum(file.size for file in self.to_cut if file not in whole)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the model will take in the store; twice its weights if they are there in segments and whole."""
        twice = (file.size for file in self.files if self.plain and is_segmented(file.path, self.object_bytes_max))
        return self.size + sum(twice)

    @property
    def parts(self) -> int:
        """How many parts or single objects are to be sent or copied; of segments, about."""
        whole = sum(part_count(file.size, self.part_bytes[file.path]) for file in self.to_send_whole)
        return whole + sum(part_count(file.size, PART_BYTES) for file in self.to_cut) + self.segment_count // 2

    @property
    def segment_count(self) -> int:
        """About how many segments are to be looked for, and stored where they are missing."""
        if self.object_bytes_max is None:
            return 0
        return sum(2 + 2 * file.size // self.object_bytes_max for file in self.to_cut)


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
        kept_bytes: Bytes of the model that were not sent because the store has them: parts of files included.
        parts: Parts and single objects sent.
        sent_segments: Segments that were sent.
        copied_segments: Segments that the store made from the file in one piece.
        kept_segments: Segments that the store had, of this model or another, among files that changed.
        swept_segments: Segments that nobody refers to any more and that were deleted.
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
    sent_segments: int
    copied_segments: int
    kept_segments: int
    swept_segments: int
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
    object_bytes_max: int | None = None,
    plain: bool = True,
) -> UploadPlan:
    """Looks at the source and the store and decides. Writes nothing.

    Args:
        store: Where to.
        source: Where from.
        name: The model's, in the store.
        include: See `select`.
        also: See `select`.
        exclude: See `select`.
        part_bytes: Of files in one piece.
        object_bytes_max: Store weights in segments of at most so many bytes.
        plain: And in one piece too. Without `object_bytes_max` that is the only way.

    Raises:
        UsageError: The name is unusable or lies in or around another model, no weights are left to upload, or
            `object_bytes_max` is out of bounds.
        IntegrityError: The source is inconsistent, or a file's name is refused.
        And what the source and the store raise.
    """
    checked_name(name)
    if object_bytes_max is not None and not SEGMENT_BYTES_MIN <= object_bytes_max <= SEGMENT_BYTES_MAX:
        raise UsageError(
            f"a segment may have 1 MiB to 5 GiB, not {object_bytes_max} bytes",
            hint="480MiB is within what Cloudflare's CDN keeps (512 MB)",
        )
    if object_bytes_max is None and not plain:
        raise UsageError(
            "without segments a file is stored in one piece or not at all", hint="--object-bytes-max 480MiB"
        )
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
    look = _Look(store, source, name, listing | (pool_listing(store) if segment_keys(entries) else {}))
    recorded = {entry.path: entry for entry in entries}
    for file in files:
        if file.path in recorded:
            look.at(file, recorded[file.path], object_bytes_max=object_bytes_max, plain=plain)
    pieces = {file.path for file in files if plain or not is_segmented(file.path, object_bytes_max)}
    stale = {stored.key for entry in entries for stored in (*entry.objects, *([entry.plain] if entry.plain else ()))}
    complete = (
        isinstance(record, Manifest) and {*look.kept.values()} == {*record.files} and len(look.kept) == len(files)
    )
    return UploadPlan(
        name=name,
        label=source.label,
        source=source.record,
        files=files,
        part_bytes={file.path: part_bytes_for(file.size, wanted=part_bytes) for file in files},
        skipped=selection.skipped,
        skipped_bytes={path: every[path].size for path in selection.skipped},
        object_bytes_max=object_bytes_max,
        plain=plain,
        kept=look.kept,
        whole=look.whole,
        segments=look.segments,
        stale=tuple(sorted(key for key in stale if key in listing and key not in pieces)),
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
        UsageError: A segment does not fit into `memory_bytes`.
        IntegrityError: A file is not what the source promised; its upload is aborted, the model is not ready.
        ConflictError: Another upload of the same model took over, or objects were changed meanwhile.
        And what the source and the store raise. What was stored stays, for the next run to go on from.
    """
    began = time.monotonic()
    progress = progress or Progress()
    if plan.to_cut and plan.object_bytes_max is not None and plan.object_bytes_max > memory_bytes:
        raise UsageError(
            f"a segment of {format_bytes(plan.object_bytes_max)} does not fit into {format_bytes(memory_bytes)} of "
            "memory: its key is its hash, so it is held until that is known",
            hint="raise --memory (twice a segment lets one be read while another is sent), or lower --object-bytes-max",
        )
    tally = _Tally()
    pool = Pool(store, {s.key: s.etag for entry in plan.entries for s in entry.objects if s.key.startswith(f"/{ROOT}")})
    swept = 0
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
        transfer = _Transfer(store, source, plan, journal, tally, pool, progress, connections, memory_bytes)
        digest = transfer.run()
        swept = transfer.swept
    sent_bytes = tally.sent_bytes + pool.counts.sent_bytes
    return UploadReport(
        name=plan.name,
        digest=digest,
        files=len(plan.files),
        bytes=plan.size,
        sent_files=len(plan.to_send),
        sent_bytes=sent_bytes,
        kept_bytes=max(0, plan.size - sent_bytes),
        parts=tally.parts + pool.counts.parts,
        sent_segments=pool.counts.sent,
        copied_segments=pool.counts.copied,
        kept_segments=pool.counts.kept,
        swept_segments=swept,
        seconds=time.monotonic() - began,
        retries=store.retry.count,
        conditional=journal.conditional,
    )


class _Transfer:
    """One upload under way.

    Attributes:
        swept: How many segments went because nobody refers to them any more; known at the end.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        plan: UploadPlan,
        journal: JournalWriter,
        tally: _Tally,
        pool: Pool,
        progress: Progress,
        connections: int,
        memory_bytes: int,
    ) -> None:
        self.swept = 0
        self._store, self._source, self._plan = store, source, plan
        self._journal, self._tally, self._pool, self._progress = journal, tally, pool, progress
        self._connections, self._memory_bytes = connections, memory_bytes

    def run(self) -> str:
        """All of it; the manifest's digest."""
        store, plan, journal, progress = self._store, self._plan, self._journal, self._progress
        journal.open()
        if not journal.conditional:
            progress.say("this store ignores conditional writes: do not upload one model from two places at once")
        for path in plan.kept:
            progress.begin(path, 0)
            progress.end(path, "kept")
        whole = dict(plan.whole)
        digests = self._send_whole(whole)
        entries = dict(plan.kept)
        segments = dict(plan.segments)
        self._store_segments(segments, whole, digests)
        for file in plan.to_send:
            if is_segmented(file.path, plan.object_bytes_max):
                entries[file.path] = self._complete(segments[file.path], whole)
            else:
                entries[file.path] = whole[file.path]
        _clean(store, plan)
        entries = _checked_objects(store, plan.name, entries)
        digest = journal.commit(entries.values())
        if segment_keys(plan.entries) or segment_keys(entries.values()):
            self._sweep()
        return digest

    def _send_whole(self, whole: dict[str, FileEntry]) -> dict[str, Digests]:
        """Sends what is to be stored in one piece, notes it in `whole`, and returns the hashes of what was sent."""
        pending = [self._plan.pending]
        digests: dict[str, Digests] = {}

        def works(files: Sequence[SourceFile], _pump: Pump) -> list[_FileUpload]:
            found = [
                _FileUpload(
                    self._store,
                    self._source,
                    self._plan,
                    file,
                    pending[0],
                    self._journal,
                    self._tally,
                    self._progress,
                )
                for file in files
            ]
            pending[0] = ()
            return found

        for work in self._rounds(self._plan.to_send_whole, works, whole):
            assert work.digests is not None
            digests[work.file.path] = work.digests
        return digests

    def _store_segments(
        self, segments: dict[str, FileEntry], whole: Mapping[str, FileEntry], digests: Mapping[str, Digests]
    ) -> None:
        """Stores the segments that are missing, and notes the files' entries in `segments`."""

        def note(entry: FileEntry) -> None:
            self._journal.add(self._complete(entry, whole))

        def works(files: Sequence[SourceFile], pump: Pump) -> list[SegmentCopy | SegmentUpload]:
            return [
                self._segment_work(file, whole.get(file.path), digests.get(file.path), pump, note) for file in files
            ]

        for _ in self._rounds(self._plan.to_cut, works, segments):
            pass

    def _segment_work(
        self,
        file: SourceFile,
        whole: FileEntry | None,
        digests: Digests | None,
        pump: Pump,
        note: Callable[[FileEntry], None],
    ) -> SegmentCopy | SegmentUpload:
        limit = self._plan.object_bytes_max
        assert limit is not None
        origin = None
        # S3 copies no range of an object below 5 MiB.
        if whole and file.size > PART_BYTES_MIN:
            origin = Whole(f"{self._plan.name}/{whole.objects[0].key}", whole.objects[0].etag)
        if origin and digests and self._pool.copies:
            return SegmentCopy(
                self._pool,
                file,
                object_bytes_max=limit,
                whole=origin,
                digests=digests,
                note=note,
                progress=self._progress,
            )
        return SegmentUpload(
            self._pool,
            self._source,
            file,
            object_bytes_max=limit,
            whole=origin,
            submit=pump.submit,
            note=note,
            progress=self._progress,
        )

    def _complete(self, entry: FileEntry, whole: Mapping[str, FileEntry]) -> FileEntry:
        """A file in segments, with its piece if it has one."""
        beside = whole.get(entry.path) if self._plan.plain else None
        return msgspec.structs.replace(entry, plain=beside.objects[0] if beside else None)

    def _rounds(
        self,
        files: Sequence[SourceFile],
        works: Callable[[Sequence[SourceFile], Pump], list[W]],
        done: dict[str, FileEntry],
    ) -> Iterator[W]:
        """Moves files until all are stored, notes them in `done`, and yields the works that did it."""
        for _ in range(_ROUNDS_MAX):
            pump = Pump(cancel=self._store.retry.cancel, connections=self._connections, memory_bytes=self._memory_bytes)
            current = works([file for file in files if file.path not in done], pump)
            try:
                pump.run(current, tick=self._journal.flush_if_due)
            except BaseException:
                _last_words(self._store, self._journal, current)
                raise
            for work in current:
                if work.entry:
                    done[work.file.path] = work.entry
                    yield work
            # Nothing may be dropped any more that an upload which took over goes on from.
            self._journal.check()
            if all(file.path in done for file in files):
                return
            for work in current:
                work.abort_if_bad()
        raise ConflictError(
            f"something else drops the unfinished uploads below {self._store.uri}/{self._plan.name}",
            hint="run the same command again; it keeps what is stored",
        )

    def _sweep(self) -> None:
        """Frees what nobody refers to any more. The model is ready, so a failure is no failure of the upload."""
        try:
            found = sweep(self._store)
        except ColdstreamError as exc:
            self._progress.say(f"segments that are not needed any more were left: {exc.message}")
            return
        if found.keys and found.withheld:
            self._progress.say(f"{plural(len(found.keys), 'segment')} that nobody needs may go later: {found.withheld}")
        self.swept = 0 if found.withheld else len(found.keys)


def _last_words(store: Store, journal: JournalWriter, works: Sequence[_Upload]) -> None:
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


def _checked_objects(store: Store, name: str, entries: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Compares what is about to be declared ready with what is there now.

    A segment's key pins its bytes; its ETag is taken as it is now, since somebody else may have stored it once more.
    """
    listing = {info.key.removeprefix(f"{name}/"): info for info in store.list(f"{name}/")}
    if segment_keys(entries.values()):
        listing |= pool_listing(store)
    checked = {}
    for path, entry in entries.items():
        objects = tuple(
            msgspec.structs.replace(stored, etag=listing[stored.key].etag or stored.etag)
            if stored.key.startswith("/") and stored.key in listing
            else stored
            for stored in entry.objects
        )
        checked[path] = msgspec.structs.replace(entry, objects=objects)
        beside = (entry.plain,) if entry.plain else ()
        if not all(_is_there(listing, stored) for stored in (*objects, *beside)):
            raise ConflictError(
                f"{store.uri}/{name}/{path} was changed while the upload ran",
                hint=f"run the same command again; is something else writing to {name}?",
            )
    return checked


class _Upload(FileWork, Protocol):
    """What every work of an upload has beside what the pump wants."""

    file: SourceFile
    entry: FileEntry | None

    def abort_if_bad(self) -> None: ...


W = TypeVar("W", bound=_Upload)


class _FileUpload:
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
        self.parts = tuple(parts(self.size, self.part_bytes))
        self.entry: FileEntry | None = None
        self.digests: Digests | None = None
        self._key = f"{plan.name}/{file.path}"
        self._store, self._source, self._journal = store, source, journal
        self._tally, self._progress = tally, progress
        self._pending = [upload.upload_id for upload in pending if upload.key == self._key]
        self._digest: OrderedDigest | None = None
        self._multipart = len(self.parts) > 1
        self._object_bytes_max = plan.object_bytes_max if is_segmented(file.path, plan.object_bytes_max) else None
        self._upload_id: str | None = None
        self._bad = False
        self._lost = False
        self._kept: dict[int, Part] = {}
        self._made: dict[int, Part] = {}
        # What the finished object carries, so that it is recognised when the answer to completing it gets lost.
        self._mark = {_SHA256_METADATA: file.sha256} if file.sha256 else {_MARK_METADATA: uuid.uuid4().hex}

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
        self._made[number] = Part(number, len(view), etag)

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
        mark = {_SHA256_METADATA: digests.sha256}
        etag = self._store.put(self._key, view, metadata=mark, on_sent=self._on_sent)
        self._tally.sent(len(view))
        self._note(digests, etag)

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
            except NotFoundError as exc:
                if type(exc) is not NotFoundError:
                    raise
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


def is_segmented(path: str, object_bytes_max: int | None) -> bool:
    """Whether a file is stored in segments: the weights that a load streams. Those in sub-folders are read as files."""
    return object_bytes_max is not None and is_weights(path) and "/" not in path


@dataclass(frozen=True, slots=True)
class _Look:
    """What of the files is in the store, in the version that a record names and with the source's content.

    Attributes:
        kept: Files that are as they should be.
        whole: Files that lack their segments alone: the object that holds them in one piece.
        segments: Files that lack their piece alone: their segments.
    """

    store: Store
    source: Source
    name: str
    listing: Mapping[str, ObjectInfo]
    kept: dict[str, FileEntry] = field(default_factory=dict)
    whole: dict[str, FileEntry] = field(default_factory=dict)
    segments: dict[str, FileEntry] = field(default_factory=dict)

    def at(self, file: SourceFile, entry: FileEntry, *, object_bytes_max: int | None, plain: bool) -> None:
        """Looks at one file that a record names."""
        whole = self._whole(entry)
        segmented = is_segmented(file.path, object_bytes_max)
        cut = None
        if segmented and entry.object_bytes_max == object_bytes_max:
            there = entry.objects and all(_is_there(self.listing, stored) for stored in entry.objects)
            cut = msgspec.structs.replace(entry, plain=None) if there else None
        if not (whole or cut) or not _same(self.source, file, entry):
            return
        if not segmented:
            if whole:
                self.kept[file.path] = whole
        elif cut and (whole or not plain):
            self.kept[file.path] = msgspec.structs.replace(cut, plain=whole.objects[0] if whole and plain else None)
        elif whole:
            self.whole[file.path] = whole
        elif cut:
            self.segments[file.path] = cut

    def _whole(self, entry: FileEntry) -> FileEntry | None:
        """The entry with the object that holds it in one piece, if that is there."""
        if not entry.objects:
            return _completed(self.store, self.name, entry, self.listing)
        stored = entry.plain if entry.object_bytes_max is not None else entry.objects[0]
        if stored is None or stored.size != entry.size or not _is_there(self.listing, stored):
            return None
        return msgspec.structs.replace(entry, objects=(stored,), object_bytes_max=None, plain=None)


def _is_there(listing: Mapping[str, ObjectInfo], stored: StoredObject) -> bool:
    info = listing.get(stored.key)
    return info is not None and info.size == stored.size and info.etag in {"", stored.etag}


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
