"""Decides what an upload will do, before anything is written."""

from __future__ import annotations

import glob
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import msgspec

from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.mirror.digest import read_header
from coldstream.mirror.manifest_records import model_listing, read_record, record_key
from coldstream.mirror.segment_pool import pool_listing, segment_keys
from coldstream.model import manifest
from coldstream.model.adapter import CONFIG_BYTES_MAX, Adapter, parse_config
from coldstream.model.chunks import PART_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, part_bytes_for, part_count, parts
from coldstream.model.header import POINTER_BYTES, POINTER_HINT, check_duplicate_tensors, is_pointer, pointer_message
from coldstream.model.manifest import FileEntry, Journal, Manifest, StoredObject
from coldstream.model.names import KEY_BYTES_MAX, MANIFEST_NAME, checked_name
from coldstream.model.selection import (
    ADAPTER_CONFIG_NAME,
    Selection,
    is_adapter,
    is_weights,
    kept_back,
    select,
)
from coldstream.places.place import ObjectInfo, PendingUpload, Snapshot, Store
from coldstream.units import MIB

# The object metadata with the SHA-256 of a whole file.
SHA256_METADATA = "coldstream-sha256"
_READ_BYTES = 16 * MIB


@dataclass(frozen=True, kw_only=True)
class UploadPlan:
    """What an upload will do. Mappings have the files' paths as keys."""

    name: str
    label: str
    source: manifest.Provenance
    adapter: Adapter | None  # None of a model
    files: tuple[ObjectInfo, ...]
    part_bytes: Mapping[str, int]
    object_bytes_max: int | None  # the most bytes of a segment; None to store every file in one piece
    plain: bool  # whether segmented files are stored in one piece too
    skipped: Mapping[str, str]  # why a file of the source is not uploaded
    skipped_bytes: Mapping[str, int]
    kept_back: Mapping[str, str]  # why a file that is uploaded is not given to vLLM
    whole: Mapping[str, FileEntry]  # files that the store holds in one piece, with the source's content
    segmented: Mapping[str, FileEntry]  # files whose segments of this size it holds, with the source's content
    stale: tuple[str, ...]  # keys, relative to the model, of objects that only an earlier revision uses
    pending: tuple[PendingUpload, ...]  # unfinished multipart uploads below the model, to be resumed or aborted
    state: str  # what the store holds now: "absent", "foreign", "uploading" or "ready"
    etag: str | None  # that of the record's object
    record: Manifest | Journal | None  # the current one

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        return self.record.files if self.record else ()

    @cached_property
    def complete(self) -> dict[str, FileEntry]:
        entries = {file.key: self.entry(file.key, self.whole, self.segmented) for file in self.files}
        return {path: entry for path, entry in entries.items() if entry}

    @cached_property
    def up_to_date(self) -> bool:
        """Whether there is nothing to do: the manifest has these files from this source, and all are stored."""
        return (
            isinstance(self.record, Manifest)
            and self.record.source == self.source
            and self.record.adapter == self.adapter
            and len(self.complete) == len(self.files)
            and {*self.complete.values()} == {*self.entries}
            # Earlier versions did not copy the headers into the manifest.
            and all(entry.chunks.header is not None for entry in self.entries if is_weights(entry.path))
        )

    def entry(self, path: str, whole: Mapping[str, FileEntry], segmented: Mapping[str, FileEntry]) -> FileEntry | None:
        """The manifest entry of a file, from those of its forms; None if a form that this plan wants is missing."""
        in_one_piece, in_segments = whole.get(path), segmented.get(path)
        if not self.limit(path):
            return in_one_piece
        if in_segments is None or (self.plain and in_one_piece is None):
            return None
        return msgspec.structs.replace(
            in_segments, plain=in_one_piece.objects[0] if self.plain and in_one_piece else None
        )

    def limit(self, path: str) -> int | None:
        return self.object_bytes_max if is_segmented(path, self.object_bytes_max) else None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def shards(self) -> int:
        return sum(is_weights(file.key) for file in self.files)

    @property
    def to_send(self) -> tuple[ObjectInfo, ...]:
        return tuple(file for file in self.files if file.key not in self.complete)

    @property
    def to_send_whole(self) -> tuple[ObjectInfo, ...]:
        return tuple(
            file for file in self.to_send if not self.limit(file.key) or (self.plain and file.key not in self.whole)
        )

    @property
    def to_cut(self) -> tuple[ObjectInfo, ...]:
        return tuple(file for file in self.to_send if self.limit(file.key) and file.key not in self.segmented)

    @property
    def to_read_bytes(self) -> int:
        """How many bytes will be read from the source, if the store can copy ranges."""
        return sum(file.size for file in {file.key: file for file in (*self.to_send_whole, *self.to_cut)}.values())

    @property
    def stored_bytes(self) -> int:
        """The model's size in the store: twice its weights if they are stored both in segments and in one piece."""
        return self.size + sum(file.size for file in self.files if self.plain and self.limit(file.key))

    @property
    def parts(self) -> int:
        """How many parts or single objects to send or copy; approximate for segments."""
        whole = sum(part_count(file.size, self.part_bytes[file.key]) for file in self.to_send_whole)
        return whole + sum(part_count(file.size, PART_BYTES) for file in self.to_cut) + self.segment_count // 2

    @property
    def segment_count(self) -> int:
        return sum(2 + 2 * file.size // (self.object_bytes_max or 1) for file in self.to_cut)


@dataclass(slots=True, kw_only=True)
class UploadReport:
    """What an upload did."""

    name: str
    digest: str | None = None  # the manifest's, which identifies this version; None if the model was up to date
    files: int
    bytes: int
    sent_files: int
    sent_bytes: int = 0
    kept_bytes: int = 0  # bytes of the model that the store had already, including parts of files
    parts: int = 0  # parts and single objects sent
    sent_segments: int = 0
    copied_segments: int = 0
    kept_segments: int = 0  # those that the store already had, from this model or another, among files that changed
    swept_segments: int = 0
    seconds: float = 0.0
    retries: int = 0
    conditional: bool | None = None  # whether the store honours conditional writes; None if nothing was written


def plan_upload(
    store: Store,
    source: Snapshot,
    name: str,
    *,
    include: Sequence[str] = (),
    also: Sequence[str] = (),
    exclude: Sequence[str] = (),
    part_bytes: int = PART_BYTES,
    object_bytes_max: int | None = None,
    plain: bool = True,
    base: str | None = None,
) -> UploadPlan:
    """Compares the source with the store and decides what to upload; writes nothing. For the patterns, see `select`.

    `object_bytes_max` stores weights in segments of at most this many bytes and, if `plain`, in one piece too. `base`
    is the base model of an adapter, if it is another than its configuration names.
    """
    checked_name(name)
    if object_bytes_max is None and not plain:
        raise UsageError("files are stored in one piece, in segments, or both", hint="--object-bytes-max 480MiB")
    if object_bytes_max is not None and not SEGMENT_BYTES_MIN <= object_bytes_max <= SEGMENT_BYTES_MAX:
        raise UsageError(
            f"the segment size must be between 1 MiB and 5 GiB, not {object_bytes_max} bytes",
            hint="480MiB is below the largest object that Cloudflare's CDN caches (512 MB)",
        )
    source_files = {file.key: file for file in source.list("")}
    selection = _selected(source, source_files, include, also, exclude)
    files = tuple(source_files[path] for path in selection.chosen)
    for file in files:
        _refuse_unusable(source, file)
        if len(f"{store.uri}/{name}/{file.key}".encode()) > KEY_BYTES_MAX:
            raise UsageError(f"{name}/{file.key[:80]}… makes a key longer than {KEY_BYTES_MAX} bytes")
    adapter = _adapter(source, selection, base)
    headers = {
        path: read_header(partial(source.read_into, path, 0), path=path, size=source_files[path].size)
        for path in selection.unproven
    }
    check_duplicate_tensors(headers, where=source.label)
    _refuse_nesting(store, name)
    # Listed before the record is read: if that says "ready", no running upload owns these any more.
    pending = tuple(store.uploads(f"{name}/"))
    listing = model_listing(store, name)
    record, etag = read_record(store, name) or (None, None)
    entries = record.files if record else ()
    objects = {**listing, **pool_listing(store)} if segment_keys(entries) else listing
    whole, segmented = _stored_forms(store, source, name, files, entries, objects, object_bytes_max)
    # The keys of the model's recorded objects that no file of the new upload uses.
    stored_keys = {stored.key for entry in entries for stored in (*entry.objects, entry.plain) if stored}
    used = {file.key for file in files if plain or not is_segmented(file.key, object_bytes_max)}
    return UploadPlan(
        name=name,
        label=source.label,
        source=source.provenance,
        adapter=adapter,
        files=files,
        part_bytes={file.key: part_bytes_for(file.size, preferred=part_bytes) for file in files},
        skipped=selection.skipped,
        kept_back=kept_back({file.key: file.size for file in files}, stored=True),
        skipped_bytes={path: source_files[path].size for path in selection.skipped},
        object_bytes_max=object_bytes_max,
        plain=plain,
        whole=whole,
        segmented=segmented,
        stale=tuple(sorted(key for key in stored_keys if key in listing and key not in used)),
        pending=pending,
        state=record.state if record else "foreign" if listing else "absent",
        etag=etag,
        record=record,
    )


def _selected(
    source: Snapshot,
    source_files: Mapping[str, ObjectInfo],
    include: Sequence[str],
    also: Sequence[str],
    exclude: Sequence[str],
) -> Selection:
    has_weights = any(is_weights(path) for path in source_files)
    if not include and not has_weights and (branches := source.branches_with_weights()):
        raise UsageError(
            f"{source.label} has no safetensors weights, but its branches {', '.join(branches)} have",
            hint=f"choose a branch: --revision {shlex.quote(branches[0])}",
        )

    def read_index(path: str) -> bytes:
        _refuse_unusable(source, source_files[path])
        # The largest known index has 12 MB (a model of 160 shards).
        return source.get(path, bytes_max=64 * MIB)[0]

    return select(source_files, read=read_index, include=include, also=also, exclude=exclude)


def _adapter(source: Snapshot, selection: Selection, base: str | None) -> Adapter | None:
    if is_adapter(selection.chosen):
        config = source.get(ADAPTER_CONFIG_NAME, bytes_max=CONFIG_BYTES_MAX)[0]
        return parse_config(config, where=f"{source.label}: {ADAPTER_CONFIG_NAME}", base=base)
    if base is not None:
        raise UsageError(f"{source.label} is not an adapter, so it has no base model", hint="remove --base")
    return None


def _refuse_unusable(source: Snapshot, file: ObjectInfo) -> None:
    if file.fault:
        # A pattern that the user can paste: characters that a terminal cannot show become wildcards.
        shown = "".join(character if character.isprintable() else "?" for character in glob.escape(file.key))
        raise UsageError(
            f"{source.label}: {file.key!r} cannot be uploaded: {file.fault}",
            hint=f"exclude it: --exclude {shlex.quote(shown)}",
        )
    if file.size in POINTER_BYTES and is_pointer(source.get(file.key, bytes_max=file.size)[0], file.size):
        raise IntegrityError(pointer_message(f"{source.label}: {file.key}"), hint=POINTER_HINT)


def _refuse_nesting(store: Store, name: str) -> None:
    """Refuses a model inside or around another one: it could not be listed or removed by itself."""
    segments = name.split("/")
    for depth in range(1, len(segments)):
        outer = "/".join(segments[:depth])
        try:
            store.head(record_key(outer))
        except NotFoundError:
            continue
        raise UsageError(f"{name} would be inside the model {outer}", hint="choose another name with --as")
    for key in (info.key for info in store.list(f"{name}/")):
        inner = key.removesuffix(f"/{MANIFEST_NAME}")
        if inner not in {key, name}:
            raise UsageError(f"{name} would contain the model {inner}", hint="choose another name with --as")


def is_segmented(path: str, object_bytes_max: int | None) -> bool:
    """Whether a file is stored in segments: weights that a load streams; those in subfolders are read as files."""
    return object_bytes_max is not None and is_weights(path) and "/" not in path


def _stored_forms(
    store: Store,
    source: Snapshot,
    name: str,
    files: Sequence[ObjectInfo],
    entries: Sequence[FileEntry],
    objects: Mapping[str, ObjectInfo],
    object_bytes_max: int | None,
) -> tuple[dict[str, FileEntry], dict[str, FileEntry]]:
    """Returns `whole` and `segmented` of the plan: the files that are stored as recorded, with the source's content."""
    whole: dict[str, FileEntry] = {}
    segmented: dict[str, FileEntry] = {}
    recorded = {entry.path: entry for entry in entries}
    for file in files:
        if (entry := recorded.get(file.key)) is None:
            continue
        in_one_piece = _in_one_piece(store, name, entry, objects)
        in_segments = (
            is_segmented(file.key, object_bytes_max)
            and entry.object_bytes_max == object_bytes_max
            and entry.objects
            and all(is_there(objects, stored) for stored in entry.objects)
        )
        if (in_one_piece or in_segments) and _has_same_content(source, file, entry):
            if in_one_piece:
                whole[file.key] = in_one_piece
            if in_segments:
                segmented[file.key] = msgspec.structs.replace(entry, plain=None)
    return whole, segmented


def _in_one_piece(store: Store, name: str, entry: FileEntry, listing: Mapping[str, ObjectInfo]) -> FileEntry | None:
    """Returns the entry with the object that holds the file in one piece, if the store has that."""
    if entry.objects:
        stored = entry.plain if entry.object_bytes_max is not None else entry.objects[0]
        if stored is None or stored.size != entry.size or not is_there(listing, stored):
            return None
        return msgspec.structs.replace(entry, objects=(stored,), object_bytes_max=None, plain=None)
    # Recorded just before its object was completed: did the upload complete it?
    info = listing.get(entry.path)
    if info is None or info.size != entry.size:
        return None
    info = store.head(f"{name}/{entry.path}")
    if info.metadata.get(SHA256_METADATA) != entry.sha256:
        return None
    return msgspec.structs.replace(entry, objects=(StoredObject(key=entry.path, size=info.size, etag=info.etag),))


def is_there(listing: Mapping[str, ObjectInfo], stored: StoredObject) -> bool:
    """Whether the store holds the recorded version of an object. Keys are as in manifests."""
    info = listing.get(stored.key)
    return info is not None and info.size == stored.size and info.etag in {"", stored.etag}


def _has_same_content(source: Snapshot, file: ObjectInfo, entry: FileEntry) -> bool:
    if file.size != entry.size:
        return False
    if file.sha256 is not None:
        return file.sha256 == entry.sha256
    if file.git_blob_id is not None and entry.git_blob_id is not None:
        return file.git_blob_id == entry.git_blob_id
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_READ_BYTES, file.size)))
    for start, stop in parts(file.size, _READ_BYTES):
        source.read_into(file.key, start, buffer[: stop - start], if_match=file.etag or None)
        digest.update(buffer[: stop - start])
    return digest.hexdigest() == entry.sha256
