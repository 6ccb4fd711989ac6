"""Who was the bottleneck: one line at the end of every load, from what each stage waited for. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from coldstream.units import format_rate, plural

# A stage that was busy, or waited for, for so much of the time is the one that set the pace.
MOSTLY = 0.7
CPU_FULL = 0.8
LINK_FULL = 0.85
SHORT_SECONDS = 0.25
BUSY_SHARE = 0.05


LIMITS = (
    "latency",
    "consumer",
    "pcie",
    "throttling",
    "network card",
    "tls",
    "cpu",
    "connections",
    "bucket",
    "disk",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a load measured.

    Attributes:
        seconds: From the plan to the last chunk.
        received_bytes: Over the network.
        here_bytes: From this machine's disk or page cache.
        cpu_seconds: Of the engine's processes.
        cores: That the engine may use.
        workers: Its fetching processes.
        tls: Whether the bytes were encrypted.
        consumer_wait_seconds: How long consumers waited for data, each.
        connections_mean: How many were fetching, on average.
        connections_limit: How many were allowed.
        saturated: Whether more were tried and did not help.
        requests: How many there were.
        busy: How many of them were answered with "too busy".
        link_bytes_per_second: Of the network card; None when unknown.
        full_seconds: How long every core of the machine was busy, whoever with.
        device: What the tensors were copied to, or "cpu".
    """

    seconds: float
    received_bytes: int
    here_bytes: int
    cpu_seconds: float
    cores: int
    workers: int
    tls: bool
    consumer_wait_seconds: float
    connections_mean: float
    connections_limit: int
    saturated: bool
    requests: int
    busy: int
    link_bytes_per_second: float | None = None
    full_seconds: float = 0.0
    device: str = "cpu"


def verdict(found: Measured) -> tuple[str, str]:
    """(what set the pace, a sentence that says so).

    The first is one of `LIMITS`.
    """
    seconds = max(found.seconds, 1e-9)
    rate = (found.received_bytes + found.here_bytes) / seconds
    if found.seconds < SHORT_SECONDS:
        return "latency", "too short to be limited by anything but round trips and start-up"
    if found.consumer_wait_seconds < (1 - MOSTLY) * seconds:
        waited = 100 * (1 - found.consumer_wait_seconds / seconds)
        if found.device != "cpu":
            return "pcie", f"limited by the copy to {found.device}: {waited:.0f} % of the time went into it"
        return "consumer", f"limited by the consumer: tensors waited for it {waited:.0f} % of the time"
    if found.busy > BUSY_SHARE * max(1, found.requests):
        return "throttling", f"limited by the bucket: it asked to slow down {plural(found.busy, 'time')}"
    link = found.link_bytes_per_second
    if link and found.received_bytes / seconds > LINK_FULL * link:
        return "network card", f"limited by the network card: {format_rate(rate, 1)} of {format_rate(link, 1)}"
    if found.cpu_seconds > CPU_FULL * seconds * min(found.cores, found.workers):
        kind = "tls" if found.tls else "cpu"
        what = "TLS on the CPU" if found.tls else "the CPU"
        return kind, f"limited by {what}: {found.cpu_seconds / seconds:.1f} of {plural(found.cores, 'core')} were busy"
    if found.full_seconds > MOSTLY * seconds:
        return "cpu", "limited by the CPU: every core of this machine was busy"
    if not found.received_bytes:
        return "disk", f"limited by the local disk: it gave {format_rate(rate, 1)}"
    each = format_rate(found.received_bytes / seconds / max(found.connections_mean, 1.0), 1)
    if not found.saturated and found.connections_mean > MOSTLY * found.connections_limit:
        allowed = plural(found.connections_limit, "connection")
        return "connections", f"limited by {allowed}: each gave {each}; more may help (--connections)"
    helped = " and more connections did not help" if found.saturated else ""
    return "bucket", f"limited by the bucket: each connection gave {each}{helped}"
