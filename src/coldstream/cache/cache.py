"""The cache as a whole: opening copies, finding the latest one, listing, pruning."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.cache.cached_files import read_plan
from coldstream.cache.copy_records import OURS, CachedFile, CopyPlan, check_files, checked_version
from coldstream.cache.local_copy import LocalCopy
from coldstream.cache.space import (
    CachedCopy,
    discard,
    disk_of,
    entries_locked,
    latest_folder,
    mark_latest,
    model_folder,
    sweep,
)
from coldstream.errors import ConfigError, DiskError, UsageError
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import (
    checked_root,
    disk_errors,
    is_locked,
    make_folders,
    open_locked,
    open_private,
    private_root,
    root_locked,
    temporary_folder,
    trash_name,
)
from coldstream.model.names import checked_name, expanded
from coldstream.units import parse_bytes

if TYPE_CHECKING:
    from coldstream.settings import Settings


class Cache:
    """A node's copies of models, below one folder, shared by all processes of one user. Safe across processes.

    Attributes:
        root: The folder; made when it is first needed. When the one that was named is shared with other users, it is
            a private one inside that.
        bytes_max: What all copies together may take. None: half of the file system's size, and a tenth of it or
            10 GB stay free. The least recently used make room.
    """

    def __init__(self, root: Path, *, bytes_max: int | None = None) -> None:
        self.root = private_root(root.absolute())
        self.bytes_max = bytes_max

    def __repr__(self) -> str:
        return f"Cache({self.root}, bytes_max={self.bytes_max})"

    def open(self, *, uri: str, name: str, version: str, files: Sequence[CachedFile]) -> LocalCopy:
        """Creates a copy, or reopens what is there of it. Another plan under the same version starts over.

        Takes milliseconds, and makes no room yet: that is the writer's part.

        Args:
            uri: What the user named the model by; holds no secret.
            name: The model's, `org/model`.
            version: What tells its content from any other that the name ever had: a manifest's digest, a commit.
            files: Those that are streamed, in the order that indexes mean.

        Raises:
            DiskError: The folder is not private to this user, the disk is full or fails, or another process uses
                this version with another plan.
            UsageError: The name or the version cannot name a folder.
            IntegrityError: A path leaves the folder, or a file is not cut into whole chunks.
        """
        plan = CopyPlan(uri=uri, name=checked_name(name), version=checked_version(version), files=tuple(files))
        check_files(plan.files, where=name)
        folder = model_folder(self.root, name, version)
        checked_root(self.root, create=True)
        with disk_errors(folder):
            with root_locked(self.root):
                self._settle(folder, plan)
                copy = self._hold(folder, plan)
            try:
                copy.touch()
                if copy.complete:
                    # A URI that went back to an older version has it last.
                    mark_latest(self.root, plan)
            except BaseException:
                copy.close()
                raise
            return copy

    def latest(self, uri: str) -> LocalCopy | None:
        """The copy that this URI had last, if it is complete and still there: for a start without the network.

        Raises:
            DiskError: The folder is not private to this user, or the disk fails.
        """
        if not checked_root(self.root, create=False):
            return None
        with disk_errors(self.root):
            folder = latest_folder(self.root, uri)
            if folder is None:
                return None
            with root_locked(self.root):
                plan = read_plan(folder)
                if plan is None or model_folder(self.root, plan.name, plan.version) != folder:
                    return None
                copy = self._hold(folder, replace(plan, uri=uri))
            try:
                if copy.complete:
                    copy.touch()
                    return copy
            except BaseException:
                copy.close()
                raise
            copy.close()
            return None

    def entries(self) -> list[CachedCopy]:
        """All copies, least recently used first.

        Raises:
            DiskError: The folder is not private to this user, or the disk fails.
        """
        if not checked_root(self.root, create=False):
            return []
        with disk_errors(self.root), root_locked(self.root):
            return entries_locked(self.root)

    def prune(
        self,
        *,
        keep_bytes: int = 0,
        names: Sequence[str] = (),
        older_seconds: float | None = None,
        dry_run: bool = False,
    ) -> list[CachedCopy]:
        """Removes copies, the least recently used first, and whatever killed removals left; never one in use.

        Args:
            keep_bytes: Stop when all copies together take no more than this.
            names: Only copies of these models; empty means of all.
            older_seconds: Only copies that were not used for this long.
            dry_run: Remove nothing.

        Returns:
            What was removed, or would be.

        Raises:
            DiskError: The folder is not private to this user, or the disk fails.
        """
        if not checked_root(self.root, create=False):
            return []
        with disk_errors(self.root):
            with root_locked(self.root):
                found = entries_locked(self.root)
                before = time.time() - (older_seconds or 0.0)
                wanted = (
                    entry
                    for entry in found
                    if not entry.in_use
                    and (not names or entry.name in names)
                    and (older_seconds is None or entry.used.timestamp() < before)
                )
                victims = _down_to(keep_bytes, sum(entry.bytes for entry in found), wanted)
                for entry in () if dry_run else victims:
                    discard(self.root, entry.folder)
            if not dry_run:
                sweep(self.root)
        return victims

    def limit_bytes(self, used_bytes: int) -> int:
        """What all copies together may take, when they take `used_bytes` now.

        Raises:
            DiskError: The disk fails.
        """
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        with disk_errors(self.root):
            disk = disk_of(existing, self.bytes_max)
        return max(min(disk.limit_bytes, used_bytes + disk.room_bytes), 0) if self.bytes_max is None else self.bytes_max

    def _settle(self, folder: Path, plan: CopyPlan) -> None:
        """Sees to it that `folder` holds a copy of this plan. The root's lock is held."""
        if folder.exists():
            found = read_plan(folder)
            if found == plan:
                return
            if found and replace(found, uri=plan.uri) == plan:
                write_atomically(folder / OURS / "plan.json", plan.serialize(), staging=folder / OURS)
                return
            if (folder / OURS).is_dir() and is_locked(folder / OURS / "lock"):
                raise DiskError(
                    f"another process uses version {plan.version} of {plan.name} with a different list of files",
                    hint="was the model replaced under the same version? wait for that process to end",
                    operation="cache",
                    target=str(folder),
                )
            discard(self.root, folder)
        # Made beside its place and moved there whole: a folder in its place always has a plan. It is not synced here,
        # where a load waits; a plan that a power failure took means starting over.
        staging = trash_name(self.root)
        make_folders(staging / OURS / "partial")
        write_atomically(staging / OURS / "plan.json", plan.serialize(), staging=staging / OURS)
        for name in ("journal", "lock", "writer.lock", "used"):
            os.close(open_private(staging / OURS / name, os.O_WRONLY | os.O_CREAT))
        make_folders(folder.parent)
        os.rename(staging, folder)

    def _hold(self, folder: Path, plan: CopyPlan) -> LocalCopy:
        lock = open_locked(folder / OURS / "lock", exclusive=False)
        # Excluded by nobody: the lock is exclusive only while the root's is held too.
        assert lock is not None
        return LocalCopy(folder, plan, self.bytes_max, lock=lock)


