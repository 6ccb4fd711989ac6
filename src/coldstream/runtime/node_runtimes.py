"""The runtimes that bootstrap programs brought to this machine, and their removal.

A runtime is a folder named after its digest, in a folder of this user in one of several places (runtime/bootstrap.py).
A start holds the lock of that folder, and a running coldstream that of the runtime's file `used`.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from coldstream.machine.disk import bytes_on_disk, try_lock

PLACES = (Path("/dev/shm"), Path("/var/tmp"), Path("/tmp"))  # noqa: S108  # the owner of what is there is checked


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRuntime:
    """A runtime on this machine; its version is its digest, with `sha256:`.

    It is in use while it runs or is being brought. `used`: when it was last started.
    """

    version: str
    folder: Path
    bytes: int
    mounted: bool
    in_use: bool
    used: datetime
    name: str = "runtime"

    def is_named(self, name: str) -> bool:
        """Whether its digest begins with `name`, which begins with `sha256:` and some digits."""
        return len(name) > len("sha256:") and self.version.startswith(name)


def node_runtimes(cache: Path, chosen: str | None) -> list[NodeRuntime]:
    """This user's runtimes, the most recently used first; `chosen` is COLDSTREAM_RUNTIME_DIR, then the only place."""
    entries = []
    # A cache in a folder that others can write to is one level further down than the runtimes in that folder.
    bases = [Path(chosen)] if chosen else [*PLACES, cache, cache.parent]
    for base in dict.fromkeys(base.resolve() for base in bases):
        parent = base / f"coldstream-runtimes-{os.geteuid()}"
        with suppress(OSError):
            status = parent.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                entries += [_describe(path) for path in parent.iterdir() if re.fullmatch("[0-9a-f]{64}", path.name)]
    return sorted(entries, key=lambda entry: entry.used, reverse=True)


def evict(runtime: NodeRuntime) -> bool:
    """Removes a runtime, and unmounts it; returns False if it is in use."""
    folder = runtime.folder
    with ExitStack() as locks:
        if not _lock(folder.parent, locks) or not _lock(folder / "used", locks):
            return False
        if (
            runtime.mounted
            and subprocess.run(["umount", folder / "mount"], check=False, capture_output=True).returncode
        ):
            return False
        # A start would take what is left of an interrupted removal for the whole runtime, but not under this name.
        shutil.rmtree(folder / "tree.part", ignore_errors=True)
        with suppress(FileNotFoundError):
            os.rename(folder / "tree", folder / "tree.part")
        shutil.rmtree(folder)
        return True


def _describe(folder: Path) -> NodeRuntime:
    with ExitStack() as locks:
        in_use = not _lock(folder.parent, locks) or not _lock(folder / "used", locks)
    marker = folder / "used"
    used = (marker if marker.exists() else folder).stat().st_mtime
    return NodeRuntime(
        version=f"sha256:{folder.name}",
        folder=folder,
        bytes=bytes_on_disk(folder),
        mounted=(folder / "mount").is_mount(),
        in_use=in_use,
        used=datetime.fromtimestamp(used, timezone.utc),
    )


def _lock(path: Path, locks: ExitStack) -> bool:
    """Whether no other process holds a file's lock, which is then ours; also if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    locks.callback(os.close, descriptor)
    return try_lock(descriptor, exclusive=True)
