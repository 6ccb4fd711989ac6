"""A copy's plan and its journal as bytes. Pure.

Only their user can write them, but after a power failure a disk may return anything: inconsistent records are rejected.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from coldstream.errors import IntegrityError, UsageError
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
    """A file of a model, and its chunks.

    Attributes:
        path: Relative to the model's folder.
        size: In bytes.
        stops: One past the last byte of each chunk, growing up to `size`; empty for an empty file.
        digests: The chunks' XXH3-128 digests (16 bytes each, joined), or None where no manifest names them.
    """

    path: str
    size: int
    stops: tuple[int, ...]
    digests: bytes | None

    def bounds(self, chunk: int) -> tuple[int, int]:
        """A chunk's bytes in the file, `[start, stop)`."""
        return (self.stops[chunk - 1] if chunk else 0), self.stops[chunk]

    def digest(self, chunk: int) -> bytes | None:
        """A chunk's digest in the manifest, or None."""
        return None if self.digests is None else self.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """What a complete copy has.

    Attributes:
        uri: Where it was last loaded from.
        name: `org/model`.
        version: Identifies the content.
        files: In the order of their indexes.
    """

    uri: str
    name: str
    version: str
    files: tuple[CachedFile, ...]

    @property
    def bytes_total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def serialize(self) -> bytes:
        """The bytes of `plan.json`."""
        files = [
            {
                "path": file.path,
                "size": file.size,
                "stops": file.stops,
                "xxh3_128": None if file.digests is None else file.digests.hex(),
            }
            for file in self.files
        ]
        record = {"format": FORMAT, "uri": self.uri, "name": self.name, "version": self.version, "files": files}
        return json.dumps(record, separators=(",", ":")).encode()


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
        plan = CopyPlan(
            uri=str(raw["uri"]), name=checked_name(raw["name"]), version=checked_version(raw["version"]), files=files
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError):
        return None
    return None if files_fault(files) else plan


def check_files(files: Sequence[CachedFile], *, where: str) -> None:
    """Raises IntegrityError if these files cannot be in one folder, or their chunks do not cover them."""
    if fault := files_fault(files):
        raise IntegrityError(f"{where} cannot be kept on disk: {fault}")


def files_fault(files: Sequence[CachedFile]) -> str | None:
    """Why these files are rejected, or None."""
    paths = {file.path for file in files}
    if len(paths) < len(files):
        return "a path is listed twice"
    for file in files:
        if fault := file_path_fault(file.path) or _cut_fault(file):
            return f"{file.path[:80]!r}: {fault}"
        segments = file.path.split("/")
        if not paths.isdisjoint("/".join(segments[:depth]) for depth in range(1, len(segments))):
            return f"{file.path[:80]!r}: it is below another file"
    return None


def file_path_fault(path: str) -> str | None:
    """Why a file of a model cannot have this path, or None."""
    if fault := path_fault(path):
        return fault
    # Ignoring case, as some file systems do.
    return f"{OURS}/ is reserved" if path.split("/", maxsplit=1)[0].lower() == OURS else None


def _cut_fault(file: CachedFile) -> str | None:
    if any(stop <= start for start, stop in pairwise((0, *file.stops))):
        return "its chunk stops do not increase"
    if (file.stops[-1] if file.stops else 0) != file.size:
        return f"its chunks do not cover its {file.size} bytes"
    if file.digests is not None and len(file.digests) != DIGEST_BYTES * len(file.stops):
        return f"{len(file.digests)} bytes of digests for {len(file.stops)} chunks"
    return None


def checked_version(version: str) -> str:
    """The version, if it is a valid folder name.

    Raises:
        UsageError: It is not.
    """
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"{version[:60]!r} is not a model's version", hint="up to 200 letters, digits, '.', '_', ':' and '-'"
        )
    return version


class Presence:
    """The chunks that the journal claims, with their digests.

    Attributes:
        there: For each file, one byte per chunk: 1 if it is claimed.
        digests: For each file, 16 bytes per chunk: zeros if it is not.
        missing: For each file, how many chunks are not claimed.
    """

    def __init__(self, files: Sequence[CachedFile]) -> None:
        self._files = files
        self.there = [bytearray(len(file.stops)) for file in files]
        self.digests = [bytearray(DIGEST_BYTES * len(file.stops)) for file in files]
        self.missing = [len(file.stops) for file in files]

    def apply(self, records: bytes) -> None:
        """Applies complete records in order; ignores those with an unknown chunk, or another digest than the plan's."""
        for file, chunk, digest in RECORD.iter_unpack(records):
            if file < len(self.there) and chunk < len(self.there[file]) and self._plausible(file, chunk, digest):
                self.set(file, chunk, digest)

    def set(self, file: int, chunk: int, digest: bytes) -> None:
        """Applies the record of one chunk."""
        there = int(digest != NOT_THERE)
        self.missing[file] += self.there[file][chunk] - there
        self.there[file][chunk] = there
        self.digests[file][chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES] = digest

    def _plausible(self, file: int, chunk: int, digest: bytes) -> bool:
        return self._files[file].digest(chunk) in {None, digest} or digest == NOT_THERE


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number")
    return value
