"""The pool of segments that all models of a store share: what its keys are, and when something leaves it.

A segment is an object of immutable content, `.coldstream/segments/<first two digits>/<SHA-256>`; manifests and journals
refer to it by that key. Nobody counts references. Whoever replaced or removed a model sweeps afterwards: segments that
no manifest and no journal names are deleted, whatever became of those who stored them.

What keeps an upload that runs meanwhile safe from a sweep is the order of looking. A sweep lists the segments, then
reads the records, then deletes; and it deletes nothing at all while another model's journal was written within a day.
An upload opens its journal before it stores or relies on its first segment, and looks for all of them once more before
it commits. So a segment that the sweep saw, whoever relies on it has opened a journal before or commits after: in
the first case the sweep stays its hand, in the second the upload finds the segment missing, stores it again or stops.
What is left is an upload that begins, looks and commits within the seconds between a sweep's reading and its deleting.
`list` and `verify` show such a model as damaged, and uploading it again mends it. docs/manifest.md says the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from coldstream.errors import CredentialsError, ManifestError
from coldstream.mirror.manifest_records import read_record
from coldstream.model.manifest import FileEntry, Journal, Manifest
from coldstream.model.names import MANIFEST_NAME
from coldstream.places.store import ObjectInfo, PendingUpload, Store

ROOT = ".coldstream/segments/"
# An upload writes its journal when it begins and whenever a file is done. One that was silent for this long is dead.
GRACE = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What there is to sweep.

    Attributes:
        keys: Segments that nobody refers to.
        bytes: What they hold.
        uploads: Unfinished multipart uploads of segments.
        used: The keys that records refer to.
        withheld: Why nothing may be deleted now, or None.
    """

    keys: tuple[str, ...] = ()
    bytes: int = 0
    uploads: tuple[PendingUpload, ...] = ()
    used: frozenset[str] = frozenset()
    withheld: str | None = None


def segment_key(sha256: str) -> str:
    """Where the segment with this content is, as a manifest names it: from the store's root."""
    return f"/{ROOT}{sha256[:2]}/{sha256}"


def segment_keys(files: Iterable[FileEntry], *, root: str = "") -> set[str]:
    """The store's keys of all segments of these files; `root` as `root_of` gives it."""
    return {
        f"{root}{stored.key[1:]}" for entry in files for stored in entry.objects if stored.key.startswith(f"/{ROOT}")
    }


def root_of(name: str, record: Manifest | Journal) -> str:
    """Where in the store the root lies that a record's keys with a leading "/" are relative to; with a "/" at its end.

    Not at the store's own root when that lies above the one that the model was uploaded to: `s3://bucket` rather than
    `s3://bucket/team`, whose model `org/model` is `team/org/model` then. The record knows the name that it had.
    """
    root = name.removesuffix(record.name)
    return root if root.endswith("/") and root != name else ""


def pool_listing(store: Store, *, root: str = "") -> dict[str, ObjectInfo]:
    """Every segment in the store, by its key with a leading "/"."""
    return {f"/{info.key}": info for info in store.list(root + ROOT)}


def plan_sweep(store: Store, *, without: str | None = None) -> Sweep:
    """Looks what may go; deletes nothing.

    Args:
        store: Where.
        without: A model that does not count, because it is about to go.
    """
    try:
        uploads = tuple(store.uploads(ROOT))
        segments = list(store.list(ROOT))
    except CredentialsError:
        return Sweep(withheld="these keys reach no segments")  # they are one model's, and may well remove that
    if not segments and not uploads:
        return Sweep()
    used: set[str] = set()
    withheld = None
    for info in store.list(""):
        name, _, last = info.key.rpartition("/")
        if last != MANIFEST_NAME or not name or name == without:
            continue
        try:
            found = read_record(store, name)
        except ManifestError:
            withheld = f"the manifest of {name} cannot be read, so what it refers to is not known"
            continue
        if found is None:
            continue
        record = found[0]
        used |= segment_keys(record.files, root=root_of(name, record))
        if isinstance(record, Journal) and record.created > datetime.now(timezone.utc) - GRACE:
            withheld = f"an upload of {name} is running or was broken off within a day"
    unused = [info for info in segments if info.key not in used]
    return Sweep(
        keys=tuple(info.key for info in unused),
        bytes=sum(info.size for info in unused),
        uploads=uploads,
        used=frozenset(used),
        withheld=withheld,
    )


def sweep(store: Store) -> Sweep:
    """Deletes what nobody refers to, unless something says that it is not the time; the next sweep sees it again."""
    found = plan_sweep(store)
    if found.withheld is None:
        store.delete(found.keys)
        for pending in found.uploads:
            store.abort_upload(pending.key, pending.upload_id)
    return found
