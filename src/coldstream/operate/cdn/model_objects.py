"""A model's objects behind the domain, and which of them a plan of Cloudflare's can cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from coldstream.errors import NotFoundError, UsageError
from coldstream.mirror.segment_pool import ROOT
from coldstream.mirror.stored_files import StoredFile, object_key, open_model
from coldstream.model.selection import is_weights
from coldstream.places.place import Store

_SEGMENT = re.compile(rf"(?:^|/){re.escape(ROOT)}[0-9a-f]{{2}}/(?P<sha256>[0-9a-f]{{64}})$")
_MB = 10**6
# The largest object that a plan caches (docs cache/concepts/default-cache-behavior); Enterprise can raise its limit.
PLANS = {"free": 512 * _MB, "pro": 512 * _MB, "business": 512 * _MB, "enterprise": 5000 * _MB}
# If less of a bucket's weights can be cached, a cache rule does not speed up a load.
USEFUL_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CdnObject:
    """One object of a model."""

    model: str
    key: str  # relative to the bucket: it follows the domain in a URL
    label: str
    size: int
    etag: str | None  # without quotes; None if it is not known
    sha256: str | None
    is_weights: bool  # whether it holds weights, or a part of them
    is_read: bool  # whether a load by coldstream reads it through the domain


def limit_of(plan: str | None) -> int:
    """The size of the largest object that a plan caches; the smallest limit of all plans for None."""
    if plan is None:
        return min(PLANS.values())
    if plan not in PLANS:
        raise UsageError(f"{plan[:40]!r} is not a known plan of Cloudflare", hint=f"known: {', '.join(PLANS)}")
    return PLANS[plan]


def kept_share(objects: Iterable[CdnObject], limit_bytes: int) -> float | None:
    """The share of the weights' bytes that can be cached; None without weights."""
    sizes = [item.size for item in objects if item.is_weights]
    return sum(size for size in sizes if size <= limit_bytes) / sum(sizes) if any(sizes) else None


def objects_of(store: Store, name: str) -> list[CdnObject]:
    """The objects of a model, without its manifest, which is always read from the bucket."""
    model, prefix = open_model(store, name), key_prefix(store)
    objects: dict[str, CdnObject] = {}
    for file in model.files:
        for item in _of_file(file, model.name, prefix):
            objects.setdefault(item.key, item)
    return list(objects.values())


def is_stored(store: Store, item: CdnObject) -> bool:
    """Whether the bucket has an object now, whatever the CDN answers."""
    try:
        store.head(item.key.removeprefix(key_prefix(store)))
    except NotFoundError:
        return False
    return True


def key_prefix(store: Store) -> str:
    """The beginning of the store's keys in its bucket: a store may be a prefix, but the domain is the whole bucket."""
    prefix = urlsplit(store.uri).path.strip("/")
    return f"{prefix}/" if prefix else ""


def _of_file(file: StoredFile, name: str, prefix: str) -> Iterator[CdnObject]:
    weights = is_weights(file.path)
    for number, stored in enumerate([*file.objects, *([file.plain] if file.plain else [])], start=1):
        key = f"{prefix}{object_key(name, stored)}"
        segment = _SEGMENT.search(key)
        is_plain = stored is file.plain
        is_whole = len(file.objects) == 1 or is_plain
        yield CdnObject(
            model=name,
            key=key,
            label=f"{file.path} {number}/{len(file.objects)}" if stored.key.startswith("/") else file.path,
            size=stored.size,
            etag=stored.etag if stored.etag != "-" else None,
            sha256=segment["sha256"] if segment else file.entry.sha256 if file.entry and is_whole else None,
            is_weights=weights,
            is_read=weights and not is_plain and file.entry is not None,
        )
