"""Upload: a model from its source into the store, through memory alone, verified, resumable.

`planning` looks and decides, and writes nothing; `upload` does it. Killed at any point and run again it goes on:

- The journal (see `records`) says which files are stored, with their hashes; those are kept.
- Of a file that was under way, parts already stored are kept if they hold the source's bytes: the bytes are read from
  the source again, which the whole-file hash needs anyway, and only what is missing or different is sent.
- A file becomes an object only after its hash equals what the source promised; the manifest comes last.

Weights may be stored in segments (see `segments` and `pool`), with or without the file in one piece beside them. First
whatever is in one piece is sent, then the segments: made by the store from the piece that it has, or else sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from coldstream.errors import ColdstreamError, ConflictError, UsageError
from coldstream.mirror.digest import Digests
from coldstream.mirror.manifest_records import JournalWriter
from coldstream.mirror.multipart import FileUpload, Tally
from coldstream.mirror.pump import CONNECTIONS, MEMORY_BYTES, FileWork, Pump
from coldstream.mirror.segment_pool import ROOT, pool_listing, segment_keys, sweep
from coldstream.mirror.segments import Pool, SegmentCopy, SegmentUpload, Whole
from coldstream.mirror.upload_plan import UploadPlan, is_there
from coldstream.model.chunks import PART_BYTES_MIN
from coldstream.model.manifest import FileEntry
from coldstream.places.source import Source, SourceFile
from coldstream.places.store import Store
from coldstream.progress import Progress
from coldstream.units import format_bytes, plural

# A file whose unfinished multipart upload vanishes, or cannot be used after all, is sent anew, and once more.
_ROUNDS_MAX = 3


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
        conditional: Whether the store honours conditional writes; None when nothing was written, so that is not known.
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
    conditional: bool | None


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
    tally = Tally()
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
        conditional=None if plan.up_to_date else journal.conditional,
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
        tally: Tally,
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
            if plan.limit(file.path):
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

        def works(files: Sequence[SourceFile], _pump: Pump) -> list[FileUpload]:
            found = [
                FileUpload(
                    self._store,
                    self._source,
                    file,
                    name=self._plan.name,
                    part_bytes=self._plan.part_bytes[file.path],
                    object_bytes_max=self._plan.limit(file.path),
                    pending=pending[0],
                    journal=self._journal,
                    tally=self._tally,
                    progress=self._progress,
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
        if not all(is_there(listing, stored) for stored in (*objects, *beside)):
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
