"""What this machine has: cores, memory, the network card's speed; within the limits of its container.

Linux tells most of it in /proc, /sys and its control groups; elsewhere what Python knows has to do.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# When nothing can be found out.
_MEMORY_BYTES = 4 << 30


def cores() -> int:
    """Cores that this process may use: its affinity, and the CPU limit of its control group, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        count = min(count, max(1, -(-int(quota) // int(period))))
    return count


def available_bytes() -> int:
    """Memory that can be taken without anything being swapped or killed."""
    found = _MEMORY_BYTES
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            found = int(line.split()[1]) * 1024
    return min(found, _left_in_group())


def _left_in_group() -> int:
    """What the control group's limit leaves; reclaimable page cache counts as left."""
    most = 1 << 62
    # Version 2, then version 1.
    for limit, used, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        maximum, current = _read(_CGROUP / limit).strip(), _read(_CGROUP / used).strip()
        if maximum.isdigit() and current.isdigit():
            cache = 0
            for line in _read(_CGROUP / statistics).splitlines():
                if line.startswith(("inactive_file ", "total_inactive_file ")):
                    cache = int(line.split()[1])
            most = min(most, max(0, int(maximum) - int(current) + cache))
    return most


def link_bytes_per_second() -> float | None:
    """The speed of the fastest real network card that is up; None when the system does not say."""
    speeds = []
    for card in sorted(Path("/sys/class/net").glob("*")) if Path("/sys/class/net").is_dir() else []:
        # Bridges, tunnels and loopback have no device behind them.
        if (card / "device").exists() and _read(card / "operstate").strip() == "up":
            megabits = _read(card / "speed").strip()
            if megabits.isdigit() and int(megabits) > 0:
                speeds.append(int(megabits) * 1e6 / 8)
    return max(speeds, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
