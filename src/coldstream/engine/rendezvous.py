"""Folders for the Unix sockets of one process, which those of killed processes are removed from."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from coldstream.cache.disk import temporary_folder

_PREFIX = "coldstream-sockets-"


class SocketFolder:
    """A new folder that only this user can enter. Its owner holds a lock on it, which no crash leaves behind.

    Attributes:
        path: Where it is; short, as addresses of Unix sockets must be.
    """

    def __init__(self) -> None:
        """Makes it, and removes those that killed processes of this user have left."""
        folder = temporary_folder()
        remove_abandoned(folder)
        while True:
            self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=folder)  # mode 0700
            # Another process may take it for an abandoned one before it is locked.
            with suppress(FileNotFoundError):
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                # Where nothing can be locked nothing is removed.
                with suppress(OSError):
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                if os.path.exists(self.path):
                    return
                os.close(self._lock)

    def close(self) -> None:
        """Removes it with all that is in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def remove_abandoned(folder: Path) -> None:
    """Removes this user's socket folders in a folder whose owners have ended; whatever holds other files stays."""
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    inside = [*folder.iterdir()]
    if all(stat.S_ISSOCK(path.lstat().st_mode) for path in inside):
        for path in inside:
            path.unlink()
        folder.rmdir()
