"""A model's objects: what a load reads of it, and what other tools would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from coldstream.errors import NotFoundError
from coldstream.mirror.segment_pool import ROOT
from coldstream.mirror.stored_files import StoredFile, object_key, open_model
from coldstream.model.selection import is_weights
from coldstream.places.place import Store

_SEGMENT = re.compile(rf"(?:^|/){re.escape(ROOT)}[0-9a-f]{{2}}/(?P<sha256>[0-9a-f]{{64}})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CdnObject:
    """One object.

    Attributes:
        model: The model's name.
        key: Relative to the bucket: it follows the domain in a URL.
        label: For people.
        size: In bytes.
        etag: As the bucket gives it, without quotes; None when it is not known.
        sha256: Of its bytes, in hexadecimal, where that is known.
        is_weights: Whether it holds weights, or a part of them.
        is_read: Whether a load by coldstream reads it through the domain.
    """

    model: str
    key: str
    label: str
    size: int
    etag: str | None
    sha256: str | None
    is_weights: bool
    is_read: bool


def objects_of(store: Store, name: str) -> list[CdnObject]:
    """The objects of a model, without its manifest, which is always read from the bucket.

    Raises:
        NotFoundError: There is no such model.
        ManifestError: Its manifest cannot be trusted.
    """
    model = open_model(store, name)
    objects: dict[str, CdnObject] = {}
    for file in model.files:
        for item in _of_file(file, model.name, _inside(store)):
            objects.setdefault(item.key, item)
    return list(objects.values())


def is_stored(store: Store, item: CdnObject) -> bool:
    """Whether the bucket has an object now, whatever the CDN says of it."""
    try:
        store.head(item.key.removeprefix(_inside(store)))
    except NotFoundError:
        return False
    return True


def _inside(store: Store) -> str:
    """What the keys of a store begin with in its bucket."""
    inside = urlsplit(store.uri).path.strip("/")
    return f"{inside}/" if inside else ""


def _of_file(file: StoredFile, name: str, inside: str) -> list[CdnObject]:
    weights = is_weights(file.path)
    beside = [file.plain] if file.plain else []
    objects = []
    for number, stored in enumerate([*file.objects, *beside], start=1):
        is_segment = stored.key.startswith("/")
        plain = stored is file.plain
        key = f"{inside}{object_key(name, stored)}"
        segment = _SEGMENT.search(key)
        whole = len(file.objects) == 1 or plain
        objects.append(
            CdnObject(
                model=name,
                key=key,
                label=f"{file.path} {number}/{len(file.objects)}" if is_segment else file.path,
                size=stored.size,
                etag=stored.etag if stored.etag != "-" else None,
                sha256=segment["sha256"] if segment else file.entry.sha256 if file.entry and whole else None,
                is_weights=weights,
                is_read=weights and not plain and file.entry is not None,
            )
        )
    return objects
