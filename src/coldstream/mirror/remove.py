"""Remove: a model's objects, its manifest first, so that nobody begins to read what is about to go."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from coldstream.errors import ManifestError
from coldstream.mirror.reading import open_model
from coldstream.mirror.records import record_key
from coldstream.paths import checked_name
from coldstream.store import PendingUpload, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What will go.

    Attributes:
        name: The model's.
        keys: Its objects, the manifest first.
        bytes: What they hold.
        uploads: Unfinished multipart uploads below it.
    """

    name: str
    keys: tuple[str, ...]
    bytes: int
    uploads: tuple[PendingUpload, ...]


def plan_removal(store: Store, name: str) -> Removal:
    """Looks what there is to remove; removes nothing.

    Raises:
        NotFoundError: There is no such model.
    """
    checked_name(name)
    with suppress(ManifestError):  # a model with a broken manifest is there all the same
        open_model(store, name)
    own = record_key(name)
    found = list(store.list(f"{name}/"))
    keys = sorted((info.key for info in found), key=lambda key: (key != own, key))
    return Removal(
        name=name,
        keys=tuple(keys),
        bytes=sum(info.size for info in found),
        uploads=tuple(store.uploads(f"{name}/")),
    )


def remove(store: Store, removal: Removal) -> None:
    """Carries it out. Interrupted and repeated, it goes on."""
    store.delete(removal.keys[:1])
    store.delete(removal.keys[1:])
    for pending in removal.uploads:
        store.abort_upload(pending.key, pending.upload_id)
