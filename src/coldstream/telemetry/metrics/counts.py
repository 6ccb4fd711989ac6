"""What a process counts, as plain numbers. Thread-safe.

The client's own counters are not used: where `PROMETHEUS_MULTIPROC_DIR` is set, as vLLM does for several API servers,
all counters of one name share their value, in every process and object, and turn up among vLLM's own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from coldstream.telemetry.metrics.families import Families, Family, Labels
from coldstream.telemetry.metrics.metric_names import Metric, label_value


class MetricCounts:
    """Some metrics, from zero on."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Begins; a counter or a gauge whose labels are known is there before it counts: `increase` sees a first step.

        Args:
            metrics: All that will be counted.
        """
        self._lock = threading.Lock()
        self._metrics = {metric.name: metric for metric in metrics}
        self._families = {metric.name: Family(metric.kind, metric.help) for metric in self._metrics.values()}
        for metric in self._metrics.values():
            allowed = [*metric.labels.values()]
            if not allowed and metric.kind == "histogram":
                self._histogram(metric, ())
            elif not allowed:
                self._families[metric.name].samples[metric.name, ()] = 0.0
            elif metric.kind == "counter" and len(allowed) == 1 and allowed[0] is not None:
                for value in allowed[0]:
                    self.add(metric.name, 0, **{next(iter(metric.labels)): value})

    def add(self, name: str, count: float = 1, /, **labels: str) -> None:
        """MetricCounts."""
        metric, known = self._labelled(name, "counter", labels)
        samples = self._families[name].samples
        with self._lock:
            samples[metric.name, known] = samples.get((metric.name, known), 0.0) + count

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Adds to a histogram."""
        metric, known = self._labelled(name, "histogram", labels)
        samples = self._families[name].samples
        with self._lock:
            if (f"{name}_count", known) not in samples:
                self._histogram(metric, known)
            for bound in (*metric.buckets, float("inf")):
                samples[f"{name}_bucket", _within(known, bound)] += value <= bound
            samples[f"{name}_count", known] += 1
            samples[f"{name}_sum", known] += value

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Says how it is now."""
        metric, known = self._labelled(name, "gauge", labels)
        with self._lock:
            self._families[name].samples[metric.name, known] = value

    def families(self, *, live: bool) -> Families:
        """All that were used, by the name that the text format's parser gives them.

        Args:
            live: Whether those are in it that mean something only while this process runs.
        """
        with self._lock:
            return {
                name.removesuffix("_total") if family.kind == "counter" else name: Family(
                    family.kind, family.help, dict(family.samples)
                )
                for name, family in self._families.items()
                if family.samples and (live or not self._metrics[name].live)
            }

    def _labelled(self, name: str, kind: str, labels: dict[str, str]) -> tuple[Metric, Labels]:
        metric = self._metrics[name]
        assert metric.kind == kind, name
        assert metric.labels.keys() == labels.keys(), name
        return metric, tuple(sorted((label, label_value(metric, label, value)) for label, value in labels.items()))

    def _histogram(self, metric: Metric, labels: Labels) -> None:
        samples = self._families[metric.name].samples
        for bound in (*metric.buckets, float("inf")):
            samples[f"{metric.name}_bucket", _within(labels, bound)] = 0.0
        samples[f"{metric.name}_count", labels] = 0.0
        samples[f"{metric.name}_sum", labels] = 0.0


def _within(labels: Labels, bound: float) -> Labels:
    return tuple(sorted((*labels, ("le", "+Inf" if bound == float("inf") else str(float(bound))))))
