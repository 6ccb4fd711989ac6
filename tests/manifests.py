"""Manifests as earlier versions wrote them."""

from __future__ import annotations

import msgspec

from coldstream.mirror.manifest_records import read_record, record_key
from coldstream.model.manifest import Journal, Manifest, serialize
from coldstream.places.place import Store


def recorded(store: Store, name: str) -> Manifest | Journal:
    """What the store holds of a model."""
    record, _ = read_record(store, name) or (None, None)
    assert record is not None
    return record


def strip_headers(store: Store, name: str) -> None:
    """Writes a model's manifest again, without copies of the headers."""
    record = recorded(store, name)
    files = tuple(
        msgspec.structs.replace(e, chunks=msgspec.structs.replace(e.chunks, header=None)) for e in record.files
    )
    store.put(record_key(name), serialize(msgspec.structs.replace(record, files=files)))
