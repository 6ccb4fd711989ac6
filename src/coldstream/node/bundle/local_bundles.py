"""Caches on this machine: one folder for each key, whole or not, held by the starts that use it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import checked_root, disk_errors, make_folders, open_locked, read_bounded, try_lock, unlock
from coldstream.node.bundle.bundle_key import Key

# Of the digest, in paths: those inside caches are long enough.
_DIGITS = 16
# How long another start's restoring is waited for.
_WAIT_SECONDS = 30.0
_MARK_BYTES_MAX = 256 << 10
# Caches that no start has used for so long are removed; what a killed restore left, sooner.
_OLD_SECONDS = 30 * 86400.0
_STAGED_SECONDS = 86400.0


class LocalBundle:
    """The caches of one key.

    Attributes:
        root: Their folder: the same path on every node with the same settings.
    """

    def __init__(self, base: Path, key: Key) -> None:
        """Touches nothing.

        Args:
            base: The folder with the caches of all keys.
            key: Whose.
        """
        self.base, self.key = base, key
        self.root = base / key.digest[:_DIGITS]
        self._mark = base / f"{self.root.name}.json"
        self._lock: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether a start with them came up, or they came whole from the store; else they may be anything."""
        return self._mark.exists() and self.root.is_dir()

    def hold(self) -> bool:
        """Takes hold of them; whether nobody else on this machine does. Makes their folder.

        Raises:
            DiskError: The disk fails, or the folder is not private to this user.
        """
        checked_root(self.base.parent, create=True)
        with disk_errors(self.base):
            make_folders(self.base)
            _remove_old(self.base, kept=self.root.name)
            alone = self._take()
            make_folders(self.root)
            if self._mark.exists():
                os.utime(self._mark)
        return alone

    def _take(self) -> bool:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            for exclusive in (True, False):
                self._lock = open_locked(self.base / f"{self.root.name}.lock", exclusive=exclusive)
                if self._lock is not None:
                    return exclusive
            # Somebody restores; what they restore is wanted here too.
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)

    def share(self) -> None:
        """Lets others use them as well."""
        if self._lock is not None:
            try_lock(self._lock, exclusive=False)

    @contextmanager
    def replaced(self) -> Iterator[Path]:
        """An empty folder that takes their place after the block. Only for who holds them alone.

        Raises:
            DiskError: The disk fails.
        """
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
        """Says that they are whole.

        Args:
            name: The model's, for `local_bundles_of`.
        """
        record = {"format": 1, "name": name, "parts": dict(self.key.parts)}
        with disk_errors(self._mark):
            write_atomically(self._mark, json.dumps(record).encode(), staging=self.base)

    def close(self) -> None:
        """Lets go of them. Idempotent."""
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None


def local_bundles_of(base: Path, name: str) -> list[LocalBundle]:
    """The whole caches of a model on this machine, the ones used last first."""
    found = []
    for mark in base.glob("*.json"):
        parts = _parts_of(mark, name)
        if parts is not None and (kept := LocalBundle(base, Key(parts=parts))).root.name == mark.stem and kept.is_whole:
            # A start may take them away meanwhile.
            with suppress(FileNotFoundError):
                found.append((mark.stat().st_mtime, kept))
    return [kept for _, kept in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _parts_of(mark: Path, name: str) -> Mapping[str, str] | None:
    try:
        record = json.loads(read_bounded(mark, _MARK_BYTES_MAX) or b"")
        if record["format"] != 1 or record["name"] != name:
            return None
        return {str(part): str(value) for part, value in record["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remove_old(base: Path, *, kept: str) -> None:
    now = time.time()
    with os.scandir(base) as entries:
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != kept]
    for entry in folders:
        mark = base / f"{entry.name}.json"
        staged = entry.name.startswith((".new-", ".old-"))
        with suppress(OSError):
            # Another start may have taken it away meanwhile.
            used = max((path.stat().st_mtime for path in (mark, Path(entry.path)) if path.exists()), default=now)
            if now - used < (_STAGED_SECONDS if staged else _OLD_SECONDS):
                continue
            lock = open_locked(base / f"{entry.name}.lock", exclusive=True)
            if lock is not None:
                mark.unlink(missing_ok=True)
                shutil.rmtree(entry.path, ignore_errors=True)
                (base / f"{entry.name}.lock").unlink(missing_ok=True)
                unlock(lock)
