"""What a load has done: the one schema that the streamer counts in, and that JSON, metrics and reports read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(slots=True, kw_only=True)
class LoadStatistics:
    """What a load has done so far. Counts only grow; seconds are integrals over the load's time.

    Attributes:
        received_bytes: Over the network, repeated bytes included.
        local_bytes: From the local copy, or from local files.
        done_bytes: Of chunks that are complete and verified.
        chunks: Of the load.
        requests: Requests that were sent.
        retries: Requests that failed and were repeated; `retry_causes` by `Failure.kind`.
        busy: Answers that asked to slow down.
        hedges: Connections that were stopped so that others fetch the rest; `hedge_causes` by `hedging.CAUSES`.
        corrupt: Chunks that had wrong bytes.
        renewals: Links that had expired and were renewed.
        connections_peak: Maximum number of parallel connections.
        connections_now: Connections that are fetching.
        connections_limit: How many were allowed.
        saturated: Whether more connections were tried and did not help.
        memory_bytes: How far the arena was touched.
        grown_bytes: By how much the arena had to exceed the memory limit.
        flying_seconds: Connections times the seconds in which they were fetching.
        consumer_wait_seconds: How long all consumers together waited for data.
        memory_wait_seconds: How long connections were idle because memory was full.
        full_seconds: How long every core of the machine was busy, with any work.
        unstored_bytes: What was not written to the local copy.
        seconds: From the plan to the last chunk.
        first_ready_seconds: From the plan to the first complete extent, or None.
        cpu_seconds: Of the engine's processes, their start included.
        workers: Fetching processes.
        cdn_bytes: What was received through the CDN; all else came from the bucket.
        cdn_seconds: When at least one request to the CDN was in flight; `bucket_seconds` likewise.
        cdn_flying_seconds: As `flying_seconds`, for connections to the CDN.
        cdn_statuses: Answers by `cf-cache-status`.
        cdn_failures: By kind.
        cdn_gave_up: Why the CDN was given up, or "".
        fallbacks: Chunks that the CDN did not deliver and the bucket did.
    """

    received_bytes: int = 0
    local_bytes: int = 0
    done_bytes: int = 0
    chunks: int = 0
    requests: int = 0
    retries: int = 0
    retry_causes: dict[str, int] = field(default_factory=dict)
    busy: int = 0
    hedges: int = 0
    hedge_causes: dict[str, int] = field(default_factory=dict)
    corrupt: int = 0
    renewals: int = 0
    connections_peak: int = 0
    connections_now: int = 0
    connections_limit: int = 0
    saturated: bool = False
    memory_bytes: int = 0
    grown_bytes: int = 0
    flying_seconds: float = 0.0
    consumer_wait_seconds: float = 0.0
    memory_wait_seconds: float = 0.0
    full_seconds: float = 0.0
    unstored_bytes: int = 0
    seconds: float = 0.0
    first_ready_seconds: float | None = None
    cpu_seconds: float = 0.0
    workers: int = 0
    cdn_bytes: int = 0
    cdn_requests: int = 0
    cdn_seconds: float = 0.0
    cdn_flying_seconds: float = 0.0
    bucket_seconds: float = 0.0
    cdn_statuses: dict[str, int] = field(default_factory=dict)
    cdn_failures: dict[str, int] = field(default_factory=dict)
    cdn_gave_up: str = ""
    fallbacks: int = 0

    @property
    def loaded_bytes(self) -> int:
        """From anywhere."""
        return self.received_bytes + self.local_bytes

    @property
    def connections_mean(self) -> float:
        """How many connections were fetching on average."""
        return self.flying_seconds / max(self.seconds, 1e-9)

    def pack(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, data: bytes) -> LoadStatistics:
        """Reverses `pack`."""
        return cls(**json.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class CdnReport:
    """What came through the CDN, and what from the bucket itself.

    Attributes:
        url: The CDN's; not a secret.
        unused: Why the CDN was not used, or "".
        gave_up: Why it was given up during the load, or "".
        requests: Requests to the CDN.
        bytes: Received from the CDN, including bytes that turned out to be wrong.
        bytes_per_second: Over the time in which at least one request to the CDN was in flight.
        connection_bytes_per_second: Of one connection to the CDN.
        statuses: Good answers by `cf-cache-status`: HIT, MISS, EXPIRED, STALE, BYPASS, REVALIDATED, UPDATING, DYNAMIC,
            none, other.
        fallbacks: Chunks that the CDN did not deliver and the bucket did.
        failures: By kind: see `net.http_message.FetchError`; "corrupt" and "slow".
        bucket_requests: Requests for chunks to the bucket.
        bucket_bytes: Received from the bucket.
        bucket_bytes_per_second: As `bytes_per_second`.
        bucket_connection_bytes_per_second: Of one connection to the bucket.
        summary: Whether the CDN helped, as a sentence.
    """

    url: str
    unused: str
    gave_up: str
    requests: int
    bytes: int
    bytes_per_second: float
    connection_bytes_per_second: float
    statuses: Mapping[str, int]
    fallbacks: int
    failures: Mapping[str, int]
    bucket_requests: int
    bucket_bytes: int
    bucket_bytes_per_second: float
    bucket_connection_bytes_per_second: float
    summary: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """The result of a load; its fields are those of `coldstream load --json`.

    Attributes:
        uri: What was loaded.
        name: The model's.
        version: Of its content: equal versions are equal bytes.
        verified: Whether every byte was compared with a hash from the manifest.
        offline: Whether the origin did not answer and the local copy was used instead.
        files: Files of weights.
        tensors: Tensors in them.
        bytes: Bytes of the tensors.
        received_bytes: Bytes received over the network, repeated ones included.
        cache_bytes: Bytes from the local copy, or from local files.
        seconds: From the call to the last tensor.
        first_tensor_seconds: From the call to the first tensor.
        cpu_seconds: Of the engine's processes, their start included.
        cpu_seconds_per_gib: The same per GiB of tensors.
        chunks: Ranges that were fetched and verified separately.
        connections: Maximum number of parallel connections.
        retries: Requests that failed and were repeated.
        retry_causes: The same by cause: see docs/monitoring.md.
        hedges: Slow connections whose remaining range another connection fetched.
        hedge_causes: The same by cause: "slow" or "silent".
        renewals: Expired links that were renewed.
        corrupt: Chunks with wrong bytes, received or in the local copy, that were fetched again.
        memory_bytes: Maximum size of the arena.
        grown_bytes: By how much the arena had to exceed the memory limit, because tensors were kept or larger than it.
        consumer_wait_seconds: How long the consumer waited for tensors.
        limit: What set the pace: see `engine.bottleneck`.
        limited_by: The same as a sentence.
        cached: "off", "complete" (it was there), "written", "partly" (for lack of memory or time), or why it failed.
        left_out: Weights and indexes that were not loaded: path to reason.
        cdn: What the CDN in front of the bucket did; None if there is none, or it was switched off.
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
