"""Makes the report of a load from the streamer's statistics."""

from __future__ import annotations

from dataclasses import fields

from coldstream.engine.bottleneck import find_bottleneck
from coldstream.engine.load_statistics import LoadReport, LoadStatistics
from coldstream.loading.cdn_delivery import cdn_report
from coldstream.loading.load_plan import PreparedLoad
from coldstream.loading.options import Options
from coldstream.machine.hardware import cores, link_bytes_per_second
from coldstream.units import GIB

# What a report takes over as it is.
_SAME = {field.name for field in fields(LoadReport)} & {field.name for field in fields(LoadStatistics)}


def make_report(
    prepared: PreparedLoad,
    options: Options,
    statistics: LoadStatistics,
    *,
    consumers: int = 1,
    seconds: float,
    first_tensor_seconds: float,
    cached: str,
) -> LoadReport:
    """The report of a finished load.

    Args:
        prepared: What was loaded.
        options: How.
        statistics: The streamer's final ones.
        consumers: How many read the load.
        seconds: From the call to the last tensor.
        first_tensor_seconds: From the call to the first tensor.
        cached: The outcome of the local copy.
    """
    checkpoint = prepared.checkpoint
    limit, limited_by = find_bottleneck(
        statistics,
        cores=cores(),
        is_tls=any((part.url or "").startswith("https:") for shard in checkpoint.shards for part in shard.segments),
        consumers=consumers,
        link_bytes_per_second=link_bytes_per_second(),
        device=options.device,
    )
    values = {name: getattr(statistics, name) for name in _SAME}
    values |= {
        "uri": checkpoint.uri,
        "name": checkpoint.name,
        "version": checkpoint.version,
        "verified": checkpoint.verified and options.verify,
        "offline": prepared.offline,
        "files": len(checkpoint.shards),
        "tensors": sum(len(shard.header.tensors) for shard in checkpoint.shards),
        "bytes": prepared.bytes,
        "cache_bytes": statistics.local_bytes,
        "seconds": seconds,
        "first_tensor_seconds": first_tensor_seconds,
        "cpu_seconds_per_gib": statistics.cpu_seconds / max(prepared.bytes / GIB, 1e-9),
        "connections": statistics.connections_peak,
        "consumer_wait_seconds": statistics.consumer_wait_seconds / consumers,
        "limit": limit,
        "limited_by": limited_by,
        "cached": cached,
        "left_out": dict(checkpoint.left_out),
    }
    if checkpoint.cdn is not None:
        values["cdn"] = cdn_report(checkpoint.cdn[0], statistics, unused=prepared.cdn_unused)
    return LoadReport(**values)
