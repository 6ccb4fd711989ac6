"""Drops files from the kernel's page cache, so that reading them reads the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")
EVERYTHING, FILES, NOTHING = "everything", "files", "nothing"
_DESCRIPTIONS = {
    EVERYTHING: "the machine's page cache was dropped before every run",
    FILES: "the local copy was dropped from the page cache before every run; dropping all of it needs root",
    NOTHING: "the page cache could not be dropped here: warm loads read from memory",
}


def drop(folders: Iterable[Path]) -> str:
    """Drops the whole page cache, which only root may do, or else the files of these folders; returns which."""
    if os.access(_DROP, os.W_OK):
        # Dirty pages cannot be dropped.
        os.sync()
        # In containers it is read-only even for root.
        with suppress(OSError):
            _DROP.write_text("1\n")
            return EVERYTHING
    state = NOTHING
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with suppress(OSError), path.open("rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            state = FILES
    return state


def description(dropped: str, *, requested: bool) -> str:
    """What was dropped, as a sentence."""
    if dropped == NOTHING and not requested:
        return "the page cache was left alone: warm loads read from memory"
    return _DESCRIPTIONS[dropped]
