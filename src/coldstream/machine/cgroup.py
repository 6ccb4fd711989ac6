"""The control groups that this process is in: its own and every one above it, each with a limit of its own.

systemd's units, Slurm's steps and containers nest them, so the innermost limit is rarely the only one. A container
sees a part of the tree, mounted as if it were all of it. Versions 1 and 2 may be mounted side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")
_MOUNT = Path("/sys/fs/cgroup")


def control_groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups that limit this process, the innermost first; version 2 before version 1.

    Args:
        controller: "memory", "cpu", "pids".
    """
    places = _places()
    mounts = list(_mounts(controller))
    if not mounts:
        # Without /proc nothing tells where this process is; in a container it is at the top.
        yield from (_MOUNT, _MOUNT / controller)
    for root, folder, hierarchy in mounts:
        place = PurePosixPath(places.get(hierarchy, "/"))
        # Outside of what is mounted, as for a process that was moved into a container, only the top can be seen.
        inner = place.relative_to(root) if place.is_relative_to(root) and ".." not in place.parts else PurePosixPath()
        yield from (folder / level for level in (inner, *inner.parents))


def read_limit(path: Path) -> int | None:
    """The number in a control group's file; None when there is none, or it means no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    # Version 1 says "no limit" by the largest number of whole pages.
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _places() -> dict[str, str]:
    """Where this process is, by hierarchy: a controller's name of version 1, "" for version 2."""
    places = {}
    for line in _lines("cgroup"):
        _, controllers, place = line.split(":", 2)
        places.update(dict.fromkeys(controllers.split(","), place))
    return places


def _mounts(controller: str) -> Iterator[tuple[PurePosixPath, Path, str]]:
    """(what of the tree is mounted, where, hierarchy as in `_places`), version 2 first."""
    mounts = []
    for line in _lines("mountinfo"):
        place, _, rest = line.partition(" - ")
        kind, options = rest.split()[0], rest.split()[-1].split(",")
        root, folder = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), part) for part in place.split()[3:5])
        if kind == "cgroup2" or (kind == "cgroup" and controller in options):
            mounts.append((PurePosixPath(root), Path(folder), "" if kind == "cgroup2" else controller))
    yield from sorted(mounts, key=lambda mount: mount[2])


def _lines(name: str) -> list[str]:
    try:
        return (_PROC / name).read_text(errors="replace").splitlines()
    except OSError:
        return []
