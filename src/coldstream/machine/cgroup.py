"""The control groups of this process: its own and its ancestors, each with its own limits.

systemd units, Slurm steps and containers nest them. A container sees only a part of the tree, mounted as if it were the
whole. Versions 1 and 2 may both be mounted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")
_MOUNT = Path("/sys/fs/cgroup")


def control_groups(controller: str) -> Iterator[Path]:
    """The directories of this process's control groups, innermost first, version 2 before version 1.

    Args:
        controller: "memory", "cpu" or "pids".
    """
    places = _places()
    mounts = list(_mounts(controller))
    if not mounts:
        # Without /proc, assume the top, where the process is in a container.
        yield from (_MOUNT, _MOUNT / controller)
    for root, folder, hierarchy in mounts:
        place = PurePosixPath(places.get(hierarchy, "/"))
        # A process that was moved into a container may be outside of its mount; then only the top is visible.
        inner = place.relative_to(root) if place.is_relative_to(root) and ".." not in place.parts else PurePosixPath()
        yield from (folder / level for level in (inner, *inner.parents))


def read_limit(path: Path) -> int | None:
    """The number in a control group's file; None without a file or a limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    # In version 1, "no limit" is the largest number of whole pages.
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _places() -> dict[str, str]:
    """This process's place in each hierarchy: by the name of its controller for version 1, "" for version 2."""
    places = {}
    for line in _lines("cgroup"):
        _, controllers, place = line.split(":", 2)
        places.update(dict.fromkeys(controllers.split(","), place))
    return places


def _mounts(controller: str) -> Iterator[tuple[PurePosixPath, Path, str]]:
    """(mounted part of the tree, mount point, hierarchy as in `_places`), version 2 first."""
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
