"""Finds the bottleneck of a load from what each stage waited for. Pure."""

from __future__ import annotations

from coldstream.engine.load_statistics import LoadStatistics
from coldstream.units import format_rate, plural

# A stage that was busy, or waited for, during this share of the time set the pace.
MOSTLY = 0.7
CPU_FULL = 0.8
LINK_FULL = 0.85
SHORT_SECONDS = 0.25
BUSY_SHARE = 0.05
# What would allow more connections, by `LoadStatistics.connections_bound`.
_MORE = {
    "": "more may help (--connections)",
    "open files": "the limit on open files allows no more (ulimit -Hn)",
    "other loads": "other loads on this machine have the others",
}

LIMITS = (
    "latency",
    "consumer",
    "pcie",
    "throttling",
    "network card",
    "tls",
    "cpu",
    "memory",
    "connections",
    "bucket",
    "disk",
)


def find_bottleneck(
    statistics: LoadStatistics,
    *,
    cores: int,
    is_tls: bool,
    consumers: int = 1,
    link_bytes_per_second: float | None = None,
    device: str = "cpu",
) -> tuple[str, str]:
    """Names what set the pace of a load: one of `LIMITS`, and a sentence.

    `link_bytes_per_second` is the network card's, `device` where the tensors were copied to, or "cpu".
    """
    seconds = max(statistics.seconds, 1e-9)
    rate = statistics.loaded_bytes / seconds
    if statistics.seconds < SHORT_SECONDS:
        return "latency", "too short to be limited by anything but round trips and start-up"
    waited_seconds = statistics.consumer_wait_seconds / consumers
    if waited_seconds < (1 - MOSTLY) * seconds:
        share = 100 * (1 - waited_seconds / seconds)
        if device != "cpu":
            return "pcie", f"limited by the copy to {device}: it took {share:.0f} % of the time"
        return "consumer", f"limited by the consumer: tensors waited for it {share:.0f} % of the time"
    if statistics.busy > BUSY_SHARE * max(1, statistics.requests):
        return "throttling", f"limited by the bucket: it asked to slow down {plural(statistics.busy, 'time')}"
    link = link_bytes_per_second
    if link and statistics.received_bytes / seconds > LINK_FULL * link:
        return "network card", f"limited by the network card: {format_rate(rate, 1)} of {format_rate(link, 1)}"
    cpu_seconds = statistics.cpu_seconds
    if cpu_seconds > CPU_FULL * seconds * min(cores, statistics.workers):
        kind, what = ("tls", "TLS on the CPU") if is_tls else ("cpu", "the CPU")
        return kind, f"limited by {what}: {cpu_seconds / seconds:.1f} of {plural(cores, 'core')} were busy"
    if statistics.full_seconds > MOSTLY * seconds:
        return "cpu", "limited by the CPU: every core of this machine was busy"
    if not statistics.received_bytes:
        return "disk", f"limited by the local disk: it delivered {format_rate(rate, 1)}"
    if statistics.memory_wait_seconds > MOSTLY * seconds:
        allowed = plural(round(statistics.connections_mean), "connection")
        return "memory", f"limited by the memory for data in flight: it was full with {allowed} (--memory)"
    connections = statistics.connections_mean
    each = format_rate(statistics.received_bytes / seconds / max(connections, 1.0), 1)
    if not statistics.saturated and connections > MOSTLY * statistics.connections_limit:
        allowed = plural(statistics.connections_limit, "connection")
        return "connections", f"limited by {allowed}: each gave {each}; {_MORE[statistics.connections_bound]}"
    helped = " and more connections did not help" if statistics.saturated else ""
    return "bucket", f"limited by the bucket: each connection gave {each}{helped}"
