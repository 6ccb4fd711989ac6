"""What of a copy lies on the disk: its journal, checked against the files that are there."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from coldstream.cache.copy_records import (
    DIGEST_BYTES,
    OURS,
    PLAN_BYTES_MAX,
    RECORD,
    CachedFile,
    CopyPlan,
    Presence,
    parse_plan,
)
from coldstream.machine.disk import read_bounded


class CopyContents:
    """A view of a copy that follows its journal while another process writes it. For one thread.

    Attributes:
        folder: The copy's.
        files: Its plan.
        presence: What the journal claimed when it was last read.
    """

    def __init__(self, folder: Path, files: Sequence[CachedFile]) -> None:
        self.folder = folder
        self.files = tuple(files)
        self.presence = Presence(self.files)
        self._journal = folder / OURS / "journal"
        self._read_bytes = 0
        # Each chunk stands there once, and once more for every time that it was found wrong. A journal that claims
        # far more is no journal.
        self._journal_bytes_max = RECORD.size * (16 * sum(len(file.stops) for file in self.files) + 4096)

    def refresh(self) -> None:
        """Reads what the journal gained. A record that is not whole yet is left for the next time."""
        try:
            descriptor = os.open(self._journal, os.O_RDONLY)
        except FileNotFoundError:
            self._reset()
            return
        try:
            size = os.fstat(descriptor).st_size
            if size < self._read_bytes or size > self._journal_bytes_max:
                self._reset()
            if size <= self._journal_bytes_max:
                self._follow(descriptor)
        finally:
            os.close(descriptor)

    @property
    def journal_bytes(self) -> int:
        """How much of the journal `refresh` has read: whole records alone, none of a journal that is refused."""
        return self._read_bytes

    def plain_path(self, index: int) -> Path:
        """Where the complete file lies."""
        return self.folder / self.files[index].path

    def partial_path(self, index: int) -> Path:
        """Where the file lies before it is complete."""
        return self.folder / OURS / "partial" / self.files[index].path

    def is_plain(self, index: int) -> bool:
        """Whether the file lies at its own place, with its own size."""
        return _size(self.plain_path(index)) == self.files[index].size

    def path(self, index: int) -> Path:
        """Where the file lies now; the partial path when it is nowhere."""
        return self.plain_path(index) if self.is_plain(index) else self.partial_path(index)

    def there(self, index: int) -> bytes:
        """One byte per chunk: 1 when the journal claims it and the file reaches that far."""
        file = self.files[index]
        size = file.size if self.is_plain(index) else _size(self.partial_path(index)) or 0
        reached = len(file.stops) if size >= file.size else bisect_right(file.stops, size)
        return bytes(self.presence.there[index][:reached]).ljust(len(file.stops), b"\0")

    def digests(self, index: int) -> bytes:
        """16 bytes per chunk: the plan's, or the journal's with zeros for what is not there."""
        known = self.files[index].digests
        if known is not None:
            return known
        digests = self.presence.digests[index]
        return b"".join(
            bytes(digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]) if there else bytes(DIGEST_BYTES)
            for chunk, there in enumerate(self.there(index))
        )

    @property
    def complete(self) -> bool:
        """Whether every file lies at its own place and the journal claims all of it."""
        return not any(self.presence.missing) and all(self.is_plain(index) for index in range(len(self.files)))

    def _reset(self) -> None:
        self.presence = Presence(self.files)
        self._read_bytes = 0

    def _follow(self, descriptor: int) -> None:
        while data := os.pread(descriptor, RECORD.size * 65536, self._read_bytes):
            whole = len(data) - len(data) % RECORD.size
            if not whole:
                break
            self.presence.apply(data[:whole])
            self._read_bytes += whole


def read_plan(folder: Path) -> CopyPlan | None:
    """A copy's plan; None when there is none that can be trusted."""
    data = read_bounded(folder / OURS / "plan.json", PLAN_BYTES_MAX)
    return parse_plan(data) if data is not None else None


def _size(path: Path) -> int | None:
    """A regular file's size, or None."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
