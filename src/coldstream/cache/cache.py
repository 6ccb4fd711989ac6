"""The cache: opens copies, finds the latest one, lists and prunes them; and a copy, as a load uses it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.cache import space
from coldstream.cache.copy_records import OURS, CachedFile, CopyContents, CopyPlan, checked_plan, read_plan
from coldstream.cache.copy_writer import CopyWriter
from coldstream.errors import ConfigError, UsageError
from coldstream.machine import disk
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.closing import Closing
from coldstream.model.names import expanded
from coldstream.units import parse_bytes

if TYPE_CHECKING:
    from coldstream.settings import Settings


class Cache:
    """A node's copies of models in one folder, shared by all processes of one user. Safe across processes.

    Every method raises DiskError if the folder is not private to this user, or the disk is full or fails. The least
    recently used copies are evicted when all take more than `bytes_max`; None is as in `space.disk_of`.
    """

    def __init__(self, root: Path, *, bytes_max: int | None = None) -> None:
        self.root = disk.private_root(root.absolute())
        self.bytes_max = bytes_max

    def __repr__(self) -> str:
        return f"Cache({self.root}, bytes_max={self.bytes_max})"

    def open(self, *, uri: str, name: str, version: str, files: Sequence[CachedFile]) -> LocalCopy:
        """Creates a copy, or reopens an existing one. Another plan under the same version starts over.

        `uri` is as the user named the model, without secrets; `version` identifies the content: a manifest's digest, a
        commit. Raises DiskError also if another process uses this version with another plan.
        """
        plan = checked_plan(uri=uri, name=name, version=version, files=tuple(files))
        folder = space.model_folder(self.root, name, version)
        disk.checked_root(self.root, create=True)
        with disk.disk_errors(folder), ExitStack() as closing:
            with disk.root_locked(self.root):
                self._settle(folder, plan)
                copy = closing.enter_context(self._hold(folder, plan))
            copy.touch()
            if copy.complete:
                # After a return to an older version, that one is the last.
                space.mark_latest(self.root, plan)
            closing.pop_all()
            return copy

    def latest(self, uri: str) -> LocalCopy | None:
        """The last copy of this URI, if it is complete and still exists: for a start without the network."""
        if not disk.checked_root(self.root, create=False):
            return None
        with disk.disk_errors(self.root), ExitStack() as closing:
            folder = space.latest_folder(self.root, uri)
            if folder is None:
                return None
            with disk.root_locked(self.root):
                plan = read_plan(folder)
                if plan is None or space.model_folder(self.root, plan.name, plan.version) != folder:
                    return None
                copy = closing.enter_context(self._hold(folder, replace(plan, uri=uri)))
            if not copy.complete:
                return None
            copy.touch()
            closing.pop_all()
            return copy

    def entries(self) -> list[space.CachedCopy]:
        """All copies, least recently used first."""
        if not disk.checked_root(self.root, create=False):
            return []
        with disk.disk_errors(self.root), disk.root_locked(self.root):
            return space.entries_locked(self.root)

    def prune(
        self,
        *,
        keep_bytes: int = 0,
        names: Sequence[str] = (),
        older_seconds: float | None = None,
        dry_run: bool = False,
    ) -> list[space.CachedCopy]:
        """Removes copies that are not in use, the least recently used first, and leftovers of killed removals.

        Stops when all copies together take no more than `keep_bytes`. Removes only copies of the models `names`, unless
        empty, that were not used for `older_seconds`. Returns what was removed, or would be.
        """
        if not disk.checked_root(self.root, create=False):
            return []
        with disk.disk_errors(self.root):
            with disk.root_locked(self.root):
                copies = space.entries_locked(self.root)
                used_before = float("inf") if older_seconds is None else time.time() - older_seconds
                left_bytes = sum(copy.bytes for copy in copies)
                victims = []
                for copy in copies:
                    if keep_bytes and left_bytes <= keep_bytes:
                        break
                    is_named = not names or copy.name in names
                    if is_named and copy.used.timestamp() < used_before and not copy.in_use:
                        victims.append(copy)
                        left_bytes -= copy.bytes
                if dry_run:
                    return victims
                for copy in victims:
                    space.discard(self.root, copy.folder)
            space.sweep(self.root)
        return victims

    def limit_bytes(self, used_bytes: int) -> int:
        """The limit of all copies together, which take `used_bytes` now."""
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        with disk.disk_errors(self.root):
            limits = space.disk_of(existing, self.bytes_max)
        if self.bytes_max is not None:
            return self.bytes_max
        return max(min(limits.limit_bytes, used_bytes + limits.room_bytes), 0)

    def _settle(self, folder: Path, plan: CopyPlan) -> None:
        """Makes `folder` a copy of this plan. The caller holds the root's lock."""
        if folder.exists():
            existing = read_plan(folder)
            if existing == plan:
                return
            if existing and replace(existing, uri=plan.uri) == plan:
                write_atomically(folder / OURS / "plan.json", plan.serialize(), staging=folder / OURS)
                return
            if (folder / OURS).is_dir() and disk.is_locked(folder / OURS / "lock"):
                raise disk.cache_error(
                    folder,
                    f"another process uses version {plan.version} of {plan.name} with a different list of files",
                    hint="if the model was replaced under the same version, wait for that process to end",
                )
            space.discard(self.root, folder)
        # Created elsewhere and moved into place: a folder in its place always has a plan. Not synced, since a load
        # waits; a plan that a power failure destroyed means starting over.
        staging = disk.trash_name(self.root)
        disk.make_folders(staging / OURS / "partial")
        write_atomically(staging / OURS / "plan.json", plan.serialize(), staging=staging / OURS)
        for name in ("journal", "lock", "writer.lock", "used"):
            os.close(disk.open_private(staging / OURS / name, os.O_WRONLY | os.O_CREAT))
        disk.make_folders(folder.parent)
        os.rename(staging, folder)

    def _hold(self, folder: Path, plan: CopyPlan) -> LocalCopy:
        lock = disk.open_locked(folder / OURS / "lock", exclusive=False)
        # Never refused: the lock is exclusive only while the root's lock is held too.
        assert lock is not None
        return LocalCopy(folder, plan, self.bytes_max, lock=lock)


