"""A copy's plan and its journal, checked against the files on the disk.

Only their user can write them, but after a power failure a disk may return anything: inconsistent records are rejected.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from coldstream.errors import IntegrityError, UsageError
from coldstream.machine.disk import read_bounded
from coldstream.model.names import checked_name, path_fault

FORMAT = 1
# As for manifests: room for the chunks of some 20 TB.
PLAN_BYTES_MAX = 128 << 20
# Our own folder inside a model's.
OURS = ".coldstream"
DIGEST_BYTES = 16
# A record with this digest revokes earlier ones of its chunk.
NOT_THERE = bytes(DIGEST_BYTES)
# File index, chunk index, XXH3-128 of the chunk.
RECORD = struct.Struct("<II16s")

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """A file of a model."""

    path: str
    size: int
    stops: tuple[int, ...]  # one past the last byte of each chunk; empty for an empty file
    digests: bytes | None  # XXH3-128 of the chunks, 16 bytes each, joined; None where no manifest names them

    def bounds(self, chunk: int) -> tuple[int, int]:
        """A chunk's bytes in the file, `[start, stop)`."""
        return (self.stops[chunk - 1] if chunk else 0), self.stops[chunk]

    def digest(self, chunk: int) -> bytes | None:
        """A chunk's digest in the manifest, or None."""
        return None if self.digests is None else self.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """What a complete copy has: the files in the order of their indexes. `uri` is where it was last loaded from."""

    uri: str
    name: str
    version: str
    files: tuple[CachedFile, ...]

    @property
    def bytes_total(self) -> int:
        return sum(file.size for file in self.files)

    def serialize(self) -> bytes:
        hashes = [None if file.digests is None else file.digests.hex() for file in self.files]
        files = [
            {"path": file.path, "size": file.size, "stops": file.stops, "xxh3_128": xxh3_128}
            for file, xxh3_128 in zip(self.files, hashes, strict=True)
        ]
        record = {"format": FORMAT, "uri": self.uri, "name": self.name, "version": self.version, "files": files}
        return json.dumps(record, separators=(",", ":")).encode()


def checked_plan(*, uri: str, name: str, version: str, files: tuple[CachedFile, ...]) -> CopyPlan:
    """A plan, if its names are those of folders, no path leaves them, and the chunks cover the files."""
    plan = CopyPlan(uri=uri, name=checked_name(name), version=checked_version(version), files=files)
    if fault := _files_fault(files):
        raise IntegrityError(f"{name} cannot be kept on disk: {fault}")
    return plan


def parse_plan(data: bytes) -> CopyPlan | None:
    """Reverses `serialize`; None for anything else, which counts as no copy."""
    try:
        raw = json.loads(data)
        if raw["format"] != FORMAT:
            return None
        files = tuple(
            CachedFile(
                path=str(file["path"]),
                size=_whole(file["size"]),
                stops=tuple(map(_whole, file["stops"])),
                digests=None if file["xxh3_128"] is None else bytes.fromhex(file["xxh3_128"]),
            )
            for file in raw["files"]
        )
        return checked_plan(uri=str(raw["uri"]), name=raw["name"], version=raw["version"], files=files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError, IntegrityError):
        return None


def _files_fault(files: Sequence[CachedFile]) -> str | None:
    paths = {file.path for file in files}
    if len(paths) < len(files):
        return "a path is listed twice"
    for file in files:
        segments = file.path.split("/")
        # Ignoring case, as some file systems do.
        reserved = f"{OURS}/ is reserved" if segments[0].lower() == OURS else None
        if fault := path_fault(file.path) or reserved or _cut_fault(file):
            return f"{file.path[:80]!r}: {fault}"
        if not paths.isdisjoint("/".join(segments[:depth]) for depth in range(1, len(segments))):
            return f"{file.path[:80]!r}: it is below another file"
    return None


def _cut_fault(file: CachedFile) -> str | None:
    if any(stop <= start for start, stop in pairwise((0, *file.stops))):
        return "its chunk stops do not increase"
    if (file.stops[-1] if file.stops else 0) != file.size:
        return f"its chunks do not cover its {file.size} bytes"
    if file.digests is not None and len(file.digests) != DIGEST_BYTES * len(file.stops):
        return f"{len(file.digests)} bytes of digests for {len(file.stops)} chunks"
    return None


def checked_version(version: str) -> str:
    """The version; raises UsageError if it is not a valid folder name."""
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"{version[:60]!r} is not a model's version", hint="up to 200 letters, digits, '.', '_', ':' and '-'"
        )
    return version


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number")
    return value


class CopyContents:
    """A view of a copy that follows its journal while another process writes it. For one thread."""

    claimed: list[bytearray]  # for each file of the plan, one byte per chunk: 1 if the journal claims it
    missing: list[int]  # for each file, how many chunks it does not claim
    journal_bytes: int  # that were read of the journal: complete records only, and nothing of an invalid one

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
        there = int(digest != NOT_THERE)
        self.missing[file] += self.claimed[file][chunk] - there
        self.claimed[file][chunk] = there
        self._digests[file][chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES] = digest

    def plain_path(self, index: int) -> Path:
        return self.folder / self.files[index].path

    def partial_path(self, index: int) -> Path:
        return self.folder / OURS / "partial" / self.files[index].path

    def is_plain(self, index: int) -> bool:
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
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
