"""Reads a model's files back from the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest
from coldstream.mirror.manifest_records import model_listing, read_record
from coldstream.mirror.pump import FileWork
from coldstream.mirror.segment_pool import ROOT, pool_listing, root_of, segment_keys
from coldstream.model.chunks import PART_BYTES, parts
from coldstream.model.manifest import FileEntry, Journal, Manifest, StoredObject, check_revision, entries_below
from coldstream.model.names import MANIFEST_NAME, checked_name, checked_path, split_revision
from coldstream.places.model_records import missing_model, outer_record
from coldstream.places.place import ObjectInfo, Store
from coldstream.progress import Progress
from coldstream.units import MIB

# Prefix of the problems of a segmented file's second copy.
COPY = "in one piece "


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a stored model, and the objects that hold its bytes, in order; in one piece too if it has `plain`."""

    path: str
    size: int
    objects: tuple[StoredObject, ...]
    plain: StoredObject | None = None
    entry: FileEntry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """What the store holds under a model's name."""

    name: str
    record: Manifest | Journal | None  # None if another tool stored it
    listing: Mapping[str, ObjectInfo]  # its objects but the manifest, by their keys relative to the model
    pool: Mapping[str, ObjectInfo]  # the segments of all models by their keys with a leading "/"

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The model's files, from its manifest, or from the listing if it has none."""
        if isinstance(self.record, Manifest):
            root = root_of(self.name, self.record)

            def from_root(stored: StoredObject) -> StoredObject:
                is_shared = stored.key.startswith("/")
                return msgspec.structs.replace(stored, key=f"/{root}{stored.key[1:]}") if is_shared else stored

            return tuple(
                StoredFile(
                    path=entry.path,
                    size=entry.size,
                    objects=tuple(map(from_root, entry.objects)),
                    plain=entry.plain,
                    entry=entry,
                )
                for entry in self.record.files
            )
        return tuple(
            StoredFile(
                path=checked_path(key, where=self.name),
                size=info.size,
                objects=(StoredObject(key=key, size=info.size, etag=info.etag or "-"),),
                entry=None,
            )
            for key, info in sorted(self.listing.items())
        )


def open_model(store: Store, name: str) -> StoredModel:
    """Reads what is stored under `name`; raises NotFoundError, also for another revision than one in the name."""
    name, revision = split_revision(name)
    checked_name(name)
    record, _ = read_record(store, name) or (None, "")
    # Web consoles create "folders": empty objects whose keys end in "/".
    listing = {key: info for key, info in model_listing(store, name).items() if not info.key.endswith("/")}
    listing.pop(MANIFEST_NAME, None)
    if record is None and listing:
        record = component_record(store, name)
    # Weights or a configuration at its top make it a model.
    if record is None and not any(re.fullmatch(r"[^/]*\.safetensors|config\.json", path) for path in listing):
        raise missing_model(store, name, listing)
    check_revision(record.source if record else None, revision, where=f"{store.uri}/{name}")
    pool = pool_listing(store, root=root_of(name, record)) if record and segment_keys(record.files) else {}
    return StoredModel(name=name, record=record, listing=listing, pool=pool)


def component_record(store: Store, name: str) -> Manifest | None:
    """Returns the manifest of the complete model around this folder, with its files only, if it can be read."""
    if (around := outer_record(name, lambda folder: read_record(store, folder))) is None:
        return None
    outer, (record, _) = around
    files = entries_below(record.files, name.removeprefix(f"{outer}/"), model=record.name)
    return msgspec.structs.replace(record, files=files) if isinstance(record, Manifest) and files else None


def stored_bytes(store: Store, name: str, *, copies: bool = False) -> int:
    """How many bytes a model's files have, or all copies of them: what a progress bar needs to know beforehand."""
    return sum(file.size * (2 if copies and file.plain else 1) for file in open_model(store, name).files)


