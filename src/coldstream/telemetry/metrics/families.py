"""Metrics as plain numbers: added up, subtracted, kept bounded. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]  # sorted by name
Sample = tuple[str, Labels]

MODELS_MAX = 50
_NEWEST = ("coldstream_last_load_timestamp_seconds", "coldstream_last_start_timestamp_seconds")


@dataclass(slots=True)
class Family:
    """One metric with all of its samples.

    Attributes:
        kind: "counter", "gauge" or "histogram".
        help: Its text.
        samples: Name and labels to value, in their order.
    """

    kind: str
    help: str
    samples: dict[Sample, float] = field(default_factory=dict)


Families = dict[str, Family]


def merged(old: Mapping[str, Family], new: Mapping[str, Family]) -> Families:
    """What a file is to hold after a process has added its own: counts go on, gauges are the newer ones.

    Args:
        old: What the file held.
        new: What the process counted since it last wrote.
    """
    families: Families = {name: Family(family.kind, family.help, dict(family.samples)) for name, family in old.items()}
    for name, family in new.items():
        before = families.get(name)
        if before is None or before.kind != family.kind or _buckets(before) != _buckets(family) != set():
            # Never written, or by a version that had other buckets: these cannot be added up.
            before = Family(family.kind, family.help)
        samples = dict(before.samples) if family.kind != "gauge" else _of_models(before)
        for sample, value in family.samples.items():
            samples[sample] = value if family.kind == "gauge" else samples.get(sample, 0.0) + value
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


def _of_models(family: Family) -> dict[Sample, float]:
    """The samples of single models: those of others than the newest stay."""
    return {sample: value for sample, value in family.samples.items() if _model(sample) is not None}


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
