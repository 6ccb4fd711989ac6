"""Every flag, variable, exit code, error kind and manifest field is documented."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
import pytest
import yaml

from coldstream import errors
from coldstream.cli import VERBS, cli
from coldstream.engine.load_statistics import LoadReport
from coldstream.model import adapter, manifest
from coldstream.operate.doctor.checklist import CHECKLIST
from coldstream.settings import VARIABLES
from coldstream.telemetry.metrics.metric_names import METRICS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def doc(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_is_documented(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    text = doc("commands.md")
    assert f"coldstream {verb}" in text
    below = command.commands.values() if isinstance(command, click.Group) else ()
    for parameter in [*command.params, *(parameter for inner in below for parameter in inner.params)]:
        if isinstance(parameter, click.Option):
            for flag in parameter.opts:
                assert flag in text, flag


def test_every_field_of_a_load_s_report_is_documented() -> None:
    text = doc("commands.md")
    for field in dataclasses.fields(LoadReport):
        assert f"`{field.name}`" in text, field.name


def test_every_check_of_the_doctor_is_documented() -> None:
    text = doc("doctor.md")
    for item in CHECKLIST:
        assert f"| `{item.name}` |" in text, item.name


def test_every_variable_is_documented_and_no_other() -> None:
    text = doc("environment.md")
    for name in VARIABLES:
        assert f"`{name}`" in text, name
    documented = set(re.findall(r"`((?:R2|COLDSTREAM)_[A-Z_]+)`", text))
    assert documented - {"R2_", "COLDSTREAM_"} <= set(VARIABLES)


def test_every_metric_is_documented_and_no_other() -> None:
    rows = re.findall(r"^\| `(coldstream_\w+)` \| (\w+)(, live)? \| (.*) \|$", doc("monitoring.md"), re.MULTILINE)
    assert {(name, kind, bool(live)) for name, kind, live, _ in rows} == {
        (metric.name, metric.kind, metric.live) for metric in METRICS
    }
    said = {name: text for name, _, _, text in rows}
    for metric in METRICS:
        for label in metric.labels:
            assert f"`{label}`" in said[metric.name], (metric.name, label)
    for name in ("coldstream_retries_total", "coldstream_hedges_total", "coldstream_cache_loads_total"):
        (values,) = next(metric for metric in METRICS if metric.name == name).labels.values()
        for value in values or ():
            assert f"`{value}`" in said[name], (name, value)


def test_every_alert_is_documented_and_no_other() -> None:
    rules = yaml.safe_load((DOCS / "monitoring/alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert set(re.findall(r"^\| `(Coldstream\w+)`", doc("monitoring.md"), re.MULTILINE)) == alerts


def test_every_error_and_exit_code_is_documented() -> None:
    text = doc("exit-codes.md")
    tree = errors.__doc__ or ""
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.ColdstreamError):
            kind = error("x").kind
            assert f"`{kind or 'coldstream'}`" in text, kind
            assert f"| {error.exit_code} |" in text
            assert error.__name__ in tree


def test_every_field_of_the_manifest_is_documented() -> None:
    text = doc("manifest.md")
    for model in (
        manifest.Manifest,
        manifest.Journal,
        manifest.FileEntry,
        manifest.StoredObject,
        manifest.Chunks,
        manifest.Provenance,
        adapter.Adapter,
    ):
        for field in model.__struct_fields__:
            assert f"`{field}`" in text, field
