"""Files that appear complete or not at all, even with several writers.

A file is written under a random name, created without following links, and renamed into place when it is complete.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

# The beginning of all temporary names, which makes files of killed processes recognisable.
TEMPORARY_PREFIX = ".coldstream-new-"


class StagedFile:
    """A new file that will replace `path`. As a context manager, it is discarded unless it was installed."""

    def __init__(self, path: Path, *, staging: Path | None = None, mode: int = 0o600) -> None:
        """Creates it, empty, in `staging`, a directory on the same file system; the umask is subtracted from `mode`."""
        self.path = path
        self._temporary = (staging or path.parent) / f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(self._temporary, flags, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.discard()

    def install(self) -> None:
        """Renames it to `path`. After an OSError it still has to be discarded."""
        os.replace(self._temporary, self.path)
        self._close()

    def discard(self) -> None:
        """Removes it if it was not installed. Idempotent."""
        if self.descriptor >= 0:
            self._close()
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        os.close(self.descriptor)
        self.descriptor = -1


def write_atomically(
    path: Path, data: bytes, *, staging: Path | None = None, mode: int = 0o600, durable: bool = False
) -> None:
    """Writes a file with exactly this mode, or leaves the old one; if `durable`, also in case of a power failure."""
    with StagedFile(path, staging=staging) as staged:
        os.fchmod(staged.descriptor, mode)
        write_all(staged.descriptor, data)
        if durable:
            os.fsync(staged.descriptor)
        staged.install()


def write_output(path: Path, data: bytes) -> None:
    """Writes a file that the user named. Follows links, writes directly to devices and pipes, keeps the old mode."""
    # Before it is resolved: /dev/stdout leads to a pipe, which has no path.
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()
    with StagedFile(path, mode=0o666) as staged:
        # The file may not exist yet, and the file system may not have modes.
        with suppress(OSError):
            os.fchmod(staged.descriptor, stat.S_IMODE(path.stat().st_mode))
        write_all(staged.descriptor, data)
        staged.install()


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_at(descriptor: int, data: memoryview, position: int) -> None:
    """pwrite(2) until everything is written."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], position + done)
