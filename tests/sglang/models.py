"""Runs in SGLang's environment: writes the models of the tests, all in one process, which imports torch once."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.vllm import models

NAMES = ("llama", "tied-llama", "qwen3", "mixtral")

if __name__ == "__main__":
    for name in NAMES:
        models.GENERATORS[name](Path(sys.argv[1]) / name)
