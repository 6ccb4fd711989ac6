"""What a runtime learns from vLLM about models, with a small package in the place of vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.engines.vllm import model_facts
from coldstream.engines.vllm.entry import MODEL_FACTS
from tests.runtimes import Venv

# As in vLLM: what is inspected is kept by `inspect_model_cls`, which would do it in another process.
_REGISTRY = """
import os, pathlib, sys, time

def _run_in_subprocess(inspect):
    raise SystemExit("in another process")

class Model:
    def __init__(self, name):
        self.name = name

    def inspect_model_cls(self):
        info = _run_in_subprocess(lambda: SECONDS and time.sleep(SECONDS) or self.load())
        folder = pathlib.Path(os.environ["VLLM_CACHE_ROOT"], "modelinfos")
        folder.mkdir(exist_ok=True)
        (folder / f"{self.name}.json").write_text(info)
        (folder / f"{self.name}.json").chmod(0o600)

    def load(self):
        if self.name == "broken":
            raise ImportError(self.name)
        if self.name == "exits":
            raise SystemExit(self.name)
        return f"{self.name} of {sys.prefix}"

class ModelRegistry:
    models = {name: Model(name) for name in ("broken", "llama", "exits", "qwen")}
"""


def runtime(tmp_path: Path, *, seconds: float = 0) -> Path:
    venv = Venv(tmp_path / "venv")
    folder = venv.site / "vllm/model_executor/models"
    folder.mkdir(parents=True)
    (folder / "registry.py").write_text(f"SECONDS = {seconds}{_REGISTRY}")
    return venv.relocated(tmp_path / "runtime")


def test_classes_that_can_be_imported(tmp_path: Path) -> None:
    root = runtime(tmp_path)
    before = {path for path in root.rglob("*") if path.is_file()}
    assert model_facts.add_model_facts(root) == 2
    facts = {root / MODEL_FACTS / name for name in ("llama.json", "qwen.json")}
    assert {path for path in root.rglob("*") if path.is_file()} == before | facts
    assert (root / MODEL_FACTS / "llama.json").read_text() == f"llama of {root}", "of the runtime, not of its origin"
    assert {path.stat().st_mode & 0o777 for path in facts} == {0o644}


def test_a_vllm_that_keeps_nothing(tmp_path: Path) -> None:
    root = Venv(tmp_path / "venv").relocated(tmp_path / "runtime")
    assert model_facts.add_model_facts(root) == 0
    assert not (root / "share").exists()


def test_it_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of them would depend on how fast this machine is."""
    monkeypatch.setattr(model_facts, "_SECONDS_MAX", 2)
    root = runtime(tmp_path, seconds=1.5)
    assert model_facts.add_model_facts(root) == 0
    assert not (root / "share").exists()
