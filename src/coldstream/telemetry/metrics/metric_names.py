"""Every metric: its kind, its labels and the few values that they take. Pure.

Each label has a fixed set of values, and what is not in it counts as "other". Only `model` is free: a process has one
model, and a file keeps those of the last fifty.
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

Labels = Mapping[str, Sequence[str] | None]
Kind = Literal["counter", "gauge", "histogram"]

MODEL_CHARACTERS_MAX = 128
OTHER = "other"
# From a file in the page cache to a model of hundreds of gigabytes on a slow link.
SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# A kind of metric with so many label values has fewer.
PHASE_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_ENDS = ("ok", "failed", "cancelled")
_ERRORS = tuple(
    sorted(
        error("").kind or "coldstream"
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.ColdstreamError)
    )
)
_RETRIES = (*(kind for kind in get_args(FetchKind) if kind != "cancelled"), "corrupt", "local")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: As it is queried; of a histogram without `_bucket`, `_sum` and `_count`.
        kind: Its type.
        help: What it says.
        labels: Name to the values that it may have besides "other"; None: any, cut to `MODEL_CHARACTERS_MAX`.
        buckets: Of a histogram, in its unit.
        live: Whether it means something only while the process runs, so that no file has it.
    """

    name: str
    kind: Kind
    help: str
    labels: Labels = field(default_factory=dict)
    buckets: Sequence[float] = SECONDS
    live: bool = False


_MODEL: Labels = {"model": None}

METRICS: tuple[Metric, ...] = (
    Metric(
        name="coldstream_build_info", kind="gauge", help="1, with the version of coldstream.", labels={"version": None}
    ),
    # Loads.
    Metric(
        name="coldstream_loads_total",
        kind="counter",
        help="Loads of weights that have ended.",
        labels={
            **_MODEL,
            "outcome": _ENDS,
            "source": ("s3", "https", "hub", "folder"),
            "verified": ("yes", "no", "unknown"),
        },
    ),
    Metric(
        name="coldstream_load_failures_total",
        kind="counter",
        help="Loads that failed, by the kind of their error.",
        labels={"kind": _ERRORS},
    ),
    Metric(
        name="coldstream_load_bytes_total",
        kind="counter",
        help="Bytes of weights, by where they came from, while they come.",
        labels={**_MODEL, "from": ("network", "cache", "disk")},
    ),
    Metric(
        name="coldstream_load_seconds",
        kind="histogram",
        help="Seconds from the request for a load to its last tensor.",
        labels=_MODEL,
    ),
    Metric(
        name="coldstream_first_tensor_seconds",
        kind="histogram",
        help="Seconds from the request for a load to its first tensor.",
    ),
    Metric(
        name="coldstream_load_cpu_seconds_total",
        kind="counter",
        help="CPU seconds of the streamer's processes, of loads that have ended.",
    ),
    Metric(name="coldstream_requests_total", kind="counter", help="Ranged requests that loads have sent."),
    Metric(
        name="coldstream_retries_total",
        kind="counter",
        help="Requests of loads that failed, by cause.",
        labels={"cause": _RETRIES},
    ),
    Metric(
        name="coldstream_hedges_total",
        kind="counter",
        help="Connections of loads that were stopped, and their rest fetched by another, by cause.",
        labels={"cause": CAUSES},
    ),
    Metric(
        name="coldstream_verification_failures_total",
        kind="counter",
        help="Chunks with wrong bytes, from the network or in the local cache.",
    ),
    Metric(
        name="coldstream_cache_loads_total",
        kind="counter",
        help="Loads by what the local cache gave them.",
        labels={"result": ("hit", "partial", "miss", "off")},
    ),
    Metric(
        name="coldstream_loads_limited_total",
        kind="counter",
        help="Loads by what set their pace.",
        labels={"limit": LIMITS},
    ),
    Metric(
        name="coldstream_connections_max", kind="gauge", help="Most connections at the same time, of the last load."
    ),
    Metric(
        name="coldstream_last_load_seconds",
        kind="gauge",
        help="What the last load took that succeeded.",
        labels=_MODEL,
    ),
    Metric(
        name="coldstream_last_load_timestamp_seconds",
        kind="gauge",
        help="When the last load ended, however it did, in Unix time.",
        labels=_MODEL,
    ),
    Metric(name="coldstream_loads_running", kind="gauge", help="Loads under way.", live=True),
    Metric(name="coldstream_connections", kind="gauge", help="Connections that fetch now.", live=True),
    Metric(
        name="coldstream_load_progress_bytes", kind="gauge", help="Bytes that are there of the newest load.", live=True
    ),
    Metric(
        name="coldstream_load_expected_bytes", kind="gauge", help="Bytes of all tensors of the newest load.", live=True
    ),
    # Starts of vLLM.
    Metric(
        name="coldstream_starts_total",
        kind="counter",
        help="Starts of vLLM, by whether it answered.",
        labels={**_MODEL, "outcome": _ENDS},
    ),
    Metric(
        name="coldstream_start_failures_total",
        kind="counter",
        help="Starts of vLLM that failed, by the phase that they ended in.",
        labels={"phase": PHASES},
    ),
    Metric(
        name="coldstream_start_seconds",
        kind="histogram",
        help="Seconds from the command until vLLM answered.",
        labels=_MODEL,
    ),
    Metric(
        name="coldstream_first_token_seconds",
        kind="histogram",
        help="Seconds from the command to the first token.",
        labels=_MODEL,
    ),
    Metric(
        name="coldstream_start_phase_seconds",
        kind="histogram",
        help="Seconds of each phase of a start; phases follow each other.",
        labels={"phase": PHASES},
        buckets=PHASE_SECONDS,
    ),
    Metric(
        name="coldstream_start_span_seconds",
        kind="histogram",
        help="Seconds of what runs beside the phases of a start.",
        labels={"span": SPANS},
        buckets=PHASE_SECONDS,
    ),
    Metric(
        name="coldstream_last_start_seconds",
        kind="gauge",
        help="What the last start took until vLLM answered.",
        labels=_MODEL,
    ),
    Metric(
        name="coldstream_last_start_timestamp_seconds",
        kind="gauge",
        help="When vLLM last answered for the first time, in Unix time.",
        labels=_MODEL,
    ),
    Metric(
        name="coldstream_bundle_restores_total",
        kind="counter",
        help="Starts by what became of the warm-start bundle.",
        labels={"result": ("restored", "local", "none", "refused", "off")},
    ),
    Metric(
        name="coldstream_bundle_publishes_total",
        kind="counter",
        help="Starts by whether their caches were published.",
        labels={"result": ("published", "kept", "no")},
    ),
    # Money.
    Metric(
        name="coldstream_month_dollars",
        kind="gauge",
        help="Dollars of this month: what it will cost as it goes, and what it may cost.",
        labels={"kind": ("projected", "budget")},
    ),
)


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
