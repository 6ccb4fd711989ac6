"""The benchmark for GPUs on the CPU: the same code, so that it works when a GPU is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_on_the_cpu() -> None:
    """python benchmarks/gpu.py --device cpu --gib 0.1 --rounds 1"""
    options = ["--device", "cpu", "--gib", "0.1", "--rounds", "1"]
    command = [sys.executable, "benchmarks/gpu.py", *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, done.stderr
    assert "coldstream" in done.stdout
