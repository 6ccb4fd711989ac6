"""Packs a relocatable environment into a squashfs image, with an unpacker for nodes that may not mount it.

Squashfs, because a mounted image needs no file creation, which is what takes long for 60,000 files; with zstd, and in
blocks of 256 KiB, which cost the first import the least (docs/runtime.md).
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coldstream.errors import ColdstreamError, DiskError, NotFoundError
from coldstream.machine.parallel import in_parallel
from coldstream.runtime.runtime_manifest import CHUNK_BYTES, FORMAT, Image, Platform, RuntimeManifest, Unpacker

_PACK = ("-comp", "zstd", "-Xcompression-level", "3", "-b", "256K", "-all-root", "-no-xattrs", "-noappend")
# Times that depend on when files were installed would change the image.
_QUIET = ("-quiet", "-no-progress", "-reproducible", "-mkfs-time", "0", "-all-time", "0")
_FILE_SYSTEM_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRuntime:
    """A runtime on this machine, to be published: its image is a file, its unpacker a tar."""

    manifest: RuntimeManifest
    image: Path
    unpacker: bytes = field(repr=False)


@contextmanager
def packed(fill: Callable[[Path], Platform]) -> Iterator[PackedRuntime]:
    """A runtime of what `fill` puts into an empty folder; it exists within the block.

    Raises NotFoundError if squashfs-tools is not installed, and DiskError if the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="coldstream-runtime-") as folder:
        out, path, tar = Path(folder, "root"), Path(folder, "image"), unpacker()
        out.mkdir()
        manifest = RuntimeManifest(
            format=FORMAT,
            platform=fill(out),
            image=pack(out, path),
            unpacker=Unpacker(size=len(tar), sha256=_sha256(tar)),
        )
        yield PackedRuntime(manifest=manifest, image=path, unpacker=tar)


def pack(folder: Path, path: Path) -> Image:
    """Writes the image of a folder to `path`, and describes it. Raises what `packed` raises."""
    done = subprocess.run([_tool("mksquashfs"), folder, path, *_PACK, *_QUIET], capture_output=True, check=False)
    if done.returncode:
        message = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise DiskError(f"cannot pack the runtime: {message}", hint="check free space: df -h", target=str(path))
    files, unpacked = _count(folder)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        chunks = in_parallel(
            lambda start: _sha256(os.pread(file.fileno(), CHUNK_BYTES, start)), range(0, size, CHUNK_BYTES)
        )
    return Image(size=size, unpacked=unpacked, files=files, chunk_bytes=CHUNK_BYTES, chunks=chunks)


def unpacker() -> bytes:
    """A tar of `unsquashfs`, the C library that it was built for, and its loader `ld.so`: it runs on any Linux."""
    program = Path(_tool("unsquashfs"))
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    needed = [line.split("=>")[-1].split("(")[0].strip() for line in done.stdout.splitlines()]
    paths = {os.path.basename(path): Path(path) for path in needed if path.startswith("/")}
    loader = next((name for name in paths if name.startswith("ld-linux")), None)
    if loader is None:
        raise ColdstreamError(f"cannot see what {program} needs: {done.stderr.strip() or done.stdout.strip()}")
    files = {"unsquashfs": program, "ld.so": paths.pop(loader), **paths}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, path in sorted(files.items()):
            data = path.resolve().read_bytes()
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise NotFoundError(f"{name} is not installed", hint="run: apt install squashfs-tools   (or dnf, zypper)")
    return path


def _count(folder: Path) -> tuple[int, int]:
    """How many files, and their bytes in whole blocks."""
    files = unpacked = 0
    for parent, folders, names in os.walk(folder):
        unpacked += _FILE_SYSTEM_BLOCK * len(folders)
        for name in names:
            size = os.lstat(os.path.join(parent, name)).st_size
            files, unpacked = files + 1, unpacked - (-size // _FILE_SYSTEM_BLOCK) * _FILE_SYSTEM_BLOCK
    return files, unpacked


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
