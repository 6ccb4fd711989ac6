"""vLLM's environment, made by `make .venv-vllm/tests.done`; without it these tests skip.

vLLM runs in processes of its own, with that environment's Python, so its pinned packages do not have to match ours.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vllm.models import minilm

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm/bin/python"
MODELS = ("llama", "tied-llama", "qwen3", "mixtral", "int8-llama", "minilm")
# A processor for each of two ranks, as vLLM's VLLM_CPU_OMP_THREADS_BIND has it; a container may have any two.
_PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
TWO_RANKS = f"{_PROCESSORS[0]}|{_PROCESSORS[-1]}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them all, and gives each the time that vLLM's imports take on a busy machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(900))
            if not PYTHON.exists():
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: make .venv-vllm/tests.done"))


def run_inside(*arguments: str | Path, environ: dict[str, str] | None = None, seconds: float = 800) -> str:
    """Runs a module of the tests in vLLM's environment; its output."""
    ended = subprocess.run(
        [str(PYTHON), "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environ or clean_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-6000:]
    return ended.stdout


def clean_environ(**more: str) -> dict[str, str]:
    """The environment without anybody's bucket."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("R2_", "AWS_", "COLDSTREAM_", "HF_"))}
    ours = {"COLDSTREAM_CACHE_LIMIT": "20GB", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return kept | ours | more


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of `tests.vllm.models`, made when it is first asked for."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("models") / name
            if name == "minilm":
                minilm(made[name])  # of a package in this environment
            else:
                run_inside("tests.vllm.models", name, made[name])
        return made[name]

    return find
