"""Every metric: its kind, its labels and the few values that they take. Pure.

What is not in a label's set counts as "other". Only `model` is free: a file keeps those of the last fifty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from coldstream import errors
from coldstream.engine.bottleneck import LIMITS
from coldstream.engine.hedging import CAUSES
from coldstream.net.http_message import Kind as FetchKind
from coldstream.telemetry.timeline.phases import PHASES, SPANS

MODEL_CHARACTERS_MAX = 128
OTHER = "other"
# From a file in the page cache to a model of hundreds of gigabytes on a slow link.
SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# A kind of metric with so many label values has fewer.
PHASE_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str  # as it is queried; of a histogram without `_bucket`, `_sum` and `_count`
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    # Name to the values that it may have besides "other"; None: any, cut to `MODEL_CHARACTERS_MAX`.
    labels: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    buckets: Sequence[float] = SECONDS  # of a histogram, in its unit
    live: bool = False  # whether it means something only while the process runs, so that it is not written to files


_MODEL = {"model": None}
_ENDS = ("ok", "failed", "cancelled")
_LOAD_LABELS = {"source": ("s3", "https", "hub", "folder"), "verified": ("yes", "no", "unknown")}
_ERRORS = {
    error("").kind or "coldstream"
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.ColdstreamError)
}
_FROM = ("network", "cache")
# From a copy on this machine to gigabytes on a slow link.
_ADAPTER_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_RETRIES = (*(kind for kind in get_args(FetchKind) if kind != "cancelled"), "corrupt", "local")

# fmt: off
METRICS = (
    Metric("coldstream_build_info", "gauge", "1, with the version of coldstream.", {"version": None}),
    # Loads.
    Metric("coldstream_loads_total", "counter", "Loads of weights that have ended.",
           {**_MODEL, "outcome": _ENDS, **_LOAD_LABELS}),
    Metric("coldstream_load_failures_total", "counter", "Loads that failed, by the kind of their error.",
           {"kind": sorted(_ERRORS)}),
    Metric("coldstream_load_bytes_total", "counter", "Bytes of weights, by where they came from, while they come.",
           {**_MODEL, "from": ("network", "cache", "disk")}),
    Metric("coldstream_load_seconds", "histogram", "Seconds from the request for a load to its last tensor.", _MODEL),
    Metric("coldstream_first_tensor_seconds", "histogram", "Seconds from the request for a load to its first tensor."),
    Metric("coldstream_load_cpu_seconds_total", "counter",
           "CPU seconds of the streamer's processes, of loads that have ended."),
    Metric("coldstream_requests_total", "counter", "Ranged requests that loads have sent."),
    Metric("coldstream_retries_total", "counter", "Requests of loads that failed, by cause.", {"cause": _RETRIES}),
    Metric("coldstream_hedges_total", "counter",
           "Connections of loads that were stopped, and their rest fetched by another, by cause.", {"cause": CAUSES}),
    Metric("coldstream_verification_failures_total", "counter",
           "Chunks with wrong bytes, from the network or in the local cache."),
    Metric("coldstream_cache_loads_total", "counter", "Loads by what the local cache gave them.",
           {"result": ("hit", "partial", "miss", "off")}),
    Metric("coldstream_loads_limited_total", "counter", "Loads by what set their pace.", {"limit": LIMITS}),
    Metric("coldstream_connections_max", "gauge", "Most connections at the same time, of the last load."),
    Metric("coldstream_last_load_seconds", "gauge", "What the last load took that succeeded.", _MODEL),
    Metric("coldstream_last_load_timestamp_seconds", "gauge",
           "When the last load ended, however it did, in Unix time.", _MODEL),
    Metric("coldstream_loads_running", "gauge", "Loads under way.", live=True),
    Metric("coldstream_connections", "gauge", "Connections that fetch now.", live=True),
    Metric("coldstream_load_progress_bytes", "gauge", "Bytes that are there of the newest load.", live=True),
    Metric("coldstream_load_expected_bytes", "gauge", "Bytes of all tensors of the newest load.", live=True),
    # Starts of vLLM.
    Metric("coldstream_starts_total", "counter", "Starts of vLLM, by whether it answered.",
           {**_MODEL, "outcome": _ENDS}),
    Metric("coldstream_start_failures_total", "counter",
           "Starts of vLLM that failed, by the phase that they ended in.", {"phase": PHASES}),
    Metric("coldstream_start_seconds", "histogram", "Seconds from the command until vLLM answered.", _MODEL),
    Metric("coldstream_first_token_seconds", "histogram", "Seconds from the command to the first token.", _MODEL),
    Metric("coldstream_start_phase_seconds", "histogram",
           "Seconds of each phase of a start; phases follow each other.", {"phase": PHASES}, PHASE_SECONDS),
    Metric("coldstream_start_span_seconds", "histogram",
           "Seconds of what runs beside the phases of a start.", {"span": SPANS}, PHASE_SECONDS),
    Metric("coldstream_last_start_seconds", "gauge", "What the last start took until vLLM answered.", _MODEL),
    Metric("coldstream_last_start_timestamp_seconds", "gauge",
           "When vLLM last answered for the first time, in Unix time.", _MODEL),
    Metric("coldstream_bundle_restores_total", "counter", "Starts by what became of the warm-start bundle.",
           {"result": ("restored", "local", "none", "refused", "off")}),
    Metric("coldstream_bundle_publishes_total", "counter", "Starts by whether their caches were published.",
           {"result": ("published", "kept", "no")}),
    # Adapters.
    Metric("coldstream_adapter_fetches_total", "counter", "Adapters that an engine got, by where they came from.",
           {"from": _FROM}),
    Metric("coldstream_adapter_failures_total", "counter",
           "Adapters that an engine did not get, by the kind of the error.", {"kind": sorted(_ERRORS)}),
    Metric("coldstream_adapter_bytes_total", "counter", "Bytes of adapters, by where they came from.",
           {"from": _FROM}),
    Metric("coldstream_adapter_seconds", "histogram",
           "Seconds from the request for an adapter until its verified copy was complete.", buckets=_ADAPTER_SECONDS),
    # Money.
    Metric("coldstream_month_dollars", "gauge",
           "Dollars of this month: what it will cost as it goes, and what it may cost.",
           {"kind": ("projected", "budget")}),
)
# fmt: on


def label_value(metric: Metric, label: str, value: str) -> str:
    """A value as this label may have it."""
    allowed = metric.labels[label]
    if allowed is None:
        return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", value)[:MODEL_CHARACTERS_MAX]
    return value if value in allowed else OTHER


def source_of(uri: str) -> str:
    """Where a URI's model comes from, as the label `source` has it."""
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    return {"s3": "s3", "https": "https", "http": "https", "hf": "hub", "file": "folder"}.get(scheme, OTHER)
