"""This machine's cores, memory, network speed and GPUs, within the limits of its container."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from coldstream.machine.child_environment import child_environment
from coldstream.machine.limits import address_space_left, control_groups, read_limit, read_text
from coldstream.package import IMPORTED_AT

# If it is unknown.
_MEMORY_BYTES = 4 << 30
# A driver that has to wake its GPUs takes seconds.
_NVIDIA_SECONDS = 20.0
_NODES = Path("/sys/devices/system/node")
# Python starts and imports coldstream in less. An older process was another program first, such as a shell with `exec`.
_PYTHON_SECONDS = 2.0
# The flags in /proc/cpuinfo that matter to compilers.
_INSTRUCTIONS = re.compile(
    r"(sse|ssse|avx|amx|fma|bmi|f16c|aes|vaes|vpclmul|pclmul|gfni|adx|sha|movbe|popcnt|abm|lzcnt|mmx|cx16|fsgsbase"
    r"|xsave|movdir|serialize|rdseed|rdrand|prefetchw|clflushopt|clwb|sve|neon|asimd|bf16|i8mm|dot).*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledGpu:
    """A GPU of this machine; `capability` is "9.0" for CUDA, "gfx942" for ROCm."""

    name: str
    capability: str
    driver: str


def cores() -> int:
    """Cores that this process may use, by its affinity and the CPU limits of its control groups, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in control_groups("cpu"):
        quota, _, period = read_text(folder / "cpu.max").partition(" ")
        if not period:
            quota, period = read_text(folder / "cpu.cfs_quota_us").strip(), read_text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.strip().isdigit():
            count = min(count, max(1, -(-int(quota) // int(period))))
    return count


def process_began() -> float:
    """When this process started, by `time.monotonic`; if unknown, when coldstream was imported."""
    fields = read_text(Path("/proc/self/stat")).rpartition(")")[2].split()
    # Field 22 in proc(5): clock ticks since boot; the first field here is the third.
    if len(fields) > 19 and fields[19].isdigit() and hasattr(time, "CLOCK_BOOTTIME"):
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        began = time.monotonic() - age
        if IMPORTED_AT - _PYTHON_SECONDS <= began <= IMPORTED_AT:
            return began
    return IMPORTED_AT


def available_bytes() -> int:
    """Memory that this process can allocate without swapping or reaching a limit."""
    available = _amounts(read_text(Path("/proc/meminfo"))).get("MemAvailable", _MEMORY_BYTES)
    limits = (left_in_group(), address_space_left())
    return min([available, *(limit for limit in limits if limit is not None)])


def _amounts(meminfo: str) -> dict[str, int]:
    rows = re.findall(r"^(?:Node \d+ )?(\S+):\s+(\d+) kB", meminfo, re.MULTILINE)
    return {name: int(amount) * 1024 for name, amount in rows}


def node_memory() -> tuple[int, int] | None:
    """Total and available bytes of the NUMA node of this process's first CPU, within control group limits, or None."""
    text = next((read_text(node / "meminfo") for node in sorted(_NODES.glob("node*")) if _has_first_cpu(node)), "")
    amounts = _amounts(text or read_text(Path("/proc/meminfo")))
    if "MemTotal" not in amounts:
        return None
    parts = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
    available = amounts.get("MemAvailable", sum(amounts.get(part, 0) for part in parts))
    names, groups = ("memory.max", "memory.limit_in_bytes"), [*control_groups("memory")]
    limits = [limit for folder in groups for name in names if (limit := read_limit(folder / name)) is not None]
    left = left_in_group()
    return min([amounts["MemTotal"], *limits]), available if left is None else min(available, left)


def _has_first_cpu(node: Path) -> bool:
    first = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    spans = [part.partition("-") for part in read_text(node / "cpulist").strip().split(",") if part]
    return any(int(start) <= first <= int(stop or start) for start, _, stop in spans)


def left_in_group() -> int | None:
    """Bytes that control group limits leave, including reclaimable page cache; None without limits."""
    left = []
    for folder in control_groups("memory"):
        limits = [read_limit(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        most = min((limit for limit in limits if limit is not None), default=None)
        used = read_limit(folder / "memory.current") or read_limit(folder / "memory.usage_in_bytes")
        if most is not None and used is not None:
            counts = re.findall(r"^(?:total_)?inactive_file (\d+)", read_text(folder / "memory.stat"), re.MULTILINE)
            left.append(max(0, most - used + int(counts[-1] if counts else 0)))
    return min(left, default=None)


@functools.cache
def gpus() -> tuple[InstalledGpu, ...]:
    """The GPUs of this machine, including those that this process may not use; empty without a driver."""
    if nvidia_gpus := parse_nvidia(_query_nvidia("name,compute_cap,driver_version")):
        return nvidia_gpus
    return _rocm(Path("/sys/class/kfd/kfd/topology/nodes"), read_text(Path("/sys/module/amdgpu/version")).strip())


def gpu_memory() -> tuple[tuple[int, int], ...]:
    """(usable bytes, free bytes) of each NVIDIA GPU; empty if unknown."""
    rows = [line.split(", ") for line in _query_nvidia("memory.used,memory.free").splitlines()]
    if not all(len(row) == 2 and "".join(row).isdecimal() for row in rows):
        return ()
    # Neither includes memory of the driver.
    return tuple(((int(used) + int(free)) << 20, int(free) << 20) for used, free in rows)


def _query_nvidia(fields: str) -> str:
    if program := shutil.which("nvidia-smi"):
        query = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(
                query, env=child_environment(), capture_output=True, text=True, timeout=_NVIDIA_SECONDS, check=True
            ).stdout
    return ""


def parse_nvidia(text: str) -> tuple[InstalledGpu, ...]:
    """The GPUs in output of `nvidia-smi`, in lines of name, capability, driver."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return tuple(InstalledGpu(name=row[0], capability=row[1], driver=row[2]) for row in rows if len(row) == 3)


def _rocm(nodes: Path, driver: str) -> tuple[InstalledGpu, ...]:
    installed = []
    for node in sorted(nodes.glob("*")):
        # 90402 is gfx942; processors have 0.
        match = re.search(r"^gfx_target_version (\d+)$", read_text(node / "properties"), re.MULTILINE)
        if match and int(match[1]):
            major, minor, step = int(match[1]) // 10000, int(match[1]) // 100 % 100, int(match[1]) % 100
            name = f"gfx{major}{minor:x}{step:x}"
            installed.append(
                InstalledGpu(name=read_text(node / "name").strip() or name, capability=name, driver=driver)
            )
    return tuple(installed)


def processor() -> str:
    """The processor's name, for people."""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def instruction_sets() -> str:
    """The architecture and a digest of its extensions, which code compiled for this machine depends on."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    names = sorted(name for name in (match[1].split() if match else ()) if _INSTRUCTIONS.fullmatch(name))
    return f"{platform.machine()} {hashlib.sha256(' '.join(names).encode()).hexdigest()[:12]}"


def link_bytes_per_second() -> float | None:
    """The speed of the fastest physical network card that is up; None if unknown."""
    speeds = []
    for card in Path("/sys/class/net").glob("*"):
        # Bridges, tunnels and loopback have no device.
        if (card / "device").exists() and read_text(card / "operstate").strip() == "up":
            megabits = read_text(card / "speed").strip()
            if megabits.isdigit() and int(megabits) > 0:
                speeds.append(int(megabits) * 1e6 / 8)
    return max(speeds, default=None)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is that of loopback."""
    with suppress(ValueError):
        return host == "localhost" or ip_address(host).is_loopback
    return False