class LocalCopy(Closing):
    """Protects a copy from eviction until `close`, and follows its journal. For one thread of its process."""

    def __init__(self, folder: Path, plan: CopyPlan, bytes_max: int | None, *, lock: int) -> None:
        """Use `Cache.open`. Takes ownership of `lock`."""
        self.folder = folder
        self.uri, self.name, self.version, self.files = plan.uri, plan.name, plan.version, plan.files
        self._bytes_max = bytes_max
        self._lock: int | None = lock
        self._contents = CopyContents(folder, plan.files)

    def __repr__(self) -> str:
        return f"LocalCopy({self.name}, {self.version}, {'closed' if self._lock is None else 'open'})"

    @property
    def complete(self) -> bool:
        with disk.disk_errors(self.folder):
            self._contents.refresh()
            return self._contents.complete

    def have(self, index: int) -> bytes:
        """One byte per chunk of a file: 1 if the copy has it."""
        with disk.disk_errors(self.folder):
            self._contents.refresh()
            return self._contents.there(index)

    def digests(self, index: int) -> bytes:
        """16 bytes per chunk of a file: the plan's or, without a manifest, those written, or zeros."""
        with disk.disk_errors(self.folder):
            self._contents.refresh()
            return self._contents.digests(index)

    def path(self, index: int) -> Path:
        """The present path of a file. A writer may move it: if it is gone when it is opened, call this again."""
        with disk.disk_errors(self.folder):
            return self._contents.path(index)

    def touch(self) -> None:
        with disk.disk_errors(self.folder):
            os.utime(self.folder / OURS / "used")

    def writer(self, *, repair: bool = False) -> CopyWriter | None:
        return CopyWriter.open(self.folder, bytes_max=self._bytes_max, repair=repair)

    def close(self) -> None:
        """Allows eviction. Idempotent."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            disk.unlock(lock)


def cache_of(settings: Settings) -> Cache:
    """The cache of these settings; raises as `configured`."""
    return configured(settings.get("COLDSTREAM_CACHE_DIR"), settings.get("COLDSTREAM_CACHE_LIMIT"))


def configured(directory: str | None, limit: str | None) -> Cache:
    """The cache in `directory`, or else in XDG_CACHE_HOME, ~/.cache or the temporary files; raises ConfigError."""
    try:
        bytes_max = parse_bytes(limit) if limit is not None else None
    except UsageError as exc:
        raise ConfigError(f"COLDSTREAM_CACHE_LIMIT: {limit!r} is not a size", hint=exc.hint) from exc
    if directory is not None:
        return Cache(expanded(directory), bytes_max=bytes_max)
    # By the XDG specification, a relative path is ignored.
    around = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(around):
        # Containers that run as an arbitrary user may have neither HOME nor an entry in passwd, or the home `/`.
        around = os.path.expanduser("~/.cache")
        if not os.path.isabs(around) or not disk.can_be_created(Path(around, "coldstream")):
            return Cache(disk.temporary_folder(), bytes_max=bytes_max)
    return Cache(Path(around, "coldstream"), bytes_max=bytes_max)
