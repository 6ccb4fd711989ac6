"""`coldstream serve --engine sglang` with a real `sglang serve` on the CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from coldstream.node.http_endpoint import free_port
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.stores import S3Server
from tests.sglang.conftest import PYTHON
from tests.vllm.conftest import clean_environ
from tests.vllm.test_serve import alive, descendants, read

KEY = "an-api-key-of-this-test"
# SGLang's scheduler runs without its own kernels with this attention.
FLAGS = ("--device", "cpu", "--attention-backend", "torch_native", "--max-total-tokens", "2048")


def test_from_a_bucket(rclone: S3Server, model: Callable[[str], Path], tmp_path: Path) -> None:
    """coldstream serve org/llama --engine sglang; a request with the key, and one without; SIGTERM"""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.run("upload", str(model("llama")), "--as", "org/llama")
    environ = clean_environ(**rclone.environ(command.environ["R2_BUCKET"]), VLLM_API_KEY=KEY)
    environ |= {"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"), "SGLANG_CACHE_DIR": str(PYTHON.parents[1] / "cache")}
    port = free_port()
    words = ["serve", "org/llama", "--engine", "sglang", "--sglang", str(PYTHON.with_name("sglang")), "--json"]
    log = tmp_path / "log"
    with open(log, "wb") as stderr:
        serving = subprocess.Popen(
            [sys.executable, "-m", "coldstream", *words, "--", *FLAGS, "--port", str(port)],
            env=environ,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert serving.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(serving.stdout.readline())
            assert lines[-1], log.read_text()[-6000:]
        started = json.loads("".join(lines))
        below = descendants(serving.pid)
        answer = completion(port, KEY)
        arguments = "".join(read(f"/proc/{pid}/cmdline") for pid in below)
        environs = "".join(read(f"/proc/{pid}/environ") for pid in below)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 0, log.read_text()[-4000:]
    finally:
        serving.kill()
        serving.communicate()
    assert not alive(below)
    assert answer["choices"][0]["text"]
    names = [phase["name"] for phase in started["phases"]]
    assert {"api import + config", "engine spawn + worker spawn", "model init", "weights", "first token"} < {*names}
    assert started["named_share"] > 0.95
    assert started["stream"]["verified"]
    assert started["figures"]["kv_cache_tokens"] == 2048
    assert started["first_token_seconds"] > started["seconds"]
    text = log.read_text()
    assert "coldstream: reading org/llama from the stream of this node" in text
    assert "'api_key': '****'" in text
    assert KEY not in text + arguments
    assert rclone.secret_key not in text + arguments + environs


def completion(port: int, key: str) -> dict[str, list[dict[str, str]]]:
    body = json.dumps({"model": "org/llama", "prompt": "the river", "max_tokens": 4, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, headers)  # loopback
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, list[dict[str, str]]] = json.load(response)
    return found
