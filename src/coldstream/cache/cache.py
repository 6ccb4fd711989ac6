"""The cache: opens copies, finds the latest one, lists and prunes them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
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
    prunable,
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
    """A node's copies of models in one folder, shared by all processes of one user. Safe across processes.

    Attributes:
        root: The folder, created when first needed; a private one inside a folder that is shared with other users.
        bytes_max: The limit of all copies together; the least recently used are evicted. None: half of the file
            system's size, with a tenth of it or 10 GB left free.
    """

    def __init__(self, root: Path, *, bytes_max: int | None = None) -> None:
        self.root = private_root(root.absolute())
        self.bytes_max = bytes_max

    def __repr__(self) -> str:
        return f"Cache({self.root}, bytes_max={self.bytes_max})"

    def open(self, *, uri: str, name: str, version: str, files: Sequence[CachedFile]) -> LocalCopy:
        """Creates a copy, or reopens an existing one. Another plan under the same version starts over.

        Takes milliseconds; the writer makes room.

        Args:
            uri: As the user named the model; without secrets.
            name: `org/model`.
            version: Identifies the content: a manifest's digest, a commit.
            files: In the order of their indexes.

        Raises:
            DiskError: The folder is not private to this user, the disk is full or fails, or another process uses
                this version with another plan.
            UsageError: The name or the version is not a valid folder name.
            IntegrityError: A path leaves the folder, or the chunks do not cover a file.
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
                    # After a return to an older version, that one is the last.
                    mark_latest(self.root, plan)
            except BaseException:
                copy.close()
                raise
            return copy

    def latest(self, uri: str) -> LocalCopy | None:
        """The last copy of this URI, if it is complete and still exists: for a start without the network.

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
        """Removes copies that are not in use, the least recently used first, and leftovers of killed removals.

        Args:
            keep_bytes: Stop when all copies together take no more than this.
            names: Only copies of these models; empty for all.
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
                copies = entries_locked(self.root)
                used_before = None if older_seconds is None else time.time() - older_seconds
                victims = prunable(copies, keep_bytes=keep_bytes, names=names, used_before=used_before)
                if dry_run:
                    return victims
                for copy in victims:
                    discard(self.root, copy.folder)
            sweep(self.root)
        return victims

    def limit_bytes(self, used_bytes: int) -> int:
        """The limit of all copies together, which take `used_bytes` now.

        Raises:
            DiskError: The disk fails.
        """
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        with disk_errors(self.root):
            disk = disk_of(existing, self.bytes_max)
        return max(min(disk.limit_bytes, used_bytes + disk.room_bytes), 0) if self.bytes_max is None else self.bytes_max

    def _settle(self, folder: Path, plan: CopyPlan) -> None:
        """Makes `folder` a copy of this plan. The caller holds the root's lock."""
        if folder.exists():
            existing = read_plan(folder)
            if existing == plan:
                return
            if existing and replace(existing, uri=plan.uri) == plan:
                write_atomically(folder / OURS / "plan.json", plan.serialize(), staging=folder / OURS)
                return
            if (folder / OURS).is_dir() and is_locked(folder / OURS / "lock"):
                raise DiskError(
                    f"another process uses version {plan.version} of {plan.name} with a different list of files",
                    hint="if the model was replaced under the same version, wait for that process to end",
                    operation="cache",
                    target=str(folder),
                )
            discard(self.root, folder)
        # Created elsewhere and moved into place: a folder in its place always has a plan. Not synced, since a load
        # waits; a plan that a power failure destroyed means starting over.
        staging = trash_name(self.root)
        make_folders(staging / OURS / "partial")
        write_atomically(staging / OURS / "plan.json", plan.serialize(), staging=staging / OURS)
        for name in ("journal", "lock", "writer.lock", "used"):
            os.close(open_private(staging / OURS / name, os.O_WRONLY | os.O_CREAT))
        make_folders(folder.parent)
        os.rename(staging, folder)

    def _hold(self, folder: Path, plan: CopyPlan) -> LocalCopy:
        lock = open_locked(folder / OURS / "lock", exclusive=False)
        # Never refused: the lock is exclusive only while the root's lock is held too.
        assert lock is not None
        return LocalCopy(folder, plan, self.bytes_max, lock=lock)


def cache_of(settings: Settings) -> Cache:
    """The cache of these settings; raises as `configured`."""
    return configured(settings.get("COLDSTREAM_CACHE_DIR"), settings.get("COLDSTREAM_CACHE_LIMIT"))


def configured(directory: str | None, limit: str | None) -> Cache:
    """The cache in a directory.

    Args:
        directory: COLDSTREAM_CACHE_DIR. None: `coldstream` in XDG_CACHE_HOME or ~/.cache, or a private folder among the
            temporary files if the user has no home.
        limit: COLDSTREAM_CACHE_LIMIT, a size. None: see `Cache`.

    Raises:
        ConfigError: The limit is not a size.
    """
    try:
        bytes_max = parse_bytes(limit) if limit is not None else None
    except UsageError as exc:
        raise ConfigError(f"COLDSTREAM_CACHE_LIMIT: {limit!r} is not a size", hint=exc.hint) from exc
    root = expanded(directory) if directory is not None else _default_root()
    return Cache(root, bytes_max=bytes_max)


def _default_root() -> Path:
    # By the XDG specification, a relative path is ignored.
    for around in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(around):
            return Path(around) / "coldstream"
    # Neither HOME nor an entry in passwd, as in containers that run as an arbitrary user.
    return temporary_folder()
