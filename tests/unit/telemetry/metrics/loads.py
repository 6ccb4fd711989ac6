"""Loads that report what a test says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from coldstream.errors import ColdstreamError
from coldstream.loading.account import Account
from coldstream.loading.load_report import LoadReport
from coldstream.telemetry.metrics.families import Families

_EMPTY: dict[str, Any] = {
    "CdnReport | None": None,
    "int": 0,
    "float": 0.0,
    "str": "",
    "bool": False,
    "dict[str, int]": {},
    "dict[str, str]": {},
}


def account(**more: Any) -> Account:
    found = {field.name: {} if field.type.startswith("Mapping") else 0 for field in dataclasses.fields(Account)}
    return Account(**{**found, **more})


def report(**more: Any) -> LoadReport:
    found = {field.name: _EMPTY[field.type] for field in dataclasses.fields(LoadReport)}
    return LoadReport(**{**found, "limit": "bucket", "cached": "written", "verified": True, **more})


@dataclass
class Load:
    """A load as it is at the moment."""

    bytes: int = 100
    account: Account | None = None
    outcome: LoadReport | ColdstreamError | None = None


def value(families: Families, name: str, **labels: str) -> float | None:
    """Of one sample; None where it is not there."""
    wanted = (name, tuple(sorted(labels.items())))
    return next((family.samples[wanted] for family in families.values() if wanted in family.samples), None)
