"""Taking files out of the kernel's page cache, so that a read of them is a read of the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")

EVERYTHING = "everything"
FILES = "files"
NOTHING = "nothing"


def drop(folders: Iterable[Path], *, wanted: bool) -> str:
    """Drops what is allowed.

    Args:
        folders: Whose files are to go where the whole page cache may not be dropped.
        wanted: Whether anything is to be dropped at all.

    Returns:
        `EVERYTHING` (the machine's whole page cache: root alone may do that), `FILES`, or `NOTHING`.
    """
    if not wanted:
        return NOTHING
    if _dropped_everything():
        return EVERYTHING
    return FILES if _dropped_files(folders) else NOTHING


def said(dropped: str, *, wanted: bool) -> str:
    """What was dropped, for people."""
    if dropped == EVERYTHING:
        return "the machine's page cache was dropped before every run"
    if dropped == FILES:
        return "the files of the local copy left the page cache before every run; the whole cache is root's to drop"
    if wanted:
        return "the page cache could not be dropped here: what is warm was read from memory"
    return "the page cache was left alone: what is warm was read from memory"


def _dropped_everything() -> bool:
    if not os.access(_DROP, os.W_OK):
        return False
    try:
        # What is still to be written cannot be dropped.
        os.sync()
        _DROP.write_text("1\n")
    except OSError:
        # Containers have it read-only even for root.
        return False
    return True


def _dropped_files(folders: Iterable[Path]) -> bool:
    if not hasattr(os, "posix_fadvise"):
        return False
    done = False
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                done = True
            finally:
                os.close(descriptor)
    return done
