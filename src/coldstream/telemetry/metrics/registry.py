"""Counts what loads, starts and bundles report. Thread-safe."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

from coldstream.errors import CancelledError, ColdstreamError
from coldstream.package import __version__
from coldstream.telemetry.metrics.meter import RESOLVE, Loading, Meter
from coldstream.telemetry.metrics.metric_names import METRICS, Metric, label_value, source_of
from coldstream.telemetry.metrics.textfile import Families, Family, Labels, Sample, render

if TYPE_CHECKING:
    from coldstream.engine.load_statistics import LoadReport, LoadStatistics
    from coldstream.telemetry.timeline.start_record import Timeline

# Written by `textfile.cost_file`.
_ELSEWHERE = {"coldstream_month_dollars"}


class MetricCounts:
    """Some metrics as plain numbers, from zero on. Thread-safe.

    The client's own counters are not used: where `PROMETHEUS_MULTIPROC_DIR` is set, as vLLM does for several API
    servers, all counters of one name share their value, in every process and object, and turn up among vLLM's own.
    """

    def __init__(self, metrics: Iterable[Metric], *, model: str = "") -> None:
        self._lock, self._model = threading.RLock(), model
        self._metrics = {metric.name: metric for metric in metrics}
        self._families = {metric.name: Family(metric.kind, metric.help) for metric in self._metrics.values()}
        # Those whose labels are known are there before they count: `increase` sees a first step.
        for name, metric in self._metrics.items():
            values = [value for value in metric.labels.values() if value is not None]
            if len(values) < len(metric.labels) or (values and metric.kind != "counter"):
                continue
            for combination in product(*values):
                labels = tuple(zip(metric.labels, combination, strict=True))
                if metric.kind == "histogram":
                    self._observe(metric, labels, 0.0, times=0)
                else:
                    self._families[name].samples[name, labels] = 0.0

    def add(self, name: str, count: float = 1, /, **labels: str) -> None:
        """Adds to a counter."""
        known = self._labelled(name, "counter", labels)
        with self._lock:
            _add(self._families[name].samples, (name, known), count)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Adds to a histogram."""
        known = self._labelled(name, "histogram", labels)
        with self._lock:
            self._observe(self._metrics[name], known, value)

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Sets a gauge."""
        known = self._labelled(name, "gauge", labels)
        with self._lock:
            self._families[name].samples[name, known] = value

    def families(self, *, live: bool) -> Families:
        """All that were used, by the name that the text format's parser gives them; `live`: also the live ones."""
        with self._lock:
            return {
                name.removesuffix("_total"): Family(family.kind, family.help, dict(family.samples))
                for name, family in self._families.items()
                if family.samples and (live or not self._metrics[name].live)
            }

    def _labelled(self, name: str, kind: str, labels: dict[str, str]) -> Labels:
        metric = self._metrics[name]
        if "model" in metric.labels:
            labels = {"model": self._model, **labels}
        assert (metric.kind, metric.labels.keys()) == (kind, labels.keys()), name
        return tuple(sorted((label, label_value(metric, label, value)) for label, value in labels.items()))

    def _observe(self, metric: Metric, labels: Labels, value: float, *, times: int = 1) -> None:
        samples = self._families[metric.name].samples
        for bound in (*metric.buckets, math.inf):
            within = ("le", "+Inf" if bound == math.inf else str(float(bound)))
            _add(samples, (f"{metric.name}_bucket", tuple(sorted((*labels, within)))), times * (value <= bound))
        _add(samples, (f"{metric.name}_count", labels), times)
        _add(samples, (f"{metric.name}_sum", labels), times * value)


def _add(samples: dict[Sample, float], sample: Sample, count: float) -> None:
    samples[sample] = samples.get(sample, 0.0) + count


@dataclass(slots=True)
class _Followed:
    """A load, and which of its statistics have been counted."""

    load: Loading
    seen: dict[tuple[str, ...], int] = field(default_factory=dict)
    ended: bool = False