def cache_of(settings: Settings) -> Cache:
    """The cache that the settings name.

    Raises:
        What `configured` raises.
    """
    return configured(settings.get("COLDSTREAM_CACHE_DIR"), settings.get("COLDSTREAM_CACHE_LIMIT"))


def configured(directory: str | None, limit: str | None) -> Cache:
    """The cache that the settings name.

    Args:
        directory: COLDSTREAM_CACHE_DIR; None: `coldstream` below XDG_CACHE_HOME or ~/.cache, or a folder of this user's
            own among the temporary files when the user has no home.
        limit: COLDSTREAM_CACHE_LIMIT, a size; None: see `Cache`.

    Raises:
        ConfigError: The limit is no size.
    """
    try:
        bytes_max = parse_bytes(limit) if limit is not None else None
    except UsageError as exc:
        raise ConfigError(f"COLDSTREAM_CACHE_LIMIT is {limit!r}, which is no size", hint=exc.hint) from exc
    root = expanded(directory) if directory is not None else _default_root()
    return Cache(root, bytes_max=bytes_max)


def _default_root() -> Path:
    # The XDG specification: a relative path is to be ignored.
    for around in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(around):
            return Path(around) / "coldstream"
    # Neither HOME nor an entry in passwd, as containers have it that run as an arbitrary user.
    return temporary_folder()


def _down_to(keep_bytes: int, total_bytes: int, candidates: Iterable[CachedCopy]) -> list[CachedCopy]:
    """The first of the candidates whose going brings the total down to `keep_bytes`; with 0, all of them."""
    victims: list[CachedCopy] = []
    for entry in candidates:
        if keep_bytes and total_bytes <= keep_bytes:
            break
        victims.append(entry)
        total_bytes -= entry.bytes
    return victims
