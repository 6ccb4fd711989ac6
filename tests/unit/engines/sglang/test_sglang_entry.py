"""SGLang gets its key within its process, and does not log it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = """
import logging, sys

def main():
    logging.basicConfig(format="%(message)s", force=True)
    key = sys.argv[sys.argv.index("--api-key") + 1] if "--api-key" in sys.argv else None
    logging.warning(f"server_args={{'api_key': {key!r}, 'admin_api_key': 'other'}}, {len(key or '')} characters")
    logging.warning("ServerArgs(api_key='%s')", "formatted")
    print(sys.argv[0], open("/proc/self/cmdline").read().count(key or "-"))
"""


@pytest.fixture
def started(tmp_path: Path) -> str:
    package = tmp_path / "sglang/cli"
    package.mkdir(parents=True)
    (package / "main.py").write_text(FAKE)
    return str(tmp_path)


@pytest.mark.parametrize("key", ["s3cr3t-s3cr3t", None])
def test_it(started: str, key: str | None) -> None:
    environ = {"PYTHONPATH": started, "PATH": os.defpath} | ({"VLLM_API_KEY": key} if key else {})
    words = [sys.executable, "-m", "coldstream.engines.sglang.sglang_entry", "serve"]
    ended = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=True)
    logged, formatted = ended.stderr.splitlines()
    assert formatted == "ServerArgs(api_key='****')"
    if key:
        assert logged == "server_args={'api_key': '****', 'admin_api_key': '****'}, 13 characters"
        assert ended.stdout == "sglang 0\n"
    else:
        assert logged == "server_args={'api_key': None, 'admin_api_key': '****'}, 0 characters"
