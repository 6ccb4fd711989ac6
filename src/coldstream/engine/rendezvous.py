"""Folders for the Unix sockets of one process, which those of killed processes are removed from."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from coldstream.machine.disk import SHARED_MEMORY, temporary_folder

_PREFIX = "coldstream-sockets-"
_SYSTEM_TEMPORARY = Path("/tmp")  # noqa: S108  # what lies there is private
# An address has at most 107 bytes (unix(7)). Below the folder's random name of 8, vLLM's sockets have names of 36.
_AROUND_BYTES_MAX = 107 - len(f"/{_PREFIX}12345678/") - 36


class SocketFolder:
    """A new folder that only this user can enter. Its owner holds a lock on it, which no crash leaves behind.

    Attributes:
        path: Where it is; short, as addresses of Unix sockets must be.
    """

    def __init__(self) -> None:
        """Makes it, and removes those that killed processes of this user have left."""
        folder = _folder_around()
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


def _folder_around() -> Path:
    """The folder of temporary files; another one where its path, as batch systems set TMPDIR, is too long."""
    chosen = temporary_folder()
    places = (chosen, _SYSTEM_TEMPORARY, SHARED_MEMORY)
    short = (place for place in places if len(os.fsencode(place)) <= _AROUND_BYTES_MAX)
    return next((place for place in short if os.access(place, os.W_OK | os.X_OK)), chosen)


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
