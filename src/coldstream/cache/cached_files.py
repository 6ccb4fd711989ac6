"""What a copy has on the disk: its journal, checked against its files."""

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
        files: Its plan's.
        presence: The journal's claims when it was last read.
    """

    def __init__(self, folder: Path, files: Sequence[CachedFile]) -> None:
        self.folder = folder
        self.files = tuple(files)
        self.presence = Presence(self.files)
        self._journal = folder / OURS / "journal"
        self._read_bytes = 0
        # A record for each chunk, and two for each time that it was wrong. A much longer file is not a valid journal.
        self._journal_bytes_max = RECORD.size * (16 * sum(len(file.stops) for file in self.files) + 4096)

    def refresh(self) -> None:
        """Reads new records of the journal, except an incomplete one at its end."""
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
        """How much of the journal was read: complete records only, and nothing of an invalid journal."""
        return self._read_bytes

    def plain_path(self, index: int) -> Path:
        """The path of the complete file."""
        return self.folder / self.files[index].path

    def partial_path(self, index: int) -> Path:
        """The path of the incomplete file."""
        return self.folder / OURS / "partial" / self.files[index].path

    def is_plain(self, index: int) -> bool:
        """Whether the file is at its own path, with its own size."""
        return _size(self.plain_path(index)) == self.files[index].size

    def path(self, index: int) -> Path:
        """The present path of the file; the partial path if it does not exist."""
        return self.plain_path(index) if self.is_plain(index) else self.partial_path(index)

    def there(self, index: int) -> bytes:
        """One byte per chunk: 1 if the journal claims it and the file is long enough."""
        file = self.files[index]
        size = file.size if self.is_plain(index) else _size(self.partial_path(index)) or 0
        reached = len(file.stops) if size >= file.size else bisect_right(file.stops, size)
        return bytes(self.presence.there[index][:reached]).ljust(len(file.stops), b"\0")

    def digests(self, index: int) -> bytes:
        """16 bytes per chunk: the plan's, or the journal's with zeros for missing chunks."""
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
        """Whether every file is at its own path and the journal claims all of it."""
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
    """A copy's plan, or None if it is missing or invalid."""
    data = read_bounded(folder / OURS / "plan.json", PLAN_BYTES_MAX)
    return parse_plan(data) if data is not None else None


def _size(path: Path) -> int | None:
    """A regular file's size, or None."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
