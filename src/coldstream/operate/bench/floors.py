"""Floors, the least time of each stage of a load by plain reads before the loaders run; and the page cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldstream.errors import UnavailableError, UsageError
from coldstream.machine import hardware
from coldstream.machine.child_environment import child_environment
from coldstream.net.http_message import parse_target, proxy_for
from coldstream.operate.bench.contestant import READERS, BenchTarget, Contestant
from coldstream.operate.bench.runner import RunFailed, run
from coldstream.units import format_rate

_SECONDS = 2.0
_ONE_SECONDS = 1.5
_PROCESSES_MAX = 4
_DISK_THREADS = 4
# Beyond the measured time, until a plain read is given up.
_EXTRA_SECONDS = 30.0
_DEVICE_SECONDS = 120.0
STAGES = {
    "link": "the network link", "bucket": "the bucket's throughput", "connections": "its connections' throughput",
    "tls": "the cores' decryption rate", "receiving": "the cores' receive rate", "disk": "the disk's throughput",
    "pcie": "the PCI Express bandwidth",
}  # fmt: skip
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
EVERYTHING, FILES, NOTHING = "everything", "files", "nothing"
_PAGE_CACHE = {
    EVERYTHING: "the machine's page cache was dropped before every run",
    FILES: "the local copy was dropped from the page cache before every run; dropping all of it needs root",
    NOTHING: "the page cache could not be dropped here: warm loads read from memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """Measured rates in bytes per second, as `lines` describes them; None if not applicable or not measurable."""

    link: float | None = None
    bucket: float | None = None
    bucket_connections: int = 0
    connection: float | None = None
    core: float | None = None  # what one core receives, with https decryption included
    cores: int = 1
    tls: bool = False
    disk: float | None = None
    disk_direct: bool = False  # whether the reads of the disk bypassed the page cache
    pcie: float | None = None

    def of(self, contestant: Contestant, *, from_disk: bool) -> dict[str, float]:
        """The floors of one contestant by stage. `from_disk`: its local files are not in the page cache."""
        rates: dict[str, float | None] = {"pcie": self.pcie}
        if contestant.connections is not None:
            rates |= {"link": self.link, "bucket": self.bucket}
            if self.connection is not None:
                rates["connections"] = self.connection * contestant.connections
            if self.core is not None:
                rates["tls" if self.tls else "receiving"] = self.core * self.cores
        elif from_disk:
            rates["disk"] = self.disk
        return {stage: rate for stage, rate in rates.items() if rate}

    def lines(self) -> list[tuple[str, str]]:
        core, work = ("tls", "receives and decrypts (TLS)") if self.tls else ("receiving", "receives")
        how = "bypassing the page cache" if self.disk_direct else "from memory: its file system has no direct reads"
        lines = [
            ("link", self.link, "as the network card reports"),
            ("bucket", self.bucket, f"{self.bucket_connections} plain connections together"),
            ("connection", self.connection, "one plain connection; times each loader's number of connections"),
            (core, self.core and self.core * self.cores, f"what one core {work}, times {self.cores}"),
            ("disk", self.disk, f"the local copy, {how}"),
            ("pcie", self.pcie, "copies from pinned memory to the device"),
        ]
        return [(stage, f"{format_rate(rate, 1)}   {text}") for stage, rate, text in lines if rate]


def measure(target: BenchTarget, *, connections: int) -> Floors:
    """Measures the floors between the bucket and this machine; UnavailableError if plain reads fail."""
    cores = hardware.cores()
    if target.kind == "folder":
        return Floors(cores=cores)
    links = [
        {"url": segment.url, "headers": [list(pair) for pair in segment.headers], "size": segment.stop - start}
        for shard in target.shards
        for start, segment in zip((0, *(segment.stop for segment in shard.segments)), shard.segments, strict=False)
    ]
    if any(proxy_for(parse_target(str(link["url"]))) for link in links):
        # Plain reads do not use the proxy, so they would measure another path.
        return Floors(cores=cores, tls=target.is_tls)
    one = _run_raw({"links": links, "connections": 1, "seconds": _ONE_SECONDS})
    processes = max(1, min(_PROCESSES_MAX, cores, connections))
    shares = [len(range(number, connections, processes)) for number in range(processes)]
    requests = [{"links": links, "connections": share, "seconds": _SECONDS} for share in shares]
    with ThreadPoolExecutor(processes) as pool:
        bucket = sum(reads["bytes_per_second"] for reads in pool.map(_run_raw, requests))
    if bucket < 1000:
        raise UnavailableError(f"{target.label} does not respond to plain reads", retryable=False)
    rate, spent = one["bytes_per_second"], one["cpu_seconds_per_byte"]
    link = None if target.is_loopback else hardware.link_bytes_per_second()
    return Floors(link=link, bucket=max(bucket, rate), bucket_connections=connections, connection=rate,
                  core=1 / spent if spent > 0 else None, cores=cores, tls=target.is_tls)  # fmt: skip


def measure_disk(folder: Path, names: Collection[str]) -> tuple[float | None, bool]:
    """Reads the files of these names below a folder: bytes per second, and whether they bypassed the page cache."""
    files = [str(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name in names]
    if not files:
        return None, False
    reads = _run_raw({"files": files, "threads": _DISK_THREADS, "seconds": _SECONDS})
    return reads["bytes_per_second"], bool(reads["direct"])


def _run_raw(request: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "coldstream.operate.bench.programs.raw"]
    more: dict[str, Any] = {"env": child_environment(), "timeout": request["seconds"] + _EXTRA_SECONDS}
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, check=True, **more)
        reads: dict[str, float] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as exc:
        # Without its cause, which holds the links.
        raise UnavailableError(f"plain reads failed: {type(exc).__name__}", retryable=False) from None
    return reads


def measure_pcie(python: str, device: str) -> float:
    """Bytes per second of copies from pinned memory; UsageError if the device does not exist or is busy."""
    environ = child_environment() | {"BENCH_OPTIONS": json.dumps({"device": device})}
    try:
        done = run([python, str(READERS), "pcie"], environ, timeout_seconds=_DEVICE_SECONDS)
    except RunFailed as exc:
        hint = "without a GPU, use --device cpu"
        raise UsageError(f"device {device} cannot be used: {exc.message}", hint=hint) from None
    return float(done.result["bytes_per_second"])


def drop_page_cache(folders: Iterable[Path]) -> str:
    """Drops the whole page cache, which only root may do, or else the files of these folders; returns which."""
    if os.access(_DROP_CACHES, os.W_OK):
        # Dirty pages cannot be dropped.
        os.sync()
        # In containers it is read-only even for root.
        with suppress(OSError):
            _DROP_CACHES.write_text("1\n")
            return EVERYTHING
    state = NOTHING
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with suppress(OSError), path.open("rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            state = FILES
    return state


def page_cache_text(dropped: str, *, requested: bool) -> str:
    """What was dropped, as a sentence."""
    if dropped == NOTHING and not requested:
        return "the page cache was left alone: warm loads read from memory"
    return _PAGE_CACHE[dropped]
