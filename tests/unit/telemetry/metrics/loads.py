"""Loads that report what a test says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from coldstream.engine.load_statistics import LoadReport, LoadStatistics
from coldstream.errors import ColdstreamError
from coldstream.telemetry.metrics.textfile import Families

_EMPTY: dict[str, Any] = {
    "CdnReport | None": None,
    "int": 0,
    "float": 0.0,
    "str": "",
    "bool": False,
    "dict[str, int]": {},
    "dict[str, str]": {},
}


def report(**more: Any) -> LoadReport:
    found = {field.name: _EMPTY[field.type] for field in dataclasses.fields(LoadReport)}
    return LoadReport(**{**found, "limit": "bucket", "cached": "written", "verified": True, **more})


@dataclass
class Load:
    """A load as it is at the moment."""

    bytes: int = 100
    statistics: LoadStatistics | None = None
    outcome: LoadReport | ColdstreamError | None = None


def value(families: Families, name: str, **labels: str) -> float | None:
    """Of one sample; None where it is not there."""
    wanted = (name, tuple(sorted(labels.items())))
    return next((family.samples[wanted] for family in families.values() if wanted in family.samples), None)
