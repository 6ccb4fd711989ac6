"""What is used of vLLM is there in each supported version, by records of their sources, and in the installed one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coldstream.engines.vllm.program import Program
from tests.vllm.interface import RECORDS, ROOT, SINCE, Source, patterns, record, uses

VERSIONS = sorted(path.stem for path in RECORDS.glob("*.json"))


def recorded(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDS / f"{version}.json").read_text())
    return found


def test_each_supported_version_has_a_record() -> None:
    assert [f"0.{minor}.0" for minor in range(Program.oldest[1], Program.newest[1] + 1)] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_is_used_is_there(version: str) -> None:
    found = recorded(version)
    assert [*found["names"]] == uses(), "run: python -m tests.vllm.interface, with the wheels of all versions"
    assert [*found["lines"]] == [*patterns()]
    missing = {name for part in found.values() for name, what in part.items() if not what}
    assert missing == {name for name, since in SINCE.items() if version < since}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_called_or_overridden_takes_the_same_arguments(version: str) -> None:
    run, other = (
        {name: what for name, what in recorded(each)["names"].items() if what and what.startswith("(")}
        for each in ("0.32.0", version)
    )
    assert other == run


def test_the_record_of_the_installed_version_is_true() -> None:
    site = next(ROOT.glob(".venv-vllm/lib/python3.*/site-packages"), None)
    if site is None:
        pytest.skip("vLLM is not installed: make .venv-vllm/tests.done")
    source = Source(site)
    assert record(source, recorded(source.version)["lines"]) == recorded(source.version)