class Metrics(MetricCounts, Meter):
    """The metrics of one process, which has one model. Loads are read at each scrape."""

    def __init__(self, model: str, *, uri: str) -> None:
        """Begins at zero; `uri` has a scheme."""
        super().__init__((metric for metric in METRICS if metric.name not in _ELSEWHERE), model=model)
        self._source = source_of(uri)
        self._loads: list[Callable[[], Sequence[Loading]]] = []
        self._failures: list[Callable[[], Sequence[ColdstreamError]]] = []
        self._followed: dict[int, _Followed] = {}
        self._counted: list[ColdstreamError] = []
        self._starting = False
        self.gauge("coldstream_build_info", 1, version=__version__)
        for place in ("network", "cache", "disk"):
            self.add("coldstream_load_bytes_total", 0, **{"from": place})

    def follow(
        self, loads: Callable[[], Sequence[Loading]], failures: Callable[[], Sequence[ColdstreamError]] = tuple
    ) -> None:
        with self._lock:
            self._loads.append(loads)
            self._failures.append(failures)

    def look(self) -> None:
        with self._lock:
            there = {id(load): load for loads in self._loads for load in loads()}
            # What is dropped has ended; another may get its id.
            self._followed = {
                key: followed for key, followed in self._followed.items() if key in there or not followed.ended
            }
            for key, load in there.items():
                self._followed.setdefault(key, _Followed(load))
            for followed in self._followed.values():
                if not followed.ended:
                    self._take(followed)
            for failures in self._failures:
                for error in failures():
                    self._failed(error)
            self._show()

    def end(self, *, start: str = "cancelled") -> None:
        self.not_started(start)
        self.look()
        with self._lock:
            for followed in self._followed.values():
                if not followed.ended:
                    followed.ended = True
                    self._count_load("cancelled")
            self._show()

    def starting(self) -> None:
        self._starting = True

    def started(self, timeline: Timeline) -> None:
        self._starting = False
        seconds = timeline.ready_seconds
        assert seconds is not None
        self.add("coldstream_starts_total", outcome="ok")
        self.observe("coldstream_start_seconds", seconds)
        self.gauge("coldstream_last_start_seconds", seconds)
        self.gauge("coldstream_last_start_timestamp_seconds", time.time())
        if timeline.first_token_seconds is not None:
            self.observe("coldstream_first_token_seconds", timeline.first_token_seconds)
        for phase in timeline.phases:
            self.observe("coldstream_start_phase_seconds", phase.seconds, phase=phase.name)
        for span in timeline.spans:
            self.observe("coldstream_start_span_seconds", span.seconds, span=span.name)

    def not_started(self, outcome: str, phase: str = RESOLVE) -> None:
        if self._starting:
            self._starting = False
            if outcome == "failed":
                self.add("coldstream_start_failures_total", phase=phase)
            self.add("coldstream_starts_total", outcome=outcome)

    def adapter_fetched(self, seconds: float, size: int, received_bytes: int) -> None:
        source = {"from": "network" if received_bytes else "cache"}
        self.add("coldstream_adapter_fetches_total", **source)
        self.add("coldstream_adapter_bytes_total", size, **source)
        self.observe("coldstream_adapter_seconds", seconds)

    def adapter_failed(self, error: ColdstreamError) -> None:
        self.add("coldstream_adapter_failures_total", kind=error.kind or "coldstream")

    def bundle_restored(self, state: str) -> None:
        self.add("coldstream_bundle_restores_total", result=state)

    def bundle_published(self, result: str) -> None:
        self.add("coldstream_bundle_publishes_total", result=result)

    def families(self, *, live: bool) -> Families:
        """All metrics as they are now; see `MetricCounts.families`."""
        self.look()
        return super().families(live=live)

    def text(self) -> bytes:
        """All metrics as they are now, live ones included, in the text format."""
        return render(self.families(live=True))

    # Under the lock.

    def _take(self, followed: _Followed) -> None:
        # The outcome first: the statistics are complete then.
        outcome = followed.load.outcome
        statistics = followed.load.statistics
        if statistics is not None:
            self._advance(followed, statistics)
        if outcome is None:
            return
        followed.ended = True
        if isinstance(outcome, ColdstreamError):
            self._failed(outcome)
        else:
            self._count_report(outcome)

    def _advance(self, followed: _Followed, statistics: LoadStatistics) -> None:
        local = "disk" if self._source == "folder" else "cache"
        counts: list[tuple[str, dict[str, str], int]] = [
            ("coldstream_load_bytes_total", {"from": "network"}, statistics.received_bytes),
            ("coldstream_load_bytes_total", {"from": local}, statistics.local_bytes),
            ("coldstream_requests_total", {}, statistics.requests),
            ("coldstream_verification_failures_total", {}, statistics.corrupt),
            *(("coldstream_retries_total", {"cause": cause}, n) for cause, n in statistics.retry_causes.items()),
            *(("coldstream_hedges_total", {"cause": cause}, n) for cause, n in statistics.hedge_causes.items()),
        ]
        for name, labels, count in counts:
            key = (name, *labels.values())
            if (new := count - followed.seen.get(key, 0)) > 0:
                followed.seen[key] = count
                self.add(name, new, **labels)
        self.gauge("coldstream_connections_max", statistics.connections_peak)

    def _count_report(self, report: LoadReport) -> None:
        self._count_load("ok", verified="yes" if report.verified else "no")
        self.observe("coldstream_load_seconds", report.seconds)
        self.gauge("coldstream_last_load_seconds", report.seconds)
        self.observe("coldstream_first_tensor_seconds", report.first_tensor_seconds)
        self.add("coldstream_load_cpu_seconds_total", report.cpu_seconds)
        self.add("coldstream_cache_loads_total", result=cache_result(report))
        self.add("coldstream_loads_limited_total", limit=report.limit)

    def _failed(self, error: ColdstreamError) -> None:
        if any(error is counted for counted in self._counted):
            return
        self._counted.append(error)
        if isinstance(error, CancelledError):
            self._count_load("cancelled")
            return
        self._count_load("failed")
        self.add("coldstream_load_failures_total", kind=error.kind or "coldstream")

    def _count_load(self, outcome: str, *, verified: str = "unknown") -> None:
        self.add("coldstream_loads_total", outcome=outcome, source=self._source, verified=verified)
        self.gauge("coldstream_last_load_timestamp_seconds", time.time())

    def _show(self) -> None:
        """The gauges of what runs."""
        running = [followed.load for followed in self._followed.values() if not followed.ended]
        all_statistics = [statistics for load in running if (statistics := load.statistics) is not None]
        self.gauge("coldstream_loads_running", len(running))
        self.gauge("coldstream_connections", sum(statistics.connections_now for statistics in all_statistics))
        if self._followed:
            newest = [*self._followed.values()][-1].load
            newest_statistics = newest.statistics
            done = newest_statistics.loaded_bytes if newest_statistics is not None else 0
            # Repeated bytes and headers do not count as progress.
            self.gauge("coldstream_load_progress_bytes", min(done, newest.bytes))
            self.gauge("coldstream_load_expected_bytes", newest.bytes)


def cache_result(report: LoadReport) -> str:
    """What the local cache gave a load, as the label `result` has it."""
    if report.cached == "off":
        return "off"
    if not report.received_bytes:
        return "hit"
    return "partial" if report.cache_bytes else "miss"
