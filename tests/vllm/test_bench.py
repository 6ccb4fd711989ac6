"""`coldstream bench --vllm` with a real vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.stores import S3Server
from tests.vllm.conftest import PYTHON, clean_environ
from tests.vllm.test_serve import ONE_RANK, ONE_RANK_ENVIRON

FLAGS = ("--enforce-eager", "--max-model-len", "256", *ONE_RANK)


def test_a_whole_start_to_its_first_token(rclone: S3Server, model: Callable[[str], Path], tmp_path: Path) -> None:
    """coldstream bench org/llama --only coldstream --vllm --python .venv-vllm/bin/python -- --enforce-eager"""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.run("upload", str(model("llama")), "--as", "org/llama")
    command.environ = clean_environ(
        **rclone.environ(command.environ["R2_BUCKET"]),
        COLDSTREAM_CACHE_DIR=str(tmp_path / "cache"),
        VLLM_CPU_KVCACHE_SPACE="1",
        **ONE_RANK_ENVIRON,
    )
    out, _ = command.run(
        "bench", "org/llama", "--runs", "1", "--no-drop-caches", "--only", "coldstream", "--python", str(PYTHON),
        "--json", "--vllm", "--", *FLAGS,
    )  # fmt: skip
    (row,) = json.loads(out)["starts"]
    assert row["state"] == "ok", row
    assert row["same"] is True, "it completed the prompt in both starts"
    (run,) = row["runs"]
    assert 0 < run["start"]["first_token_seconds"] <= run["seconds"]
    assert run["cpu_seconds"] > 1
    assert run["memory_bytes"] > 100 << 20
    assert "API ready" in [phase["name"] for phase in run["start"]["phases"]]
    assert not list(tmp_path.glob("coldstream-bench-*"))
