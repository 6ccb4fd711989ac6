"""Files that appear whole or not at all, even when other processes write to the same place.

A file is written under a name that no other process can guess, which is created and never followed as a link, and is
renamed into place when it is complete: a reader sees the old file or the new one, and two writers never share bytes.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

# What every temporary name begins with: hidden, and recognisable when a killed process left it.
TEMPORARY_PREFIX = ".coldstream-new-"
_LOCK_POLL_SECONDS = 0.1


class StagedFile:
    """A new file that will take the place of `path`. As a context manager it is discarded unless it was installed.

    Attributes:
        path: Its place.
        descriptor: Open for reading and writing, until it is installed or discarded.
    """

    def __init__(self, path: Path, *, staging: Path | None = None, mode: int = 0o600) -> None:
        """Creates it, empty.

        Args:
            path: Where it goes.
            staging: An existing folder on the same file system, for the time in between; that of `path` when None.
            mode: Less what the umask takes.

        Raises:
            OSError: As the system says.
        """
        self.path = path
        self._temporary = (staging or path.parent) / f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(self._temporary, flags, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.discard()

    def install(self) -> None:
        """Puts it in place.

        Raises:
            OSError: As the system says; then it is still to be discarded.
        """
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
    """Writes a whole file.

    Args:
        path: Where; its folder exists.
        data: What.
        staging: See `StagedFile`.
        mode: Exactly, whatever the umask.
        durable: Whether it must not come out empty after a power failure.

    Raises:
        OSError: As the system says; what was there stays.
    """
    with StagedFile(path, staging=staging) as staged:
        os.fchmod(staged.descriptor, mode)
        write_all(staged.descriptor, data)
        if durable:
            os.fsync(staged.descriptor)
        staged.install()


def write_output(path: Path, data: bytes) -> None:
    """Writes a file that the user named: a link is followed, and a device or a pipe is written to as it is.

    A file that is replaced keeps its mode.

    Raises:
        OSError: As the system says.
    """
    # Looked at before it is resolved: /dev/stdout leads to a pipe, which has no path.
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()
    with StagedFile(path, mode=0o666) as staged:
        # There may be no file yet, and a file system without modes.
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


@contextmanager
def locked_folder(folder: Path, *, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Holds an existing folder so that only one process at a time fills it; the lock ends with the process.

    Args:
        folder: Which.
        on_wait: Called again and again while another process holds it; what it raises ends the wait.

    Yields:
        Whether it is held: False where the file system has no locks on folders, such as NFS.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while (is_held := _try_lock(descriptor)) is None:
            on_wait()
            time.sleep(_LOCK_POLL_SECONDS)
        yield is_held
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool | None:
    """Whether it is locked now: None while another process has it, False where that cannot be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return False
    return True
