"""What a load has done: the one schema that the streamer counts in, and that JSON, metrics and reports read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(slots=True, kw_only=True)
class LoadStatistics:
    """What a load has done so far. Counts only grow; seconds are integrals over the load's time."""

    received_bytes: int = 0  # over the network, repeated bytes included
    local_bytes: int = 0  # from the local copy, or from local files
    done_bytes: int = 0  # of chunks that are complete and verified
    chunks: int = 0  # of the load
    requests: int = 0  # requests that were sent
    retries: int = 0  # requests that failed and were repeated; `retry_causes` by `Failure.kind`
    retry_causes: dict[str, int] = field(default_factory=dict)
    busy: int = 0  # answers that asked to slow down
    hedges: int = 0  # connections that were stopped so that others fetch the rest; `hedge_causes` by `hedging.CAUSES`
    hedge_causes: dict[str, int] = field(default_factory=dict)
    corrupt: int = 0  # chunks that had wrong bytes
    renewals: int = 0  # links that had expired and were renewed
    connections_peak: int = 0  # maximum number of parallel connections
    connections_now: int = 0  # connections that are fetching
    connections_limit: int = 0  # how many were allowed
    connections_bound: str = ""  # what allowed no more: "open files", "other loads", or "" for `--connections`
    saturated: bool = False  # whether more connections were tried and did not help
    memory_bytes: int = 0  # how far the arena was touched
    grown_bytes: int = 0  # by how much the arena had to exceed the memory limit
    flying_seconds: float = 0.0  # connections times the seconds in which they were fetching
    consumer_wait_seconds: float = 0.0  # how long all consumers together waited for data
    memory_wait_seconds: float = 0.0  # how long connections were idle because memory was full
    full_seconds: float = 0.0  # how long every core of the machine was busy, with any work
    unstored_bytes: int = 0  # what was not written to the local copy
    seconds: float = 0.0  # from the plan to the last chunk
    first_ready_seconds: float | None = None  # from the plan to the first complete extent, or None
    cpu_seconds: float = 0.0  # of the engine's processes, their start included
    workers: int = 0  # fetching processes
    cdn_bytes: int = 0  # what was received through the CDN; all else came from the bucket
    cdn_requests: int = 0
    cdn_seconds: float = 0.0  # when at least one request to the CDN was in flight; `bucket_seconds` likewise
    cdn_flying_seconds: float = 0.0  # as `flying_seconds`, for connections to the CDN
    bucket_seconds: float = 0.0
    cdn_statuses: dict[str, int] = field(default_factory=dict)  # answers by `cf-cache-status`
    cdn_failures: dict[str, int] = field(default_factory=dict)  # by kind
    cdn_gave_up: str = ""  # why the CDN was given up, or ""
    fallbacks: int = 0  # chunks that the CDN did not deliver and the bucket did

    @property
    def loaded_bytes(self) -> int:
        return self.received_bytes + self.local_bytes

    @property
    def connections_mean(self) -> float:
        return self.flying_seconds / max(self.seconds, 1e-9)

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, data: bytes) -> LoadStatistics:
        return cls(**json.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class CdnReport:
    """What came through the CDN, and what from the bucket itself."""

    url: str  # the CDN's; not a secret
    unused: str  # why the CDN was not used, or ""
    gave_up: str  # why it was given up during the load, or ""
    requests: int  # requests to the CDN
    bytes: int  # received from the CDN, including bytes that turned out to be wrong
    bytes_per_second: float  # over the time in which at least one request to the CDN was in flight
    connection_bytes_per_second: float  # of one connection to the CDN
    # Good answers by `cf-cache-status`: HIT, MISS, EXPIRED, STALE, BYPASS, REVALIDATED, UPDATING, DYNAMIC, none, other.
    statuses: Mapping[str, int]
    fallbacks: int  # chunks that the CDN did not deliver and the bucket did
    failures: Mapping[str, int]  # by kind: see `net.http_message.FetchError`; "corrupt" and "slow"
    bucket_requests: int  # requests for chunks to the bucket
    bucket_bytes: int  # received from the bucket
    bucket_bytes_per_second: float  # as `bytes_per_second`
    bucket_connection_bytes_per_second: float  # of one connection to the bucket
    summary: str = ""  # whether the CDN helped, as a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """The result of a load; its fields are those of `coldstream load --json`."""

    uri: str  # what was loaded
    name: str  # the model's
    version: str  # of its content: equal versions are equal bytes
    verified: bool  # whether every byte was compared with a hash from the manifest
    offline: bool  # whether the origin did not answer and the local copy was used instead
    files: int  # files of weights
    tensors: int  # tensors in them
    bytes: int  # bytes of the tensors
    received_bytes: int  # bytes received over the network, repeated ones included
    cache_bytes: int  # bytes from the local copy, or from local files
    seconds: float  # from the call to the last tensor
    first_tensor_seconds: float  # from the call to the first tensor
    cpu_seconds: float  # of the engine's processes, their start included
    cpu_seconds_per_gib: float  # the same per GiB of tensors
    chunks: int  # ranges that were fetched and verified separately
    connections: int  # maximum number of parallel connections
    retries: int  # requests that failed and were repeated
    retry_causes: dict[str, int]  # the same by cause: see docs/monitoring.md
    hedges: int  # slow connections whose remaining range another connection fetched
    hedge_causes: dict[str, int]  # the same by cause: "slow" or "silent"
    renewals: int  # expired links that were renewed
    corrupt: int  # chunks with wrong bytes, received or in the local copy, that were fetched again
    memory_bytes: int  # maximum size of the arena
    # By how much the arena had to exceed the memory limit, because tensors were kept or larger than it.
    grown_bytes: int
    consumer_wait_seconds: float  # how long the consumer waited for tensors
    limit: str  # what set the pace: see `engine.bottleneck`
    limited_by: str  # the same as a sentence
    cached: str  # "off", "complete" (it was there), "written", "partly" (for lack of memory or time), or why it failed
    left_out: dict[str, str]  # weights and indexes that were not loaded: path to reason
    # What the CDN in front of the bucket did; None if there is none, or it was switched off.
    cdn: CdnReport | None = None
