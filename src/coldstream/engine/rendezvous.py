"""Folders for the Unix sockets of one process; those of killed processes are removed."""

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
# An address has at most 107 bytes (unix(7)). Below the folder with 8 random bytes, vLLM's sockets have names of 36.
_AROUND_BYTES_MAX = 107 - len(f"/{_PREFIX}12345678/") - 36


class SocketFolder:
    """A new folder that only this user can enter. Its owner holds a lock on it, which a crash releases."""

    def __init__(self) -> None:
        """Creates it, and removes those that killed processes of this user have left."""
        folder = _folder_around()
        remove_abandoned(folder)
        while True:
            self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=folder)  # mode 0700
            # Before it is locked, another process may remove it as an abandoned one.
            with suppress(FileNotFoundError):
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                # Where locks do not work, nothing is removed.
                with suppress(OSError):
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                if os.path.exists(self.path):
                    return
                os.close(self._lock)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def _folder_around() -> Path:
    """The folder of temporary files, or another one if its path is too long, as batch systems set TMPDIR."""
    chosen = temporary_folder()
    places = (chosen, _SYSTEM_TEMPORARY, SHARED_MEMORY)
    short = (place for place in places if len(os.fsencode(place)) <= _AROUND_BYTES_MAX)
    return next((place for place in short if os.access(place, os.W_OK | os.X_OK)), chosen)


def remove_abandoned(folder: Path) -> None:
    """Removes this user's socket folders whose owners have ended, unless they have other files."""
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
