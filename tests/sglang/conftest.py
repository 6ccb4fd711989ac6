"""SGLang's environment, made by `make .venv-sglang/tests.done`; without it these tests skip.

SGLang runs in processes of its own, with that environment's Python.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vllm.conftest import clean_environ, model

__all__ = ["model"]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-sglang/bin/python"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them all, and gives each the time that SGLang's imports take on a busy machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(300))
            if not PYTHON.exists():
                item.add_marker(pytest.mark.skip(reason="SGLang is not installed: make .venv-sglang/tests.done"))


def begin_inside(*arguments: str | Path, **environ: str) -> subprocess.Popen[str]:
    """Starts a module of the tests in SGLang's environment."""
    return subprocess.Popen(
        [str(PYTHON), "-W", "ignore", "-m", *map(str, arguments)],
        cwd=ROOT,
        env=clean_environ(**{"SGLANG_CACHE_DIR": str(PYTHON.parents[1] / "cache"), **environ}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    """Waits until they have ended well."""
    outputs = [process.communicate(timeout=250)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-6000:]
