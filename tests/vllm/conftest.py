"""vLLM's environment, made by `make .venv-vllm/tests.done`; without it these tests skip.

vLLM runs in processes of its own, with that environment's Python, so its pinned packages do not have to match ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.models import minilm

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm/bin/python"
# For quick starts of small models. By default vLLM binds its worker to the first core, which other tests need too; and
# without a cache it inspects the model's class in another process, which imports vLLM once more.
QUICK = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_CACHE_ROOT": str(ROOT / ".venv-vllm/cache"),
}
_JOBS_SECONDS = 800
MODELS = ("llama", "tied-llama", "qwen3", "mixtral", "int8-llama", "minilm")


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
    return kept | ours | QUICK | more


class Offline:
    """`tests.vllm.inside` in a process that stays, and does the jobs of all tests: it imports vLLM once."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [str(PYTHON), "-m", "tests.vllm.inside"],
                cwd=ROOT,
                env=clean_environ(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def run(self, jobs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
        """The results of jobs, by their ids."""
        folder.mkdir()
        (folder / "jobs.json").write_text(json.dumps(jobs))
        assert self._process.stdin is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + _JOBS_SECONDS
        while not (folder / "results.json").exists():
            assert self._process.poll() is None, self._log.read_text(errors="replace")[-6000:]
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")[-6000:]
            time.sleep(0.1)
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())
        return results

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    process = Offline(tmp_path_factory.mktemp("offline") / "log")
    yield process
    process.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of `tests.vllm.models`. One process writes them all, and imports torch once."""
    folder = tmp_path_factory.mktemp("models")
    run_inside("tests.vllm.models", "all", folder)
    minilm(folder / "minilm")  # of a package in this environment
    return folder.joinpath
