"""A model's files as they lie in the store: which there are, and how a range of one is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from coldstream.errors import CredentialsError
from coldstream.mirror.manifest_records import read_record
from coldstream.mirror.segment_pool import ROOT, pool_listing, root_of, segment_keys
from coldstream.model.manifest import FileEntry, Journal, Manifest, StoredObject, check_revision, entries_below
from coldstream.model.names import MANIFEST_NAME, checked_name, checked_path, split_revision
from coldstream.places.model_listing import missing_model
from coldstream.places.store import ObjectInfo, Store
from coldstream.units import MIB

# What a fault of a file's second copy begins with.
COPY = "in one piece "


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file to read back.

    Attributes:
        path: Relative to the model.
        size: In bytes.
        objects: Where it lies, in order.
        plain: The object that holds it once more in one piece, or None.
        entry: What the manifest says of it; None for a model without one.
    """

    path: str
    size: int
    objects: tuple[StoredObject, ...]
    plain: StoredObject | None = None
    entry: FileEntry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """What the store holds under a name.

    Attributes:
        name: The model's.
        record: Its manifest, its journal, or None when other tools put it there.
        listing: Key, relative to the model, to what the store says of the object; the manifest itself left out.
        pool: Key, with a leading "/", to what the store says of a segment; those of other models too.
    """

    name: str
    record: Manifest | Journal | None
    listing: Mapping[str, ObjectInfo]
    pool: Mapping[str, ObjectInfo]

    @property
    def layout(self) -> str:
        """How its weights are stored: see `layout_of`."""
        return layout_of(self.record)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The model's files: by its manifest, or by the listing when it has none."""
        if isinstance(self.record, Manifest):
            root = root_of(self.name, self.record)
            return tuple(
                StoredFile(
                    path=entry.path,
                    size=entry.size,
                    objects=tuple(_from_root(stored, root) for stored in entry.objects),
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
    """What is stored under `name`, which may be given with a revision.

    Raises:
        NotFoundError: Nothing that looks like a model, or another revision.
        ManifestError: Its manifest cannot be trusted.
    """
    name, revision = split_revision(name)
    checked_name(name)
    found = read_record(store, name)
    listing = {
        info.key.removeprefix(f"{name}/"): info
        for info in store.list(f"{name}/")
        # Consoles make "folders" as empty objects whose keys end in "/".
        if not info.key.endswith("/")
    }
    listing.pop(MANIFEST_NAME, None)
    component = component_record(store, name) if found is None and listing else None
    if found is None and component is None and not looks_like_model(listing):
        raise missing_model(store, name, listing)
    record = found[0] if found else component
    check_revision(record.source if record else None, revision, where=f"{store.uri}/{name}")
    pool = pool_listing(store, root=root_of(name, record)) if record and segment_keys(record.files) else {}
    return StoredModel(name=name, record=record, listing=listing, pool=pool)


def component_record(store: Store, name: str) -> Manifest | None:
    """The manifest of the complete model that a folder without one is a part of, with the files of this folder only.

    None where there is none, or where it may not be read.
    """
    segments = name.split("/")
    for depth in range(len(segments) - 1, 0, -1):
        outer = "/".join(segments[:depth])
        with suppress(CredentialsError):
            if found := read_record(store, outer):
                record, folder = found[0], name.removeprefix(f"{outer}/")
                files = entries_below(record.files, folder, model=record.name)
                return msgspec.structs.replace(record, files=files) if isinstance(record, Manifest) and files else None
    return None


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


def looks_like_model(paths: Mapping[str, object] | Sequence[str]) -> bool:
    """Whether these files, relative to a folder, make it a model's: weights or a configuration at its top."""
    return any("/" not in path and (path.endswith(".safetensors") or path == "config.json") for path in paths)


def object_key(name: str, stored: StoredObject) -> str:
    """The store's key of one of a model's objects."""
    return stored.key[1:] if stored.key.startswith("/") else f"{name}/{stored.key}"


def _from_root(stored: StoredObject, root: str) -> StoredObject:
    """The object, with a key that is relative to this store's root if it was to another one's."""
    return msgspec.structs.replace(stored, key=f"/{root}{stored.key[1:]}") if stored.key.startswith("/") else stored


def missing_objects(store: Store, model: StoredModel) -> list[tuple[str, str]]:
    """The objects that the manifest names and the store does not hold as it says: (path, what is wrong)."""
    faults = []
    for file in model.files:
        beside = (file.plain,) if file.plain else ()
        for number, stored in enumerate((*file.objects, *beside), start=1):
            segment = f"segment {number} of {len(file.objects)} "
            which = COPY if stored is file.plain else segment if stored.key.startswith("/") else ""
            info = model.listing.get(stored.key) or model.pool.get(stored.key)
            if info is None and stored.key.startswith("/") and f"/{ROOT}" not in stored.key:
                info = next((i for i in store.list(stored.key[1:]) if i.key == stored.key[1:]), None)
            if info is None:
                faults.append((file.path, f"{which}is missing"))
            elif info.size != stored.size:
                faults.append((file.path, f"{which}has {info.size} bytes, the manifest says {stored.size}"))
            elif info.etag and stored.etag not in {"-", info.etag}:
                faults.append((file.path, f"{which}was replaced: ETag {info.etag}, the manifest says {stored.etag}"))
    return faults


def read_range(
    store: Store,
    name: str,
    objects: Sequence[StoredObject],
    start: int,
    view: memoryview,
    on_read: Callable[[int], None],
) -> None:
    """Fills `view` with `[start, start + len(view))` of the file that `objects` hold, each pinned by its ETag."""
    first = 0  # the file's position at which the present object starts
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
