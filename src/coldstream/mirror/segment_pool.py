"""The pool of segments that all models of a store share: its keys, and when a segment is deleted.

A segment is an object of immutable content, `.coldstream/segments/<first two digits>/<SHA-256>`. Manifests and journals
refer to it by that key; there are no reference counts. An upload or removal that replaced or removed a model sweeps
afterwards: it deletes the segments that no manifest and no journal refers to, whatever became of their writers.

A sweep lists the segments, then reads the records, then deletes, but nothing while the journal of another model was
written within the last day. An upload opens its journal before it stores or relies on its first segment, and checks all
of them again before it commits: it stops the sweep, or it finds the segment missing and stores it again or stops. What
remains is an upload that starts, checks and commits within the seconds between the reads and the deletes of a sweep.
`list` and `verify` report such a model as damaged, and another upload repairs it (docs/manifest.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from coldstream.errors import CredentialsError, ManifestError
from coldstream.mirror.manifest_records import read_record
from coldstream.model.manifest import FileEntry, Journal, Manifest
from coldstream.model.names import MANIFEST_NAME
from coldstream.places.place import ObjectInfo, PendingUpload, Store

ROOT = ".coldstream/segments/"
# An upload writes its journal when it starts and after each file. One without a write for this long is dead.
GRACE = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep deletes."""

    keys: tuple[str, ...] = ()  # that no record refers to
    bytes: int = 0
    uploads: tuple[PendingUpload, ...] = ()  # unfinished ones, of segments
    used: frozenset[str] = frozenset()  # the keys that records refer to
    withheld: str | None = None  # why nothing may be deleted now


def segment_key(sha256: str) -> str:
    """Returns the key of the segment with this content, as in manifests: with a leading "/"."""
    return f"/{ROOT}{sha256[:2]}/{sha256}"


def segment_keys(files: Iterable[FileEntry], *, root: str = "") -> set[str]:
    """Returns the store's keys of all segments of these files; `root` as from `root_of`."""
    return {
        f"{root}{stored.key[1:]}" for entry in files for stored in entry.objects if stored.key.startswith(f"/{ROOT}")
    }


def root_of(name: str, record: Manifest | Journal) -> str:
    """Returns the prefix that a record's keys with a leading "/" are relative to: empty, or with a "/" at its end."""
    # If the model was uploaded to a store whose root is below this one, such as `s3://bucket/team`, the record holds
    # the name that the model had there.
    root = name.removesuffix(record.name)
    return root if root.endswith("/") and root != name else ""


def pool_listing(store: Store, *, root: str = "") -> dict[str, ObjectInfo]:
    """Returns every segment in the store, by its key with a leading "/"."""
    return {f"/{info.key}": info for info in store.list(root + ROOT)}


def plan_sweep(store: Store, *, without: str | None = None) -> Sweep:
    """Finds the unused segments; deletes nothing. The references of the model `without` do not count."""
    try:
        uploads = tuple(store.uploads(ROOT))
        segments = list(store.list(ROOT))
    except CredentialsError:
        # Keys for one model cannot see the pool, but may remove their model.
        return Sweep(withheld="these credentials have no access to the segments")
    if not segments and not uploads:
        return Sweep()
    used: set[str] = set()
    withheld = None
    for info in store.list(""):
        name, _, last = info.key.rpartition("/")
        if last != MANIFEST_NAME or not name or name == without:
            continue
        try:
            record, _ = read_record(store, name) or (None, "")
        except ManifestError:
            withheld = f"the manifest of {name} cannot be read, so its segments are unknown"
            continue
        if record is None:
            continue
        used |= segment_keys(record.files, root=root_of(name, record))
        if isinstance(record, Journal) and record.created > datetime.now(timezone.utc) - GRACE:
            withheld = f"an upload of {name} is running or was interrupted within the last day"
    unused = [info for info in segments if info.key not in used]
    return Sweep(
        keys=tuple(info.key for info in unused),
        bytes=sum(info.size for info in unused),
        uploads=uploads,
        used=frozenset(used),
        withheld=withheld,
    )


def sweep(store: Store) -> Sweep:
    """Deletes the unused segments, unless a reason withholds that."""
    plan = plan_sweep(store)
    if plan.withheld is None:
        store.delete(plan.keys)
        for pending in plan.uploads:
            store.abort_upload(pending.key, pending.upload_id)
    return plan
