"""Uploads a model from its source into the store: through memory only, verified, resumable.

`plan_upload` decides and writes nothing; `upload` carries out the plan, and can be run again wherever it was killed:

- The journal records each file and its hashes after its object is complete. A file whose object has the recorded ETag
  is kept without reading a byte of it.
- Of a large file, the store keeps the multipart upload. A stored part counts only if its ETag is that of the source's
  bytes, which are read again for the hash of the whole file anyway.
- A file becomes an object only after its hash equals what the source promised; the manifest comes last.

Files in one piece are sent first; the store copies segments out of them, or they are sent: see `segment_pool`.
"""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
import xxhash

from coldstream.errors import ColdstreamError, ConflictError, IntegrityError, UsageError
from coldstream.machine.parallel import in_parallel
from coldstream.mirror.file_upload import FileUpload, SegmentWriter, UploadContext, UploadWork
from coldstream.mirror.manifest_records import TOOL, JournalWriter, model_listing, now
from coldstream.mirror.pump import CONNECTIONS, MEMORY_BYTES, Pump
from coldstream.mirror.segment_pool import pool_listing, segment_keys, sweep
from coldstream.mirror.stored_files import read_range
from coldstream.mirror.upload_plan import UploadPlan, UploadReport, is_there
from coldstream.model.chunks import CHUNK_BYTES
from coldstream.model.header import header_stop
from coldstream.model.manifest import HEADERS_BYTES_MAX, FileEntry, Journal, pack_header
from coldstream.model.selection import is_weights
from coldstream.places.place import ObjectInfo, Snapshot, Store
from coldstream.progress import Progress
from coldstream.units import format_bytes, plural

# How often a file is started whose unfinished multipart upload vanishes, or turns out to be unusable.
_ATTEMPTS_MAX = 3


def upload(
    store: Store,
    source: Snapshot,
    plan: UploadPlan,
    *,
    progress: Progress | None = None,
    connections: int = CONNECTIONS,
    memory_bytes: int = MEMORY_BYTES,
) -> UploadReport:
    """Carries out the plan; keeps what was stored after an error. Both places must share one `Retry.cancel`."""
    began = time.monotonic()
    progress = progress or Progress()
    if plan.to_cut and plan.object_bytes_max is not None and plan.object_bytes_max > memory_bytes:
        raise UsageError(
            f"a segment of {format_bytes(plan.object_bytes_max)} does not fit into the memory limit of "
            f"{format_bytes(memory_bytes)}: its key is its hash, so it is held in memory until it is hashed",
            hint="raise --memory (ideally to twice the segment size), or lower --object-bytes-max",
        )
    report = UploadReport(name=plan.name, files=len(plan.files), bytes=plan.size, sent_files=len(plan.to_send))
    if plan.up_to_date:
        for pending in plan.pending:
            store.abort_upload(pending.key, pending.upload_id)
    else:
        journal = Journal(
            name=plan.name,
            kind="adapter" if plan.adapter else "model",
            adapter=plan.adapter,
            source=plan.source,
            created=now(),
            tool=TOOL,
            writer=uuid.uuid4().hex,
            planned_files=len(plan.files),
            planned_bytes=plan.size,
            planned_shards=plan.shards,
            files=tuple(plan.complete.get(entry.path, entry) for entry in plan.entries),
        )
        writer = JournalWriter(store, journal, etag=plan.etag)
        _run(
            UploadContext(
                store=store,
                source=source,
                plan=plan,
                journal=writer,
                report=report,
                progress=progress,
                connections=connections,
                memory_bytes=memory_bytes,
                whole=dict(plan.whole),
                segmented=dict(plan.segmented),
            )
        )
        report.conditional = writer.conditional
    report.kept_bytes = max(0, plan.size - report.sent_bytes)
    report.seconds = time.monotonic() - began
    report.retries = store.retry.count
    return report


