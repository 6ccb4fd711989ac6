"""Lists the copies in the cache, decides which have to go to make room, and removes them.

A removed copy is renamed to trash while the root's lock is held, and deleted afterwards, if need be by another process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from coldstream.cache.copy_records import FORMAT, OURS, CopyContents, CopyPlan, checked_version, read_plan
from coldstream.errors import UsageError
from coldstream.machine import disk
from coldstream.machine.atomic_file import write_atomically
from coldstream.model.names import checked_name
from coldstream.units import format_bytes

# The default limit: models may take half of the disk, and leave a tenth of it free, but not more than 10 GB: a tenth of
# a node's NVMe is hundreds of gigabytes.
DEFAULT_SHARE = 2
DEFAULT_FREE_SHARE = 10
DEFAULT_FREE_BYTES_MAX = 10 * 10**9

_LATEST_BYTES_MAX = 64 << 10
# Longer names of models are cut, and made unique by a hash. File systems allow 255 bytes.
_NAME_BYTES_MAX = 200
_OR = "or point COLDSTREAM_CACHE_DIR to a larger disk; the load goes on without the cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedCopy:
    """A copy in the cache, as it is listed."""

    name: str
    version: str
    uri: str  # empty if its plan cannot be read
    folder: Path
    bytes: int  # on the disk now
    bytes_total: int  # when the copy is complete
    complete: bool
    in_use: bool  # so it is not evicted
    writing: bool  # whether a process fills it
    used: datetime  # when it was last opened

    @property
    def bytes_reserved(self) -> int:
        """What it takes, or will take when its writer is done."""
        return max(self.bytes, self.bytes_total) if self.writing else self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The limit of all copies together, and the free space, of which `kept_bytes` are left to others."""

    limit_bytes: int
    free_bytes: int
    kept_bytes: int = 0

    @property
    def room_bytes(self) -> int:
        """What can be written without deleting anything; negative if others lack space already."""
        return self.free_bytes - self.kept_bytes


def model_folder(root: Path, name: str, version: str) -> Path:
    """The folder of a copy, from its checked name and version."""
    flat = name.replace("/", "--")
    if len(flat) > _NAME_BYTES_MAX:
        flat = f"{flat[: _NAME_BYTES_MAX - 17]}-{_sha256(name)[:16]}"
    # A colon is a separator in the options of many tools.
    return root / "models" / flat / version.replace(":", "-")


def root_of(folder: Path) -> Path:
    """The cache's root, from a copy's folder."""
    return folder.parents[2]


def entries_locked(root: Path) -> list[CachedCopy]:
    """All copies, least recently used first. The caller holds the root's lock."""
    # A link in the place of a folder is not followed.
    folders = [
        folder
        for folder in root.glob("models/*/*")
        if folder.is_dir() and not folder.is_symlink() and not folder.parent.is_symlink()
    ]
    return sorted((_describe(folder) for folder in folders), key=lambda entry: (entry.used, entry.folder))


