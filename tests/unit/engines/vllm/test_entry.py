from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from coldstream.engines.vllm.entry import MODEL_FACTS, OBJECTS, be_patient, copy_model_facts

# What stands for vLLM: it spawns a process, as vLLM's CPU build does, and both say how patient they are.
_VLLM = """
import gc, multiprocessing, sys

def told(name):
    before = gc.get_threshold()
    gc.collect()
    print(name, before[0], gc.get_threshold()[0], len(gc.callbacks), flush=True)

def main():
    print(sys.argv, flush=True)
    told("main")
    child = multiprocessing.get_context("spawn").Process(target=told, args=("child",))
    child.start()
    child.join()
    return 3
"""


def test_the_first_full_collection_ends_it() -> None:
    before = gc.get_threshold()
    callbacks = len(gc.callbacks)
    try:
        be_patient()
        assert gc.get_threshold() == (OBJECTS, *before[1:])
        gc.collect(1)
        assert gc.get_threshold()[0] == OBJECTS
        gc.collect()
        assert gc.get_threshold() == before
        be_patient()
        # Somebody else's choice stays.
        gc.set_threshold(123)
        gc.collect()
        assert gc.get_threshold()[0] == 123
        gc.set_threshold(0)
        be_patient()
        assert gc.get_threshold()[0] == 0
        assert len(gc.callbacks) == callbacks
    finally:
        gc.set_threshold(*before)


def test_it_runs_vllm_s_command_and_holds_in_spawned_processes(tmp_path: Path) -> None:
    for folder in ("vllm", "vllm/entrypoints", "vllm/entrypoints/cli"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "vllm/entrypoints/cli/main.py").write_text(_VLLM)
    command = [sys.executable, "-m", "coldstream.engines.vllm.entry", "serve", "--flag"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    default = gc.get_threshold()[0]
    assert ended.stdout.splitlines() == [
        "['vllm', 'serve', '--flag']",
        f"main {OBJECTS} {default} 0",
        f"child {OBJECTS} {default} 0",
    ], ended.stderr
    assert ended.returncode == 3


def test_what_the_runtime_knows_of_models_comes_to_vllm_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "runtime"))
    home, source = tmp_path / "home", tmp_path / "runtime" / MODEL_FACTS
    monkeypatch.setenv("HOME", str(home))
    for name in ("VLLM_CACHE_ROOT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    copy_model_facts()
    assert not home.exists()
    source.mkdir(parents=True)
    (source / "llama.json").write_text("{}")
    (source / "llama.json").chmod(0o444)
    for variable, folder in (("HOME", ".cache/vllm"), ("XDG_CACHE_HOME", "vllm"), ("VLLM_CACHE_ROOT", ".")):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        target = tmp_path / variable / folder / "modelinfos"
        target.mkdir(parents=True)
        (target / "llama.json").write_text("of another version")
        (target / "other.json").write_text("stays")
        copy_model_facts()
        assert {path.name: path.read_text() for path in target.iterdir()} == {"llama.json": "{}", "other.json": "stays"}
        copy_model_facts()
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file"))
    copy_model_facts()