def _run(context: UploadContext) -> None:
    store, plan, journal, progress = context.store, context.plan, context.journal, context.progress
    journal.open()
    if not journal.conditional:
        progress.say("this store ignores conditional writes: do not upload one model from two places at once")
    for path in plan.complete:
        progress.begin(path, 0)
        progress.end(path, "kept")
    _store_all(
        context,
        plan.to_send_whole,
        lambda file, _, attempt: FileUpload(context, file, resume=not attempt),
        context.whole,
    )
    writer = SegmentWriter(context)
    _store_all(context, plan.to_cut, lambda file, pump, _: writer.start(file, pump.submit), context.segmented)
    entries = [plan.entry(file.key, context.whole, context.segmented) for file in plan.files]
    complete = [entry for entry in entries if entry]
    assert len(complete) == len(entries)
    # What an earlier revision or a killed upload left. The model is not ready at this point.
    store.delete([f"{plan.name}/{key}" for key in plan.stale])
    for pending in store.uploads(f"{plan.name}/"):
        store.abort_upload(pending.key, pending.upload_id)
    checked = _with_headers(store, plan.name, _check_objects(store, plan.name, complete))
    context.report.digest = journal.commit(checked)
    if segment_keys(plan.entries) or segment_keys(checked):
        context.report.swept_segments = _sweep(store, progress)


def _store_all(
    context: UploadContext,
    files: Sequence[ObjectInfo],
    start: Callable[[ObjectInfo, Pump, int], UploadWork],
    done: dict[str, FileEntry],
) -> None:
    store, journal = context.store, context.journal
    for attempt in range(_ATTEMPTS_MAX):
        pump = Pump(cancel=store.retry.cancel, connections=context.connections, memory_bytes=context.memory_bytes)
        works = [start(file, pump, attempt) for file in files if file.key not in done]
        try:
            pump.run(works, tick=journal.flush_if_due)
        except BaseException:
            # What is stored is recorded for the next run. Best effort: the failure itself is reported.
            with store.retry.shielded():
                for work in works:
                    work.abort_if_bad()
                with suppress(ColdstreamError):
                    journal.flush()
            raise
        done.update({work.file.key: work.entry for work in works if work.entry})
        # If another upload took over, it may be resuming what would be aborted below.
        journal.check()
        if all(work.entry for work in works):
            return
        for work in works:
            work.abort_if_bad()
    raise ConflictError(
        f"another program aborts the unfinished uploads below {store.uri}/{context.plan.name}",
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


def _check_objects(store: Store, name: str, entries: Sequence[FileEntry]) -> list[FileEntry]:
    """Compares the entries of the manifest with what the store holds, just before the model becomes ready."""
    listing = model_listing(store, name)
    if segment_keys(entries):
        listing |= pool_listing(store)
    checked = []
    for entry in entries:
        # A segment's key pins its bytes; another upload may have stored it again, with another ETag.
        objects = tuple(
            msgspec.structs.replace(stored, etag=listing[stored.key].etag or stored.etag)
            if stored.key.startswith("/") and stored.key in listing
            else stored
            for stored in entry.objects
        )
        if not all(is_there(listing, stored) for stored in (*objects, entry.plain) if stored):
            raise ConflictError(
                f"{store.uri}/{name}/{entry.path} was changed while the upload ran",
                hint=f"run the same command again; is something else writing to {name}?",
            )
        checked.append(msgspec.structs.replace(entry, objects=objects))
    return checked


def _with_headers(store: Store, name: str, entries: Sequence[FileEntry]) -> list[FileEntry]:
    """Copies the headers of the weights into their entries, so that a load does not have to read them first."""

    def packed(entry: FileEntry) -> bytes:
        _, size, digest = next(iter(entry.chunks.ranges()))
        if entry.chunks.header or size > CHUNK_BYTES:
            return entry.chunks.header or b""
        first_chunk = bytearray(size)
        read_range(store, name, entry.objects, 0, memoryview(first_chunk))
        if xxhash.xxh3_128_hexdigest(first_chunk) != digest:
            raise IntegrityError(
                f"{store.uri}/{name}/{entry.path}: its header is not the one that was uploaded",
                hint=f"run: coldstream verify {shlex.quote(name)} --deep",
            )
        is_whole = header_stop(first_chunk, file_bytes=entry.size, path=entry.path) <= size
        return pack_header(first_chunk) if is_whole else b""

    weights = [entry for entry in entries if is_weights(entry.path)]
    headers = in_parallel(packed, weights)
    if sum(map(len, headers)) > HEADERS_BYTES_MAX:
        headers = [b""] * len(headers)
    copies = dict(zip((entry.path for entry in weights), headers, strict=True))
    return [
        msgspec.structs.replace(entry, chunks=msgspec.structs.replace(entry.chunks, header=copies.get(entry.path)))
        for entry in entries
    ]