def disk_of(root: Path, bytes_max: int | None) -> Disk:
    """The limits: `bytes_max`, or by default half of the disk with a tenth of it or 10 GB left free."""
    size, free = disk.size_and_free(root)
    if bytes_max is not None:
        return Disk(limit_bytes=bytes_max, free_bytes=free)
    kept = min(size // DEFAULT_FREE_SHARE, DEFAULT_FREE_BYTES_MAX)
    return Disk(limit_bytes=size // DEFAULT_SHARE, free_bytes=free, kept_bytes=kept)


def victims_for(own: CachedCopy, others: Sequence[CachedCopy], limits: Disk) -> list[CachedCopy]:
    """Which of the others to evict so that `own` can be completed; DiskError if it would not fit even then. Pure."""
    what = f"{own.name} has {format_bytes(own.bytes_total)}"
    if own.bytes_total > limits.limit_bytes:
        raise disk.cache_error(
            own.folder,
            f"{what} and the cache may hold {format_bytes(limits.limit_bytes)}",
            hint=f"raise COLDSTREAM_CACHE_LIMIT, {_OR}",
        )
    unwritten = max(own.bytes_total - own.bytes, 0)
    over_limit = own.bytes_total + sum(entry.bytes_reserved for entry in others) - limits.limit_bytes
    over_disk = unwritten + sum(entry.bytes_reserved - entry.bytes for entry in others) - limits.room_bytes
    needed = max(over_limit, over_disk)
    victims: list[CachedCopy] = []
    for entry in others:
        if needed <= 0:
            break
        if not entry.in_use:
            victims.append(entry)
            needed -= entry.bytes
    if needed > 0:
        lacking, remedy = f"the disk has {format_bytes(limits.free_bytes)} free", "free some space"
        if over_disk < over_limit:
            lacking = f"copies in use take most of the {format_bytes(limits.limit_bytes)} that the cache may hold"
            remedy = "raise COLDSTREAM_CACHE_LIMIT"
        elif limits.kept_bytes:
            lacking += f", {format_bytes(limits.kept_bytes)} for others"
            remedy = "set COLDSTREAM_CACHE_LIMIT, which leaves nothing to others"
        raise disk.cache_error(
            own.folder,
            f"{what}, {format_bytes(unwritten)} of it still to be written, and {lacking}",
            hint=f"{remedy}, {_OR}",
        )
    return victims


def make_room(folder: Path, bytes_max: int | None) -> None:
    """Evicts other copies so that the one in `folder` can be completed; if it does not fit, evicts none: DiskError."""
    root = root_of(folder)
    with disk.disk_errors(root):
        sweep(root)
        with disk.root_locked(root):
            copies = entries_locked(root)
            own = next((entry for entry in copies if entry.folder == folder), None)
            if own is None:
                raise disk.cache_error(folder, f"the cached copy {folder} is gone")
            others = [entry for entry in copies if entry is not own]
            victims = victims_for(own, others, disk_of(root, bytes_max))
            for entry in victims:
                discard(root, entry.folder)
        if victims:
            sweep(root)


def discard(root: Path, folder: Path) -> None:
    """Renames a copy to trash for `sweep`. The caller holds the root's lock, and no process the copy's."""
    os.rename(folder, disk.trash_name(root))
    with suppress(OSError):  # other versions are in it
        os.rmdir(folder.parent)


def sweep(root: Path) -> None:
    """Deletes the trash of this process and of killed ones, and notes of the latest copies that are gone."""
    with disk.root_locked(root):
        # While the lock is held by others, such a name may be a copy that is being created.
        trash = list(root.glob(f"{disk.TRASH_PREFIX}*"))
        for note in root.glob("latest/*"):
            target = _latest_target(root, note)
            if target is None or not target[0].is_dir():
                note.unlink(missing_ok=True)
    if trash:
        import shutil  # slow to import

        for path in trash:
            shutil.rmtree(path, ignore_errors=True)


def mark_latest(root: Path, plan: CopyPlan) -> None:
    """Notes that this plan's version is the last complete one of its URI."""
    path = _latest_path(root, plan.uri)
    record = {"format": FORMAT, "uri": plan.uri, "name": plan.name, "version": plan.version}
    data = json.dumps(record).encode()
    if disk.read_bounded(path, _LATEST_BYTES_MAX) != data:
        # Locked, so that `sweep` does not delete the temporary file.
        with disk.root_locked(root):
            disk.make_folders(path.parent)
            write_atomically(path, data, staging=path.parent, durable=True)


def latest_folder(root: Path, uri: str) -> Path | None:
    """The folder of this URI's last `mark_latest`, which may be gone."""
    target = _latest_target(root, _latest_path(root, uri))
    return target[0] if target and target[1] == uri else None


def _latest_path(root: Path, uri: str) -> Path:
    return root / "latest" / f"{_sha256(uri)}.json"


def _latest_target(root: Path, path: Path) -> tuple[Path, str] | None:
    """The folder and the URI in a file of `latest/`; None if the file is not valid."""
    data = disk.read_bounded(path, _LATEST_BYTES_MAX)
    try:
        raw = json.loads(data or b"")
        if raw["format"] != FORMAT:
            return None
        return model_folder(root, checked_name(raw["name"]), checked_version(raw["version"])), str(raw["uri"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError):
        return None


def _describe(folder: Path) -> CachedCopy:
    ours = folder / OURS
    plan = read_plan(folder)
    contents = CopyContents(folder, plan.files if plan else ())
    contents.refresh()
    has_locks, used = ours.is_dir(), 0.0
    with suppress(FileNotFoundError):
        used = os.stat(ours / "used").st_mtime
    size = disk.bytes_on_disk(folder)
    return CachedCopy(
        name=plan.name if plan else folder.parent.name.replace("--", "/"),
        version=plan.version if plan else folder.name,
        uri=plan.uri if plan else "",
        folder=folder,
        bytes=size,
        bytes_total=plan.bytes_total if plan else size,
        complete=plan is not None and contents.complete,
        in_use=has_locks and disk.is_locked(ours / "lock"),
        writing=has_locks and disk.is_locked(ours / "writer.lock"),
        used=datetime.fromtimestamp(used, timezone.utc),
    )


def _sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
