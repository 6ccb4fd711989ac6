"""Remove: a model's objects, its manifest first, so that nobody begins to read what is about to go.

Its segments go last, and only those that no other model has: see `pool`.
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
from coldstream.places.store import PendingUpload, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What will go.

    Attributes:
        name: The model's.
        keys: Its objects, the manifest first.
        bytes: What they hold.
        uploads: Unfinished multipart uploads below it.
        segments: How many segments go: its own, and any that nobody refers to.
        segment_bytes: What those hold.
        shared_segments: How many of its segments stay, because other models have them too.
        withheld: Why no segment may go now, or None. A later upload or removal takes them.
    """

    name: str
    keys: tuple[str, ...]
    bytes: int
    uploads: tuple[PendingUpload, ...]
    segments: int
    segment_bytes: int
    shared_segments: int
    withheld: str | None


def plan_removal(store: Store, name: str) -> Removal:
    """Looks what there is to remove; removes nothing.

    Raises:
        NotFoundError: There is no such model.
        UsageError: It is a part of another one.
    """
    full, (name, revision) = name, split_revision(name)
    checked_name(name)
    own_segments: set[str] = set()
    # A model with a broken manifest is there all the same, but nothing tells its revision.
    with suppress(*(() if revision else (ManifestError,))):
        record = open_model(store, full).record
        own_segments = segment_keys(record.files, root=root_of(name, record)) if record else set()
    swept = plan_sweep(store, without=name)
    own = record_key(name)
    found = list(store.list(f"{name}/"))
    keys = sorted((info.key for info in found), key=lambda key: (key != own, key))
    if own not in keys and (outer := component_record(store, name)):
        raise UsageError(
            f"{name} is a part of the model {outer.name}, which would be damaged",
            hint=f"remove all of it: coldstream remove {shlex.quote(outer.name)}",
        )
    return Removal(
        name=name,
        keys=tuple(keys),
        bytes=sum(info.size for info in found),
        uploads=tuple(store.uploads(f"{name}/")),
        segments=0 if swept.withheld else len(swept.keys),
        segment_bytes=0 if swept.withheld else swept.bytes,
        shared_segments=len(own_segments & swept.used),
        withheld=swept.withheld if swept.keys or own_segments else None,
    )


def remove(store: Store, removal: Removal) -> None:
    """Carries it out. Interrupted and repeated, it goes on; segments that it left go with a later upload or removal."""
    store.delete(removal.keys[:1])
    store.delete(removal.keys[1:])
    for pending in removal.uploads:
        store.abort_upload(pending.key, pending.upload_id)
    # Looked at anew: much may have happened since the plan was shown.
    sweep(store)
