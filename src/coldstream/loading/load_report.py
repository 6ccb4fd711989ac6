"""What a load did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coldstream.engine.bottleneck import Measured, verdict
from coldstream.loading.cdn_delivery import CdnReport, cdn_report
from coldstream.loading.load_plan import Prepared
from coldstream.loading.options import Options
from coldstream.machine.hardware import cores, link_bytes_per_second
from coldstream.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load did.

    Attributes:
        uri: What was loaded.
        name: The model's.
        version: Of its content: equal versions are equal bytes.
        verified: Whether every byte was compared with a hash from the manifest.
        offline: Whether the origin did not answer and the local cache stood in for it.
        files: Files of weights.
        tensors: Tensors in them.
        bytes: Bytes of the tensors.
        received_bytes: Of them, and of repeated ones, what came over the network.
        cache_bytes: What came from the local cache, or from local files.
        seconds: From the call to the last tensor's arrival.
        first_tensor_seconds: From the call to the first tensor.
        cpu_seconds: Of the engine's processes, their start included.
        cpu_seconds_per_gib: The same by GiB of tensors.
        chunks: Pieces that were fetched and verified by themselves.
        connections: Most at the same time.
        retries: Requests that failed and were repeated.
        retry_causes: The same by cause: see docs/monitoring.md.
        hedges: Slow connections whose rest was fetched by another.
        hedge_causes: The same by cause: "slow" or "silent".
        renewals: Links that had expired and were made anew.
        corrupt: Chunks that arrived with wrong bytes, or lay so in the cache, and were fetched again.
        memory_bytes: Of the arena, at most.
        grown_bytes: By how much the arena had to pass the memory limit, because tensors were kept or larger than it.
        consumer_wait_seconds: How long tensors were waited for.
        limit: What set the pace: see `engine.verdict`.
        limited_by: The same as a sentence.
        cached: "off", "complete" (it was there), "written", "partly" (for want of memory or time), or why it failed.
        left_out: Weights beside those loaded, and an index, that did not count: path to why.
        cdn: What the CDN in front of the bucket did; None when there is none, or it was not wanted.
    """

    uri: str
    name: str
    version: str
    verified: bool
    offline: bool
    files: int
    tensors: int
    bytes: int
    received_bytes: int
    cache_bytes: int
    seconds: float
    first_tensor_seconds: float
    cpu_seconds: float
    cpu_seconds_per_gib: float
    chunks: int
    connections: int
    retries: int
    retry_causes: dict[str, int]
    hedges: int
    hedge_causes: dict[str, int]
    renewals: int
    corrupt: int
    memory_bytes: int
    grown_bytes: int
    consumer_wait_seconds: float
    limit: str
    limited_by: str
    cached: str
    left_out: dict[str, str]
    cdn: CdnReport | None = None


def make_report(
    prepared: Prepared,
    options: Options,
    found: dict[str, Any],
    *,
    consumers: int = 1,
    seconds: float,
    first_tensor_seconds: float,
    cached: str,
) -> LoadReport:
    """The report of a load.

    Args:
        prepared: What was loaded.
        options: How.
        found: The streamer's own account.
        consumers: How many looked at it.
        seconds: From the call to the end.
        first_tensor_seconds: From the call to the first tensor.
        cached: What became of the local copy.
    """
    checkpoint = prepared.checkpoint
    cpu = found["streamer_cpu_seconds"] + found["worker_cpu_seconds"]
    waited = found["consumer_wait_seconds"] / consumers
    limit, limited_by = verdict(
        Measured(
            seconds=found["seconds"],
            received_bytes=found["received_bytes"],
            here_bytes=found["here_bytes"],
            cpu_seconds=cpu,
            cores=cores(),
            workers=found["workers"],
            tls=any((part.url or "").startswith("https:") for shard in checkpoint.shards for part in shard.segments),
            consumer_wait_seconds=waited,
            connections_mean=found["flying_seconds"] / max(found["seconds"], 1e-9),
            connections_limit=found["connections_limit"],
            saturated=found["saturated"],
            requests=found["requests"],
            busy=found["busy"],
            link_bytes_per_second=link_bytes_per_second(),
            full_seconds=found["full_seconds"],
            device=options.device,
        )
    )
    return LoadReport(
        uri=checkpoint.uri,
        name=checkpoint.name,
        version=checkpoint.version,
        verified=checkpoint.verified and options.verify,
        offline=prepared.offline,
        files=len(checkpoint.shards),
        tensors=sum(len(shard.header.tensors) for shard in checkpoint.shards),
        bytes=prepared.bytes,
        received_bytes=found["received_bytes"],
        cache_bytes=found["here_bytes"],
        seconds=seconds,
        first_tensor_seconds=first_tensor_seconds,
        cpu_seconds=cpu,
        cpu_seconds_per_gib=cpu / max(prepared.bytes / GIB, 1e-9),
        chunks=found["chunks"],
        connections=found["connections_peak"],
        retries=found["retries"],
        retry_causes=found["retries_by"],
        hedges=found["takeovers"],
        hedge_causes=found["takeovers_by"],
        renewals=found["renewals"],
        corrupt=found["corrupt"],
        memory_bytes=found["arena_bytes"],
        grown_bytes=found["grown_bytes"],
        consumer_wait_seconds=waited,
        limit=limit,
        limited_by=limited_by,
        cached=cached,
        left_out=dict(checkpoint.left_out),
        cdn=cdn_report(checkpoint.cdn[0], found, unused=prepared.cdn_unused) if checkpoint.cdn is not None else None,
    )
