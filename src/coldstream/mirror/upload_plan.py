"""What an upload will do: looked up and decided before anything is written."""

from __future__ import annotations

import glob
import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.mirror.digest import read_header
from coldstream.mirror.manifest_records import read_record, record_key
from coldstream.mirror.multipart import SHA256_METADATA
from coldstream.mirror.segment_pool import pool_listing, segment_keys
from coldstream.model import manifest
from coldstream.model.chunks import PART_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, part_bytes_for, part_count, parts
from coldstream.model.header import check_twins
from coldstream.model.lfs import HINT, POINTER_BYTES, is_pointer, pointer_message
from coldstream.model.manifest import FileEntry, Manifest, StoredObject
from coldstream.model.names import KEY_BYTES_MAX, MANIFEST_NAME, checked_name
from coldstream.model.selection import is_weights, kept_back, select
from coldstream.places.source import Source, SourceFile
from coldstream.places.store import ObjectInfo, PendingUpload, Store
from coldstream.units import MIB

# The largest index seen is 12 MB (a model of 160 shards); more is no index.
_INDEX_BYTES_MAX = 64 * MIB


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
        kept_back: Path to why a file that is uploaded is not given to vLLM.
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
    source: manifest.Provenance
    files: tuple[SourceFile, ...]
    part_bytes: Mapping[str, int]
    object_bytes_max: int | None
    plain: bool
    skipped: Mapping[str, str]
    skipped_bytes: Mapping[str, int]
    kept_back: Mapping[str, str]
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

    def limit(self, path: str) -> int | None:
        """The most bytes of a segment of this file; None when it is stored in one piece alone."""
        return self.object_bytes_max if is_segmented(path, self.object_bytes_max) else None

    @property
    def shards(self) -> int:
        """How many files are weights."""
        return sum(is_weights(file.path) for file in self.files)

    @property
    def to_send_whole(self) -> tuple[SourceFile, ...]:
        """The files that are to be sent in one piece."""
        return tuple(
            file for file in self.to_send if not self.limit(file.path) or (self.plain and file.path not in self.whole)
        )

    @property
    def to_cut(self) -> tuple[SourceFile, ...]:
        """The files whose segments are to be stored, as far as the store lacks them."""
        return tuple(file for file in self.to_send if self.limit(file.path) and file.path not in self.segments)

    @property
    def to_read_bytes(self) -> int:
        """How many bytes are to be read from the source, if the store can copy."""
        whole = self.to_send_whole
        return sum(file.size for file in whole) + sum(file.size for file in self.to_cut if file not in whole)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the model will take in the store; twice its weights if they are there in segments and whole."""
        twice = (file.size for file in self.files if self.plain and self.limit(file.path))
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
    if not include and not any(is_weights(path) for path in every) and (branches := source.branches_with_weights()):
        raise UsageError(
            f"there are no safetensors weights in {source.label}, but its branches {', '.join(branches)} have some",
            hint=f"name one of them: --revision {shlex.quote(branches[0])}",
        )
    selection = select(
        every, read=lambda path: _read_index(source, every[path]), include=include, also=also, exclude=exclude
    )
    files = tuple(every[path] for path in selection.chosen)
    for file in files:
        _refuse_unusable(source, file)
        if len(f"{store.uri}/{name}/{file.path}".encode()) > KEY_BYTES_MAX:
            raise UsageError(f"{name}/{file.path[:80]}… makes a key longer than {KEY_BYTES_MAX} bytes")
    check_twins({path: read_header(source, every[path]) for path in selection.unproven}, where=source.label)
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
        kept_back=kept_back({file.path: file.size for file in files}, stored=True),
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


def _read_index(source: Source, file: SourceFile) -> bytes:
    _refuse_unusable(source, file)
    return source.read(file, bytes_max=_INDEX_BYTES_MAX)


def _refuse_unusable(source: Source, file: SourceFile) -> None:
    """Refuses what cannot be stored, and pointers in place of files.

    Raises:
        UsageError: It is to be left out.
        IntegrityError: It is a pointer of Git LFS.
    """
    if file.fault:
        # What a terminal cannot be given cannot be pasted from it either.
        shown = "".join(character if character.isprintable() else "?" for character in glob.escape(file.path))
        raise UsageError(
            f"{source.label}: {file.path!r} cannot be uploaded: {file.fault}",
            hint=f"leave it out: --exclude {shlex.quote(shown)}",
        )
    if file.size in POINTER_BYTES and is_pointer(source.read(file, bytes_max=file.size), file.size):
        raise IntegrityError(pointer_message(f"{source.label}: {file.path}"), hint=HINT)


def _refuse_nesting(store: Store, name: str) -> None:
    """A model inside another could not be listed or removed by itself."""
    segments = name.split("/")
    for depth in range(1, len(segments)):
        outer = "/".join(segments[:depth])
        try:
            store.head(record_key(outer))
        except NotFoundError:
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
            there = entry.objects and all(is_there(self.listing, stored) for stored in entry.objects)
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
        if stored is None or stored.size != entry.size or not is_there(self.listing, stored):
            return None
        return msgspec.structs.replace(entry, objects=(stored,), object_bytes_max=None, plain=None)


def is_there(listing: Mapping[str, ObjectInfo], stored: StoredObject) -> bool:
    """Whether the store holds an object in the version that a record names. Keys are as in records."""
    info = listing.get(stored.key)
    return info is not None and info.size == stored.size and info.etag in {"", stored.etag}


def _completed(store: Store, name: str, entry: FileEntry, listing: Mapping[str, ObjectInfo]) -> FileEntry | None:
    """An entry noted just before its object was completed: did that happen before the kill?"""
    info = listing.get(entry.path)
    if info is None or info.size != entry.size:
        return None
    info = store.head(f"{name}/{entry.path}")
    if info.metadata.get(SHA256_METADATA) != entry.sha256:
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
