"""What no loader can beat on this machine, measured on the spot, before the loaders are.

A floor is the time that one stage of the way takes at least. Plain reads stand for the bucket and the link: ranges over
many connections into one reused buffer each, in several processes, with nothing checked and nothing kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldstream.errors import UnavailableError, UsageError
from coldstream.machine import hardware
from coldstream.machine.child_environment import child_environment
from coldstream.net.http_message import parse_target, proxy_for
from coldstream.operate.bench.contestant import READERS, Contestant, Python
from coldstream.operate.bench.runner import last_words
from coldstream.operate.bench.target import Target
from coldstream.units import format_rate

_SECONDS = 2.0
_ONE_SECONDS = 1.5
_PROCESSES_MAX = 4
_DISK_THREADS = 4
# Beyond what is asked for, until a plain read has given up.
_PATIENCE_SECONDS = 30.0
_DEVICE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """What was measured, in bytes a second; None where it does not apply or could not be measured.

    Attributes:
        card: What the network card says of itself.
        bucket: Plain reads over many connections.
        connections: How many those were.
        connection: Plain reads over one connection.
        core: What one core receives, and with https decrypts, of plain reads.
        cores: That may be used.
        tls: Whether the bytes come over TLS.
        disk: Reads of the local copy's files.
        is_disk: Whether those went past the page cache.
        pcie: Copies from pinned memory to the device.
    """

    card: float | None = None
    bucket: float | None = None
    connections: int = 0
    connection: float | None = None
    core: float | None = None
    cores: int = 1
    tls: bool = False
    disk: float | None = None
    is_disk: bool = False
    pcie: float | None = None

    def of(self, contestant: Contestant, *, from_disk: bool) -> dict[str, float]:
        """The floors of one contestant: stage to bytes a second.

        Args:
            contestant: Which.
            from_disk: Whether what it reads of this machine's files comes from the disk, not from memory.
        """
        found: dict[str, float | None] = {"pcie": self.pcie}
        if contestant.connections is not None:
            found |= {"link": self.card, "bucket": self.bucket}
            if self.connection is not None:
                found["connections"] = self.connection * contestant.connections
            if self.core is not None:
                found["tls" if self.tls else "receiving"] = self.core * self.cores
        elif from_disk:
            found["disk"] = self.disk
        return {stage: rate for stage, rate in found.items() if rate}

    def lines(self) -> list[tuple[str, str]]:
        """Each floor with what was found, for people."""
        found: list[tuple[str, str]] = []
        if self.card:
            found.append(("link", f"{format_rate(self.card, 1)}   as the network card says"))
        if self.bucket:
            found.append(("bucket", f"{format_rate(self.bucket, 1)}   {self.connections} plain connections together"))
        if self.connection:
            found.append(("connection", f"{format_rate(self.connection, 1)}   one alone; times each loader's own"))
        if self.core:
            what = "receives and decrypts (TLS)" if self.tls else "receives"
            total = format_rate(self.core * self.cores, 1)
            found.append(("tls" if self.tls else "receiving", f"{total}   what one core {what}, times {self.cores}"))
        if self.disk:
            how = "past the page cache" if self.is_disk else "from memory: its file system knows no direct reads"
            found.append(("disk", f"{format_rate(self.disk, 1)}   the local copy's files, {how}"))
        if self.pcie:
            found.append(("pcie", f"{format_rate(self.pcie, 1)}   copies from pinned memory to the device"))
        return found


def measure(target: Target, *, connections: int) -> Floors:
    """Measures those of the way from the bucket.

    Args:
        target: What the loaders read.
        connections: How many plain connections.

    Raises:
        UnavailableError: The server answered before, and answers plain reads no more.
    """
    cores = hardware.cores()
    if target.kind == "folder":
        return Floors(cores=cores)
    links = [
        {"url": segment.url, "headers": [list(pair) for pair in segment.headers], "size": segment.stop - start}
        for shard in target.shards
        for start, segment in zip((0, *(segment.stop for segment in shard.segments)), shard.segments, strict=False)
    ]
    if any(proxy_for(parse_target(str(link["url"]))) for link in links):
        # Plain reads go straight, and what a proxy lets through is no floor of this machine's.
        return Floors(cores=cores, tls=target.is_tls)
    one = _raw({"links": links, "connections": 1, "seconds": _ONE_SECONDS})
    processes = max(1, min(_PROCESSES_MAX, cores, connections))
    shares = [len(range(number, connections, processes)) for number in range(processes)]
    requests = [{"links": links, "connections": share, "seconds": _SECONDS} for share in shares]
    with ThreadPoolExecutor(processes) as pool:
        many = list(pool.map(_raw, requests))
    bucket = sum(found["bytes_per_second"] for found in many)
    if bucket < 1000:
        raise UnavailableError(f"{target.label} gives nothing to plain reads", retryable=False)
    spent = one["cpu_seconds_per_byte"]
    return Floors(
        card=None if target.is_near else hardware.link_bytes_per_second(),
        bucket=max(bucket, one["bytes_per_second"]),
        connections=connections,
        connection=one["bytes_per_second"],
        core=1 / spent if spent > 0 else None,
        cores=cores,
        tls=target.is_tls,
    )


def disk(folder: Path, names: Sequence[str]) -> tuple[float | None, bool]:
    """Bytes a second of the files of these names below a folder, and whether they came past the page cache."""
    files = [str(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name in names]
    if not files:
        return None, False
    found = _raw({"files": files, "threads": _DISK_THREADS, "seconds": _SECONDS})
    return found["bytes_per_second"], bool(found["direct"])


def _raw(request: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "coldstream.operate.bench.programs.raw"]
    try:
        done = subprocess.run(
            command,
            env=child_environment(),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=request["seconds"] + _PATIENCE_SECONDS,
            check=True,
        )
        found: dict[str, float] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as exc:
        # Not as its cause: it holds the links.
        raise UnavailableError(f"plain reads failed: {type(exc).__name__}", retryable=False) from None
    return found


def pcie(python: Python, device: str) -> float:
    """Bytes a second of copies from pinned memory.

    Raises:
        UsageError: There is no such device, or it is not free.
    """
    environ = child_environment() | {"BENCH_OPTIONS": json.dumps({"device": device})}
    command = [python.path, str(READERS), "pcie"]
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=_DEVICE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"the device {device} does not answer") from None
    if done.returncode:
        raise UsageError(
            f"the device {device} cannot be used: {last_words(done.stderr)}", hint="without a GPU: --device cpu"
        )
    return float(json.loads(done.stdout.strip().rpartition("\n")[2])["bytes_per_second"])
