"""Caches on this machine: one folder for each key, locked by the starts that use it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import checked_root, disk_errors, make_folders, open_locked, read_bounded, try_lock, unlock
from coldstream.node.bundle.bundle_pointer import Key
from coldstream.node.engine_caches import EngineCaches

# Of the digest, in paths: the paths inside caches are long enough.
_DIGITS = 16
# How long to wait for another start that is restoring the same caches.
_WAIT_SECONDS = 30.0
_MARK_BYTES_MAX = 256 << 10
# Caches that no start has used for so long are removed, and sooner what a killed restore left.
_OLD_SECONDS = 30 * 86400.0
_STAGED_SECONDS = 86400.0

# Relative path to (size, time of change in ns).
Tree = Mapping[str, tuple[int, int]]


class LocalBundle:
    """The caches of one key, in the folder `root`: the same path on every node with the same settings."""

    def __init__(self, base: Path, key: Key, layout: EngineCaches) -> None:
        """Does no I/O. `base` is the folder with the caches of all keys."""
        self.base, self.key, self.layout = base, key, layout
        self.root = base / key.digest[:_DIGITS]
        self._mark = base / f"{self.root.name}.json"
        self._lock: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether a start with them answered, or they were restored as a whole; otherwise they may be anything."""
        return self._mark.exists() and self.root.is_dir()

    def hold(self) -> bool:
        """Creates the folder and locks it; returns whether no other process on this machine holds a lock."""
        checked_root(self.base.parent, create=True)
        with disk_errors(self.base):
            make_folders(self.base)
            _remove_old(self.base, kept=self.root.name)
            is_exclusive = self._take_lock()
            make_folders(self.root)
            if self._mark.exists():
                os.utime(self._mark)
        return is_exclusive

    def _take_lock(self) -> bool:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            for exclusive in (True, False):
                self._lock = open_locked(self.base / f"{self.root.name}.lock", exclusive=exclusive)
                if self._lock is not None:
                    return exclusive
            # Another start is restoring, and this one needs the same caches.
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)

    def share(self) -> None:
        """Lets other starts use them as well."""
        if self._lock is not None:
            try_lock(self._lock, exclusive=False)

    def tree(self) -> dict[str, tuple[int, int]]:
        """The files that belong in a bundle; links do not."""
        files = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                relative = os.path.relpath(path, self.root)
                if not self.layout.keeps(relative):
                    continue
                with suppress(FileNotFoundError):
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode):
                        files[relative] = (status.st_size, status.st_mtime_ns)
        return files

    @contextmanager
    def replaced(self) -> Iterator[Path]:
        """An empty folder that replaces theirs after the block. Requires the exclusive lock."""
        with disk_errors(self.base):
            staging = Path(tempfile.mkdtemp(prefix=".new-", dir=self.base))
            trash = staging.with_name(staging.name.replace(".new-", ".old-"))
            try:
                yield staging
                os.rename(self.root, trash)
                os.rename(staging, self.root)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                shutil.rmtree(trash, ignore_errors=True)

    def mark_whole(self, name: str) -> None:
        """Marks them as whole. `name` is the model's, for `local_bundles_of`."""
        document = {"format": 1, "name": name, "parts": dict(self.key.parts)}
        with disk_errors(self._mark):
            write_atomically(self._mark, json.dumps(document).encode(), staging=self.base)

    def close(self) -> None:
        """Releases the lock. Idempotent."""
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None


def local_bundles_of(base: Path, name: str, layout: EngineCaches) -> list[LocalBundle]:
    """The whole caches of a model on this machine, the most recently used first."""
    bundles = []
    for mark in base.glob("*.json"):
        # A start may remove it at any time, and anything may be in it.
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            document = json.loads(read_bounded(mark, _MARK_BYTES_MAX) or b"")
            if document["format"] != 1 or document["name"] != name:
                continue
            key = Key(parts={str(part): str(value) for part, value in document["parts"].items()})
            local = LocalBundle(base, key, layout)
            if local.root.name == mark.stem and local.is_whole:
                bundles.append((mark.stat().st_mtime, local))
    return [local for _, local in sorted(bundles, key=lambda pair: pair[0], reverse=True)]


def _remove_old(base: Path, *, kept: str) -> None:
    now = time.time()
    with os.scandir(base) as scanned:
        folders = [entry for entry in scanned if entry.is_dir(follow_symlinks=False) and entry.name != kept]
    for entry in folders:
        mark = base / f"{entry.name}.json"
        is_staged = entry.name.startswith((".new-", ".old-"))
        with suppress(OSError):
            # Another start may remove it at the same time.
            used = max((path.stat().st_mtime for path in (mark, Path(entry.path)) if path.exists()), default=now)
            if now - used < (_STAGED_SECONDS if is_staged else _OLD_SECONDS):
                continue
            lock = open_locked(base / f"{entry.name}.lock", exclusive=True)
            if lock is not None:
                mark.unlink(missing_ok=True)
                shutil.rmtree(entry.path, ignore_errors=True)
                (base / f"{entry.name}.lock").unlink(missing_ok=True)
                unlock(lock)
