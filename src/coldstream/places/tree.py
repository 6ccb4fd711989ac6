"""The files below a folder, links followed; and the folder of the Hugging Face cache that holds a model."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFSOCK, S_ISDIR

from coldstream.errors import UsageError
from coldstream.model.names import path_fault

_CACHED = "models--"
_KINDS = {S_IFDIR: "a folder", S_IFIFO: "a named pipe", S_IFSOCK: "a socket", S_IFCHR: "a device", S_IFBLK: "a device"}


@dataclass(frozen=True, slots=True)
class WalkedFile:
    """A file below a folder, or another entry with a `fault`: the reason why it cannot be used.

    `path` is relative, with `/`; bytes that are not UTF-8 are escaped.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    fault: str | None = None


def walk(folder: Path, *, hidden: bool = False) -> Iterator[WalkedFile]:
    """All files below a folder, links followed; `hidden`: hidden folders (version control, records) too.

    Raises OSError if the folder itself cannot be read.
    """
    stat = folder.stat()
    return _walk(os.listdir(folder), folder, "", {(stat.st_dev, stat.st_ino)}, hidden=hidden)


def _walk(
    names: Sequence[str], folder: Path, prefix: str, around: set[tuple[int, int]], *, hidden: bool
) -> Iterator[WalkedFile]:
    for name in sorted(names):
        path = os.fsencode(prefix + name).decode(errors="backslashreplace")
        try:
            stat = (folder / name).stat()
            if not S_ISDIR(stat.st_mode):
                kind = _KINDS.get(S_IFMT(stat.st_mode))
                fault = path_fault(path) if path == prefix + name else "its name is not UTF-8"
                fault = f"it is {kind}" if kind else fault
                yield WalkedFile(path, stat.st_size, stat.st_mtime_ns) if not fault else WalkedFile(path, fault=fault)
            elif (identity := (stat.st_dev, stat.st_ino)) in around:
                yield WalkedFile(path, fault="it is a link to a folder that it lies in")
            elif hidden or not name.startswith("."):
                inner = folder / name
                yield from _walk(os.listdir(inner), inner, f"{prefix}{name}/", around | {identity}, hidden=hidden)
        except OSError as exc:
            broken = (folder / name).is_symlink() and exc.errno in {errno.ENOENT, errno.ELOOP}
            yield WalkedFile(path, fault="it is a broken link" if broken else f"it cannot be read: {exc.strerror}")


def open_regular(path: Path) -> FileIO:
    """Opens a regular file to read it, unbuffered; never waits for a pipe's other end. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if kind := _KINDS.get(S_IFMT(os.fstat(descriptor).st_mode)):
        os.close(descriptor)
        raise OSError(errno.EISDIR if kind == "a folder" else errno.EINVAL, f"it is {kind}", str(path))
    return FileIO(descriptor, "rb")


def snapshot_of(folder: Path) -> Path:
    """The folder of a model's files: `folder`, or the snapshot in a `models--org--name` folder of the Hub's cache.

    Raises UsageError for several snapshots without `main`, and for the whole cache.
    """
    if (folder / "config.json").exists():
        return folder
    if not (folder / "snapshots").is_dir():
        if model := next(folder.glob(f"{_CACHED}*/snapshots"), None):
            raise UsageError(f"{folder} holds several models", hint=f"name one of them: {model.parent}")
        return folder
    with suppress(OSError, UnicodeDecodeError):
        main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        if main.is_dir() and main.parent == folder / "snapshots":
            return main
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if len(snapshots) != 1:
        one = snapshots[0] if snapshots else folder / "snapshots" / "COMMIT"
        raise UsageError(f"{folder} has {len(snapshots)} snapshots and none is main", hint=f"name one of them: {one}")
    return snapshots[0]


def folder_model(folder: Path) -> str:
    """The name of a model in a folder: `org/name` in the Hugging Face cache, else the folder's."""
    around = folder.parent.parent if folder.parent.name == "snapshots" else folder
    cached = around.name.startswith(_CACHED)
    return around.name.removeprefix(_CACHED).replace("--", "/") if cached else folder.name
