"""What a copy has on the disk: its journal, checked against its files."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from coldstream.cache.copy_records import (
    DIGEST_BYTES,
    NOT_THERE,
    OURS,
    PLAN_BYTES_MAX,
    RECORD,
    CachedFile,
    CopyPlan,
    parse_plan,
)
from coldstream.machine.disk import read_bounded


class CopyContents:
    """A view of a copy that follows its journal while another process writes it. For one thread.

    Attributes:
        claimed: For each file of the plan, one byte per chunk: 1 if the journal claims it.
        missing: For each file, how many chunks are not claimed.
        journal_bytes: How much of the journal was read: complete records only, and nothing of an invalid journal.
    """

    claimed: list[bytearray]
    missing: list[int]
    journal_bytes: int

    def __init__(self, folder: Path, files: Sequence[CachedFile]) -> None:
        self.folder = folder
        self.files = tuple(files)
        self._journal = folder / OURS / "journal"
        self._reset()
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
            if size < self.journal_bytes or size > self._journal_bytes_max:
                self._reset()
            while size <= self._journal_bytes_max and (
                data := os.pread(descriptor, RECORD.size * 65536, self.journal_bytes)
            ):
                whole = len(data) - len(data) % RECORD.size
                if not whole:
                    break
                self.apply(data[:whole])
                self.journal_bytes += whole
        finally:
            os.close(descriptor)

    def apply(self, records: bytes) -> None:
        """Applies complete records in order; ignores those with an unknown chunk, or another digest than the plan's."""
        for file, chunk, digest in RECORD.iter_unpack(records):
            if file >= len(self.files) or chunk >= len(self.claimed[file]):
                continue
            if self.files[file].digest(chunk) in {None, digest} or digest == NOT_THERE:
                self.set(file, chunk, digest)

    def set(self, file: int, chunk: int, digest: bytes) -> None:
        """Applies the record of one chunk."""
        there = int(digest != NOT_THERE)
        self.missing[file] += self.claimed[file][chunk] - there
        self.claimed[file][chunk] = there
        self._digests[file][chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES] = digest

    def plain_path(self, index: int) -> Path:
        return self.folder / self.files[index].path

    def partial_path(self, index: int) -> Path:
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
        return bytes(self.claimed[index][:reached]).ljust(len(file.stops), b"\0")

    def digests(self, index: int) -> bytes:
        """16 bytes per chunk: the plan's, or the journal's with zeros for missing chunks."""
        known = self.files[index].digests
        if known is not None:
            return known
        digests = self._digests[index]
        return b"".join(
            bytes(digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]) if there else bytes(DIGEST_BYTES)
            for chunk, there in enumerate(self.there(index))
        )

    @property
    def complete(self) -> bool:
        """Whether every file is at its own path and the journal claims all of it."""
        return not any(self.missing) and all(self.is_plain(index) for index in range(len(self.files)))

    def _reset(self) -> None:
        self.claimed = [bytearray(len(file.stops)) for file in self.files]
        self.missing = [len(file.stops) for file in self.files]
        self._digests = [bytearray(DIGEST_BYTES * len(file.stops)) for file in self.files]
        self.journal_bytes = 0


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
