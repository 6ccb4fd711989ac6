"""The file that node exporter's textfile collector reads: what loads on this machine have counted, and their cost.

A load is shorter than the time between two scrapes, so its counts are added to the file's, under a lock.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import prometheus_client as prometheus
from prometheus_client.metrics_core import Metric as Collected
from prometheus_client.parser import text_string_to_metric_families

from coldstream.errors import DiskError, IntegrityError, UsageError
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import read_bounded, try_lock, unlock
from coldstream.telemetry.metrics.metric_names import METRICS

Labels = tuple[tuple[str, str], ...]  # sorted by name
Sample = tuple[str, Labels]

MODELS_MAX = 50
_NEWEST = ("coldstream_last_load_timestamp_seconds", "coldstream_last_start_timestamp_seconds")
# A whole line about a metric that is not ours.
_FOREIGN = re.compile(r"^(?:# (?:HELP|TYPE) )?(?!coldstream_)([A-Za-z_:][\w:]*)[^\n]*\n", re.ASCII | re.MULTILINE)
_METRICS_BYTES_MAX = 8 << 20
# Others hold the lock for milliseconds; one that was stopped must not stop us.
_LOCK_SECONDS = 10.0


@dataclass(slots=True)
class Family:
    """One metric with all of its samples; `kind` is "counter", "gauge" or "histogram"."""

    kind: str
    help: str
    samples: dict[Sample, float] = field(default_factory=dict)


Families = dict[str, Family]


def merged(old: Mapping[str, Family], new: Mapping[str, Family]) -> Families:
    """What a file is to hold after a process has added its own: counts go on, gauges are the newer ones."""
    families = {name: Family(family.kind, family.help, dict(family.samples)) for name, family in old.items()}
    for name, family in new.items():
        before = families.get(name)
        if before is None or before.kind != family.kind or _buckets(before) != _buckets(family) != set():
            # Never written, or by a version that had other buckets: these cannot be added up.
            before = Family(family.kind, family.help)
        if family.kind == "gauge":
            # Those of other models than the newest stay.
            kept = {sample: value for sample, value in before.samples.items() if _model(sample) is not None}
            samples = kept | family.samples
        else:
            counts = {sample: before.samples.get(sample, 0.0) + value for sample, value in family.samples.items()}
            samples = before.samples | counts
        families[name] = Family(family.kind, family.help, samples)
    return _bounded(families)


def since(new: Mapping[str, Family], last: Mapping[str, Family]) -> Families:
    """What was counted between two looks at one process; gauges as they are now."""
    families: Families = {}
    for name, family in new.items():
        before = last[name].samples if family.kind != "gauge" and name in last else {}
        samples = {sample: value - before.get(sample, 0.0) for sample, value in family.samples.items()}
        families[name] = Family(family.kind, family.help, samples)
    return families


def _buckets(family: Family) -> set[str]:
    return {value for _, labels in family.samples for name, value in labels if name == "le"}


def _model(sample: Sample) -> str | None:
    return dict(sample[1]).get("model")


def _bounded(families: Families) -> Families:
    """The same with the models that were loaded or started last."""
    models = {model: 0.0 for family in families.values() for sample in family.samples if (model := _model(sample))}
    for name in _NEWEST:
        for sample, value in families[name].samples.items() if name in families else ():
            model = _model(sample) or ""
            models[model] = max(value, models.get(model, 0.0))
    kept = {None, *sorted(models, key=lambda model: models[model], reverse=True)[:MODELS_MAX]}
    for family in families.values():
        family.samples = {sample: value for sample, value in family.samples.items() if _model(sample) in kept}
    return families


def parse(data: bytes, *, where: str) -> Families:
    """Reads the text format; IntegrityError if it is damaged, UsageError if it holds metrics of other programs."""
    if foreign := _FOREIGN.search(data.decode(errors="replace")):
        # Checked first: a file of another program may be damaged as well, and must not be replaced.
        raise UsageError(
            f"the metrics' file {where} holds {foreign[1][:80]}, which does not belong to coldstream",
            hint="give coldstream a file of its own",
        )
    families: Families = {}
    try:
        if not data.endswith(b"\n"):
            raise ValueError("it is cut short")
        for collected in text_string_to_metric_families(data.decode()):
            if collected.name in families:
                raise ValueError(f"{collected.name} is listed twice")
            families[collected.name] = _family(collected)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as exc:
        raise IntegrityError(f"the metrics' file {where} is damaged") from exc
    return families


def _family(collected: Collected) -> Family:
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
        for sample in collected.samples
        # The time at which a counter was created.
        if not sample.name.endswith("_created")
    }
    if collected.type not in {"counter", "gauge", "histogram"}:
        raise ValueError(f"{collected.name} is a {collected.type}")
    if not all(math.isfinite(value) and (collected.type == "gauge" or value >= 0) for value in samples.values()):
        raise ValueError(f"{collected.name} has an impossible value")
    return Family(collected.type, collected.documentation, samples)


def render(families: Families) -> bytes:
    """Writes the text format."""
    return prometheus.generate_latest(_FamilyCollector(families))


class _FamilyCollector:
    """The part of a registry that the client calls."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> list[Collected]:
        metrics = []
        for name, family in self._families.items():
            metric = Collected(name, family.help, family.kind)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            metrics += [metric] if metric.samples else []
        return metrics


class TextFile:
    """One such file, which ends in `.prom`, in an existing folder. Safe across processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: Families = {}

    def check(self) -> None:
        """Raises UsageError, before a load begins, if the file holds metrics of other programs."""
        # A damaged file is replaced, with a warning, when it is written.
        with _disk_errors(self.path), suppress(IntegrityError):
            self._read()

    def add(self, families: Families) -> str | None:
        """Adds what a process has counted since it last did; returns a warning if a damaged file was replaced.

        Raises UsageError if the file holds metrics of other programs.
        """
        warning = None
        with _disk_errors(self.path), self._alone():
            try:
                old = self._read()
            except IntegrityError as exc:
                old, warning = {}, f"{exc.message}; its counts start over"
            # Readable whatever the umask: the collector is another user.
            write_atomically(self.path, render(merged(old, since(families, self._written))), mode=0o644)
        self._written = families
        return warning

    def _read(self) -> Families:
        data = read_bounded(self.path, _METRICS_BYTES_MAX)
        if data is None and self.path.exists():
            raise IntegrityError(f"the metrics' file {self.path} is too large to be one of coldstream's")
        return parse(data, where=str(self.path)) if data else {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            until = time.monotonic() + _LOCK_SECONDS
            while not try_lock(lock, exclusive=True):
                if time.monotonic() > until:
                    raise DiskError(f"another process holds the metrics' file {self.path}")
                time.sleep(0.01)
            yield
        finally:
            unlock(lock)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DiskError:
        raise
    except OSError as exc:
        raise DiskError(
            f"cannot use the metrics' file {path}: {exc.strerror or exc}",
            hint="set --metrics-file to a path in a writable directory",
            target=str(path),
        ) from exc


def cost_file(path: Path, projected: float, budget: float | None = None) -> str | None:
    """Adds the month's projected cost and budget, in dollars, as `TextFile.add` does."""
    metric = next(metric for metric in METRICS if metric.name == "coldstream_month_dollars")
    dollars = {"projected": projected} | ({"budget": budget} if budget is not None else {})
    samples: dict[Sample, float] = {(metric.name, (("kind", kind),)): amount for kind, amount in dollars.items()}
    return TextFile(path).add({metric.name: Family(metric.kind, metric.help, samples)})
