"""A model's local copy, as a load uses it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.cache.cached_files import CopyContents
from coldstream.cache.copy_records import OURS, CopyPlan, file_path_fault
from coldstream.cache.copy_writer import CopyWriter
from coldstream.errors import IntegrityError
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import disk_errors, make_folders, unlock

if TYPE_CHECKING:
    from typing_extensions import Self


class LocalCopy:
    """Protects a copy from eviction until `close`. For one thread of the process that opened it.

    Reading follows the journal while another process writes it; a chunk stays, unless a reader finds it wrong.

    Attributes:
        folder: Its path.
        files: In the plan; indexes refer to it.
        uri: Where it is loaded from.
        name: The model's.
        version: The model's.
    """

    def __init__(self, folder: Path, plan: CopyPlan, bytes_max: int | None, *, lock: int) -> None:
        """Use `Cache.open`. Takes ownership of `lock`."""
        self.folder = folder
        self.uri, self.name, self.version, self.files = plan.uri, plan.name, plan.version, plan.files
        self._bytes_max = bytes_max
        self._lock: int | None = lock
        self._contents = CopyContents(folder, plan.files)

    def __repr__(self) -> str:
        return f"LocalCopy({self.name}, {self.version}, {'closed' if self._lock is None else 'open'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether every file of the plan is complete, at its own path."""
        with disk_errors(self.folder):
            self._contents.refresh()
            return self._contents.complete

    def have(self, index: int) -> bytes:
        """One byte per chunk of a file: 1 if the copy has it."""
        with disk_errors(self.folder):
            self._contents.refresh()
            return self._contents.there(index)

    def digests(self, index: int) -> bytes:
        """16 bytes per chunk of a file: the plan's or, without a manifest, those written, or zeros.

        Readers have to check each chunk: nothing else notices a flipped bit, or bytes lost in a power failure.
        """
        with disk_errors(self.folder):
            self._contents.refresh()
            return self._contents.digests(index)

    def path(self, index: int) -> Path:
        """The present path of a file.

        A writer moves it when it is complete, and back when a chunk is forgotten: if it is gone when it is opened,
        call this again. An open descriptor stays valid.
        """
        with disk_errors(self.folder):
            return self._contents.path(index)

    def put(self, path: str, data: bytes) -> None:
        """Writes a small file that is not in the plan (config.json), atomically.

        Raises:
            IntegrityError: The path leaves the folder.
            DiskError: The disk is full or fails.
        """
        if fault := file_path_fault(path):
            raise IntegrityError(f"{self.name} has a file {path[:80]!r} that is rejected: {fault}")
        if any(file.path == path for file in self.files):
            raise ValueError(f"{path} is in the plan: its chunks go through the writer")
        target = self.folder / path
        with disk_errors(target):
            make_folders(target.parent)
            write_atomically(target, data, staging=self.folder / OURS)

    def touch(self) -> None:
        """Marks it as used now."""
        with disk_errors(self.folder):
            os.utime(self.folder / OURS / "used")

    def writer(self, *, repair: bool = False) -> CopyWriter | None:
        """Writes it from this process: see `CopyWriter.open`."""
        return CopyWriter.open(self.folder, bytes_max=self._bytes_max, repair=repair)

    def close(self) -> None:
        """Allows eviction. Idempotent."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            unlock(lock)
