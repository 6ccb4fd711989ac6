"""Removes a model: its manifest first, so that no reader starts while its objects are deleted.

Its segments are deleted last, and only those that no other model uses: see `segment_pool`.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass

from coldstream.errors import ManifestError, UsageError
from coldstream.mirror.manifest_records import record_key
from coldstream.mirror.segment_pool import plan_sweep, root_of, segment_keys, sweep
from coldstream.mirror.stored_files import component_record, open_model
from coldstream.model.names import checked_name, split_revision
from coldstream.places.place import PendingUpload, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a removal deletes."""

    name: str
    keys: tuple[str, ...]  # the model's objects, the manifest first
    bytes: int
    uploads: tuple[PendingUpload, ...]  # unfinished multipart uploads below it
    segments: int  # the model's own, and any others that no model uses
    segment_bytes: int
    shared_segments: int  # those of its segments that other models use
    withheld: str | None  # why no segment may be deleted now: a later upload or removal deletes them


def plan_removal(store: Store, name: str) -> Removal:
    """Decides what to delete; deletes nothing. Raises UsageError if the model is part of another one."""
    full, (name, revision) = name, split_revision(name)
    checked_name(name)
    own_segments: set[str] = set()
    # A model with a broken manifest can be removed, but not if a revision was given: it cannot be compared.
    with suppress(*(() if revision else (ManifestError,))):
        record = open_model(store, full).record
        own_segments = segment_keys(record.files, root=root_of(name, record)) if record else set()
    swept = plan_sweep(store, without=name)
    own = record_key(name)
    objects = list(store.list(f"{name}/"))
    keys = sorted((info.key for info in objects), key=lambda key: (key != own, key))
    if own not in keys and (outer := component_record(store, name)):
        raise UsageError(
            f"{name} is part of the model {outer.name}, which would be damaged",
            hint=f"remove the whole model: coldstream remove {shlex.quote(outer.name)}",
        )
    return Removal(
        name=name,
        keys=tuple(keys),
        bytes=sum(info.size for info in objects),
        uploads=tuple(store.uploads(f"{name}/")),
        segments=0 if swept.withheld else len(swept.keys),
        segment_bytes=0 if swept.withheld else swept.bytes,
        shared_segments=len(own_segments & swept.used),
        withheld=swept.withheld if swept.keys or own_segments else None,
    )


def remove(store: Store, removal: Removal) -> None:
    """Carries out the removal. If it is interrupted, run it again; a later upload or removal deletes left segments."""
    store.delete(removal.keys[:1])
    store.delete(removal.keys[1:])
    for pending in removal.uploads:
        store.abort_upload(pending.key, pending.upload_id)
    # Planned again: other models may have changed since the plan was shown.
    sweep(store)