def layout_of(record: Manifest | Journal | None) -> str:
    """How a model's weights are stored: "plain", "segments 480 MiB" or "segments 480 MiB + plain"."""
    segmented = [entry for entry in record.files if entry.object_bytes_max] if record else []
    if not segmented:
        return "plain"
    limit = max(entry.object_bytes_max or 0 for entry in segmented)
    beside = " + plain" if all(entry.plain for entry in segmented) else ""
    return f"segments {limit / MIB:.4g} MiB{beside}"


def object_key(name: str, stored: StoredObject) -> str:
    """Returns the store's key of one of a model's objects."""
    return stored.key[1:] if stored.key.startswith("/") else f"{name}/{stored.key}"


def missing_objects(store: Store, model: StoredModel) -> list[tuple[str, str]]:
    """Compares the store with the manifest: (path, problem) of each object that is missing or different."""
    problems = []
    for file in model.files:
        for number, stored in enumerate((*file.objects, *filter(None, [file.plain])), start=1):
            segment = f"segment {number} of {len(file.objects)} " if stored.key.startswith("/") else ""
            which = COPY if stored is file.plain else segment
            info = model.listing.get(stored.key) or model.pool.get(stored.key)
            if info is None and stored.key.startswith("/") and f"/{ROOT}" not in stored.key:
                info = next((i for i in store.list(stored.key[1:]) if i.key == stored.key[1:]), None)
            if info is None:
                problems.append((file.path, f"{which}is missing"))
            elif info.size != stored.size:
                problems.append((file.path, f"{which}has {info.size} bytes, but the manifest says {stored.size}"))
            elif info.etag and stored.etag not in {"-", info.etag}:
                problems.append((file.path, f"{which}was replaced: ETag {info.etag}, manifest {stored.etag}"))
    return problems


def read_range(
    store: Store,
    name: str,
    objects: Sequence[StoredObject],
    start: int,
    view: memoryview,
    on_read: Callable[[int], None] | None = None,
) -> None:
    """Fills `view` with `[start, start + len(view))` of the file in these objects, each pinned by its ETag."""
    first = 0  # where in the file the current object starts
    for stored in objects:
        begin, end = max(start, first), min(start + len(view), first + stored.size)
        if begin < end:
            store.read_into(
                object_key(name, stored),
                begin - first,
                view[begin - start : end - start],
                if_match=stored.etag if stored.etag != "-" else None,
                on_read=on_read,
            )
        first += stored.size


class StoredFileRead(FileWork):
    """Reads and hashes one file of a stored model; `label` is its name for the progress."""

    digest: OrderedDigest

    def __init__(self, store: Store, name: str, file: StoredFile, progress: Progress, *, label: str) -> None:
        self.file = file
        self.parts = tuple(parts(file.size, PART_BYTES))
        stops = file.entry.chunks.stops if file.entry else None
        self.digest = OrderedDigest(StreamDigest(file.path, file.size, stops=stops))
        self._store, self._name, self._progress = store, name, progress
        self._label = label

    def fetch(self, start: int, view: memoryview) -> None:
        on_read = partial(self._progress.fetched, self._label)
        read_range(self._store, self._name, self.file.objects, start, view, on_read)


def content_problems(file: StoredFile, digests: Digests) -> list[str]:
    """Compares a file's hashes with its manifest entry; empty if they are equal or it has none."""
    entry = file.entry
    if entry is None:
        return []
    problems = [
        f"bytes {start}-{stop - 1} are not those that were uploaded "
        f"(XXH3 {actual[:8]}…, but the manifest says {promised[:8]}…)"
        for (start, stop, promised), (_, _, actual) in zip(entry.chunks.ranges(), digests.chunks.ranges(), strict=True)
        if promised != actual
    ]
    if not problems and entry.sha256 != digests.sha256:
        problems = [f"SHA-256 is {digests.sha256[:12]}…, but the manifest says {entry.sha256[:12]}…"]
    return problems
