"""Uploads a model from its source into the store: through memory only, verified, resumable.

`plan_upload` decides and writes nothing; `upload` carries out the plan. An upload that was killed at any point can be
run again:

- The journal records each file and its hashes after its object is complete. A file whose object has the recorded ETag
  is kept without reading a byte of it.
- A large file is a multipart upload, which the store keeps. Its stored parts are only counted if their ETags show that
  they hold the source's bytes: the bytes are read from the source again, which the hash of the whole file needs anyway,
  and only missing or different parts are sent.
- A file becomes an object only after its hash equals what the source promised; the manifest comes last.

Weights may be stored in segments (see `segments` and `segment_pool`), with or without the file in one piece beside
them. Files in one piece are sent first; then the store copies the segments out of them, or they are sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from coldstream.errors import ColdstreamError, ConflictError, UsageError
from coldstream.mirror.digest import Digests
from coldstream.mirror.manifest_records import JournalWriter
from coldstream.mirror.multipart import FileUpload, UploadContext, UploadCounts
from coldstream.mirror.pump import CONNECTIONS, MEMORY_BYTES, FileWork, Pump
from coldstream.mirror.segment_pool import pool_listing, segment_keys, sweep
from coldstream.mirror.segments import SegmentCopy, SegmentUpload, SegmentWriter
from coldstream.mirror.upload_plan import UploadPlan, is_there
from coldstream.model.chunks import PART_BYTES_MIN
from coldstream.model.manifest import FileEntry
from coldstream.places.place import ObjectInfo, PendingUpload, Snapshot, Store
from coldstream.progress import Progress
from coldstream.units import format_bytes, plural

# How often a file is started whose unfinished multipart upload vanishes, or turns out to be unusable.
_ATTEMPTS_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadReport:
    """What an upload did.

    Attributes:
        digest: The manifest's digest, which identifies this version; None if the model was up to date.
        sent_files: How many files were sent, completely or in part.
        kept_bytes: Bytes of the model that were not sent because the store had them, including parts of files.
        parts: Parts and single objects sent.
        copied_segments: Segments that the store copied from the file in one piece.
        kept_segments: Segments that the store already had, from this model or another, among files that changed.
        swept_segments: Segments that were deleted because no model refers to them any more.
        seconds: From the first request to the manifest.
        conditional: Whether the store honours conditional writes; None if nothing was written.
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
    source: Snapshot,
    plan: UploadPlan,
    *,
    progress: Progress | None = None,
    connections: int = CONNECTIONS,
    memory_bytes: int = MEMORY_BYTES,
) -> UploadReport:
    """Carries out the plan. The store's and the source's `Retry` must share one `cancel` event.

    Raises:
        UsageError: A segment does not fit into `memory_bytes`.
        IntegrityError: A file is not what the source promised; its upload is aborted, and the model is not ready.
        ConflictError: Another upload of the model took over, or objects were changed during the upload.
        And the errors of the source and the store. What was stored is kept for the next run.
    """
    began = time.monotonic()
    progress = progress or Progress()
    if plan.to_cut and plan.object_bytes_max is not None and plan.object_bytes_max > memory_bytes:
        raise UsageError(
            f"a segment of {format_bytes(plan.object_bytes_max)} does not fit into the memory limit of "
            f"{format_bytes(memory_bytes)}: its key is its hash, so it is held in memory until it is hashed",
            hint="raise --memory (ideally to twice the segment size), or lower --object-bytes-max",
        )
    journal = JournalWriter(
        store,
        name=plan.name,
        source=plan.source,
        planned=(len(plan.files), plan.size, plan.shards),
        entries=[plan.complete.get(entry.path, entry) for entry in plan.entries],
        etag=plan.etag,
    )
    counts = UploadCounts()
    context = UploadContext(store=store, source=source, plan=plan, journal=journal, counts=counts, progress=progress)
    digest, swept = None, 0
    if plan.up_to_date:
        _abort_all(store, plan.pending)
    else:
        transfer = _Transfer(context, connections, memory_bytes)
        digest = transfer.run()
        if segment_keys(plan.entries) or segment_keys(transfer.entries.values()):
            swept = _sweep(store, progress)
    return UploadReport(
        name=plan.name,
        digest=digest,
        files=len(plan.files),
        bytes=plan.size,
        sent_files=len(plan.to_send),
        sent_bytes=counts.sent_bytes,
        kept_bytes=max(0, plan.size - counts.sent_bytes),
        parts=counts.parts,
        sent_segments=counts.sent_segments,
        copied_segments=counts.copied_segments,
        kept_segments=counts.kept_segments,
        swept_segments=swept,
        seconds=time.monotonic() - began,
        retries=store.retry.count,
        conditional=None if plan.up_to_date else journal.conditional,
    )


