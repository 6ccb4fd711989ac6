"""A folder as a compressed tar archive, and back into a folder.

Unpacking trusts nothing, although only verified archives get here: it accepts only regular files, with paths that stay
inside the folder, no more and no larger than promised.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, BinaryIO

import msgspec
from msgspec import Meta

from coldstream.errors import IntegrityError
from coldstream.model.names import path_fault
from coldstream.units import MIB

# What a start builds has megabytes; FlashInfer's kernels for one GPU have a few gigabytes.
ARCHIVE_BYTES_MAX = 4 << 30
UNPACKED_BYTES_MAX = 16 << 30
FILES_MAX = 200_000
# Shared objects shrink to a fifth at any level; higher ones only take longer.
_LEVEL = 4


Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """An archive as its pointer describes it; `size` is of the archive, `bytes` of its unpacked files."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=0, le=ARCHIVE_BYTES_MAX)]
    files: Annotated[int, Meta(ge=0, le=FILES_MAX)]
    bytes: Annotated[int, Meta(ge=0, le=UNPACKED_BYTES_MAX)]


def pack(root: str, paths: Iterable[str], out: BinaryIO, *, check: Callable[[], None] = lambda: None) -> Archive:
    """Writes an archive of the files at `paths`, relative to `root`, without those that no longer exist.

    Keeps modification times, because ninja, which FlashInfer builds with, compares them. `out` is also read. What
    `check`, called between files, raises ends the packing.
    """
    files = unpacked = 0
    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=_LEVEL, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(paths):
            check()
            with suppress(FileNotFoundError), open(os.path.join(root, path), "rb") as file:
                status = os.fstat(file.fileno())
                member = tarfile.TarInfo(path)
                member.size, member.mtime = status.st_size, status.st_mtime_ns / 1e9
                member.mode = 0o700 if status.st_mode & 0o100 else 0o600
                tar.addfile(member, file)
                files, unpacked = files + 1, unpacked + status.st_size
    out.flush()
    out.seek(0)
    sha256, size = sha256_of(out)
    return Archive(files=files, bytes=unpacked, size=size, sha256=sha256)


def sha256_of(file: BinaryIO) -> tuple[str, int]:
    """The hexadecimal SHA-256 and the length of the rest of a file."""
    digest, size = hashlib.sha256(), 0
    while data := file.read(MIB):
        digest.update(data)
        size += len(data)
    return digest.hexdigest(), size


def unpack(file: BinaryIO, into: Path, *, files: int, size: int) -> None:
    """Unpacks an archive of exactly `files` files with `size` bytes in all into an empty folder of this user.

    Raises IntegrityError if it holds anything else; some of it may have been unpacked then.
    """
    files_left, size_left = files, size
    try:
        with tarfile.open(fileobj=file, mode="r|gz") as tar:
            for member in tar:
                _check(member)
                files_left, size_left = files_left - 1, size_left - member.size
                if files_left < 0 or size_left < 0:
                    raise IntegrityError(f"the archive holds more than {files} files or {size} bytes")
                source = tar.extractfile(member)
                assert source is not None
                _write(source, into / member.name, member)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeError, ValueError, OverflowError) as exc:
        raise IntegrityError(f"the archive is broken: {exc}") from exc
    if files_left or size_left:
        raise IntegrityError(f"the archive holds fewer than {files} files or {size} bytes")


def _check(member: tarfile.TarInfo) -> None:
    if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.sparse is not None or member.issparse():
        raise IntegrityError(f"the archive holds {member.name[:80]!r}, which is not a regular file")
    if fault := path_fault(member.name):
        raise IntegrityError(f"the archive names a file {member.name[:80]!r} that is refused: {fault}")


def _write(source: IO[bytes], path: Path, member: tarfile.TarInfo) -> None:
    mode = 0o700 if member.mode & 0o100 else 0o600
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Exclusive: of two members with one name the second is refused.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except (FileExistsError, NotADirectoryError) as exc:
        raise IntegrityError(f"the archive holds {member.name[:80]!r} twice, or below another file") from exc
    with open(descriptor, "wb") as target:
        shutil.copyfileobj(source, target, MIB)
    os.utime(path, (member.mtime, member.mtime))