class _Transfer:
    """A running upload.

    Attributes:
        entries: The manifest entries of all files; complete after `run`.
    """

    def __init__(self, context: UploadContext, connections: int, memory_bytes: int) -> None:
        self._context = context
        self._store, self._plan, self._journal = context.store, context.plan, context.journal
        self._connections, self._memory_bytes = connections, memory_bytes
        # By path: the entries of files in one piece, of files in segments, and what both together make.
        self._plain = dict(self._plan.plain_only)
        self._segmented = dict(self._plan.segments_only)
        self.entries = dict(self._plan.complete)
        self._digests: dict[str, Digests] = {}

    def run(self) -> str:
        """Uploads everything and returns the manifest's digest."""
        store, plan, journal, progress = self._store, self._plan, self._journal, self._context.progress
        journal.open()
        if not journal.conditional:
            progress.say("this store ignores conditional writes: do not upload one model from two places at once")
        for path in plan.complete:
            progress.begin(path, 0)
            progress.end(path, "kept")
        self._send_plain()
        self._store_segments()
        for file in plan.to_send:
            entry, plain = self._segmented.get(file.key), self._plain.get(file.key)
            if entry and plain and plan.plain:
                entry = msgspec.structs.replace(entry, plain=plain.objects[0])
            self.entries[file.key] = entry or self._plain[file.key]
        _remove_leftovers(store, plan)
        self.entries = _check_objects(store, plan.name, self.entries)
        return journal.commit(self.entries.values())

    def _send_plain(self) -> None:
        """Sends the files to be stored in one piece."""

        def start(file: ObjectInfo, _pump: Pump, attempt: int) -> FileUpload:
            return FileUpload(self._context, file, resume=attempt == 0)

        for work in self._stored(self._plan.to_send_whole, start, self._plain):
            assert work.digests is not None
            self._digests[work.file.key] = work.digests

    def _store_segments(self) -> None:
        """Stores the missing segments: copied by the store where it has the file in one piece, sent otherwise."""
        writer = SegmentWriter(self._context)

        def start(file: ObjectInfo, pump: Pump, _attempt: int) -> SegmentCopy | SegmentUpload:
            plain = self._plain[file.key].objects[0] if file.key in self._plain else None
            digests = self._digests.get(file.key)
            if plain and digests and writer.copies and plain.size > PART_BYTES_MIN:
                return SegmentCopy(writer, file, plain, digests)
            return SegmentUpload(writer, file, plain, pump.submit)

        for _ in self._stored(self._plan.to_cut, start, self._segmented):
            pass

    def _stored(
        self,
        files: Sequence[ObjectInfo],
        start: Callable[[ObjectInfo, Pump, int], W],
        done: dict[str, FileEntry],
    ) -> Iterator[W]:
        """Moves files until all are stored, adds their entries to `done`, and yields the work that stored each."""
        for attempt in range(_ATTEMPTS_MAX):
            pump = Pump(cancel=self._store.retry.cancel, connections=self._connections, memory_bytes=self._memory_bytes)
            works = [start(file, pump, attempt) for file in files if file.key not in done]
            try:
                pump.run(works, tick=self._journal.flush_if_due)
            except BaseException:
                _save_progress(self._store, self._journal, works)
                raise
            for work in works:
                if work.entry:
                    done[work.file.key] = work.entry
                    yield work
            # If another upload took over, it may be resuming what would be aborted below.
            self._journal.check()
            if all(file.key in done for file in files):
                return
            for work in works:
                work.abort_if_bad()
        raise ConflictError(
            f"another program aborts the unfinished uploads below {self._store.uri}/{self._plan.name}",
            hint="run the same command again; it keeps what is stored",
        )


def _sweep(store: Store, progress: Progress) -> int:
    """Deletes unused segments and returns their number. The model is ready, so an error does not fail the upload."""
    try:
        swept = sweep(store)
    except ColdstreamError as exc:
        progress.say(f"unused segments were not deleted: {exc.message}")
        return 0
    if swept.keys and swept.withheld:
        progress.say(f"{plural(len(swept.keys), 'unused segment')} can be deleted later: {swept.withheld}")
    return 0 if swept.withheld else len(swept.keys)


def _save_progress(store: Store, journal: JournalWriter, works: Sequence[_UploadWork]) -> None:
    """Records what is stored after a failure, so that the next run keeps it. Best effort: the failure is reported."""
    with store.retry.shielded():
        for work in works:
            work.abort_if_bad()
        with suppress(ColdstreamError):
            journal.flush()


def _remove_leftovers(store: Store, plan: UploadPlan) -> None:
    """Deletes what an earlier revision or a killed upload left. The model is not ready at this point."""
    store.delete([f"{plan.name}/{key}" for key in plan.stale])
    _abort_all(store, store.uploads(f"{plan.name}/"))


def _abort_all(store: Store, uploads: Iterable[PendingUpload]) -> None:
    for upload in uploads:
        store.abort_upload(upload.key, upload.upload_id)


def _check_objects(store: Store, name: str, entries: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Compares the entries of the manifest with what the store holds, just before the model becomes ready.

    A segment's key pins its bytes. Its current ETag is taken, because another upload may have stored it again.
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
        plain = (entry.plain,) if entry.plain else ()
        if not all(is_there(listing, stored) for stored in (*objects, *plain)):
            raise ConflictError(
                f"{store.uri}/{name}/{path} was changed while the upload ran",
                hint=f"run the same command again; is something else writing to {name}?",
            )
    return checked


class _UploadWork(FileWork, Protocol):
    file: ObjectInfo
    entry: FileEntry | None

    def abort_if_bad(self) -> None: ...


W = TypeVar("W", bound=_UploadWork)
