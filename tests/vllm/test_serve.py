"""`coldstream serve` with a real `vllm serve`: answers, signals, keys, restarts, ranks."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from coldstream.node.http_endpoint import free_port
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.ranged import RangedServer
from tests.servers.stores import S3Server
from tests.vllm.conftest import PYTHON, QUICK, clean_environ
from tests.vllm.test_tokens import served

# vLLM takes five seconds to end where it may finish requests, and none is under way at the end of these tests.
FLAGS = ("--max-model-len", "256", "--host", "127.0.0.1", "--shutdown-timeout", "0")
# One rank runs in the process of the engine, as on GPUs. On the CPU its worker has a process of its own, which imports
# vLLM again, unless this variable is set.
ONE_RANK = ("--distributed-executor-backend", "uni")
ONE_RANK_ENVIRON = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
READY_SECONDS = 400


class Serving:
    """A running `coldstream serve`."""

    def __init__(
        self,
        *arguments: str,
        environ: dict[str, str],
        folder: Path,
        vllm: tuple[str, ...] = (),
        eager: bool = True,
        own_worker: bool = False,
    ) -> None:
        flags = (*FLAGS, "--enforce-eager") if eager else FLAGS
        if not own_worker and "--tensor-parallel-size" not in vllm:
            flags, environ = (*flags, *ONE_RANK), environ | ONE_RANK_ENVIRON
        self.port = free_port()
        self._log = folder / f"serve-{self.port}.log"
        command = [sys.executable, "-m", "coldstream", "serve", *arguments, "--vllm", str(PYTHON.with_name("vllm"))]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--", *flags, "--port", str(self.port), *vllm],
                env=environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "COLDSTREAM_CACHE_DIR": str(folder / "cache")},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log[-6000:]
            if "ready in" in self.log:
                return
            time.sleep(0.2)
        raise AssertionError(self.log[-6000:])

    def ask(self, path: str, **body: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text
            return json.loads(text)
        finally:
            connection.close()

    def says(self, name: str) -> str:
        """What the model says."""
        answer = self.ask("/v1/completions", model=name, prompt="the river", max_tokens=12, temperature=0)
        return str(answer["choices"][0]["text"])

    def end(self, number: int = signal.SIGINT) -> int:
        os.kill(self.process.pid, number)
        return self.process.wait(60)


@contextmanager
def serving(*arguments: str, **more: Any) -> Iterator[Serving]:
    found = Serving(*arguments, **more)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
            found.process.wait()


def descendants(pid: int) -> set[int]:
    """All living processes below one."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read(f"/proc/{entry}/stat")):
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry)] = int(parent)
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def alive(pids: set[int]) -> dict[int, str]:
    """Those of them that still run, after a moment."""
    deadline = time.monotonic() + 10
    left: dict[int, str] = {}
    while time.monotonic() < deadline:
        left = {
            pid: read(f"/proc/{pid}/cmdline").replace("\0", " ")
            for pid in pids
            if (stat := read(f"/proc/{pid}/stat")) and stat.rpartition(")")[2].split()[0] != "Z"
        }
        if not left:
            break
        time.sleep(0.1)
    return left


def test_from_a_bucket_and_then_without_it(rclone: S3Server, model: Callable[[str], Path], tmp_path: Path) -> None:
    """coldstream upload; coldstream serve; Ctrl-C; the same with the bucket gone"""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.run("upload", str(model("llama")), "--as", "org/llama")
    settings = rclone.environ(command.environ["R2_BUCKET"])
    environ = clean_environ(**settings)
    with serving("org/llama", environ=environ, folder=tmp_path) as first:
        first.wait_until_ready()
        said = first.says("org/llama")
        below = descendants(first.process.pid)
        assert first.end() == 0, first.log[-4000:]
        log = first.log
    assert not alive(below)
    assert "weights" in log
    assert "hidden by the start" in log
    assert rclone.secret_key not in log
    # Nothing listens there.
    gone = clean_environ(**settings | {"R2_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    with serving("org/llama", environ=gone, folder=tmp_path) as second:
        second.wait_until_ready()
        assert second.says("org/llama") == said
        below = descendants(second.process.pid)
        environs = [read(f"/proc/{pid}/environ") for pid in below]
        arguments = [read(f"/proc/{pid}/cmdline") for pid in below]
        vllm = next(pid for pid in below if "\0serve\0" in read(f"/proc/{pid}/cmdline"))
        os.killpg(vllm, signal.SIGKILL)
        assert second.process.wait(60) == 128 + signal.SIGKILL
        assert "starting from the local cache" in second.log
    assert not alive(below), "the streamer outlives vLLM"
    assert "COLDSTREAM_SERVICE" in "".join(environs)
    assert rclone.secret_key not in "".join(environs + arguments)


def test_two_ranks_read_the_model_once(model: Callable[[str], Path], tmp_path: Path) -> None:
    """The same of its draft model."""
    files = served(model("mixtral"))
    drafts = {path.replace("/m/", "/draft/", 1): content for path, content in served(model("draft-llama")).items()}
    weights, draft_weights = (
        sum(len(content) for path, content in each.items() if path.endswith(".safetensors")) for each in (files, drafts)
    )
    with RangedServer(files | drafts) as server:
        config = json.dumps({"model": f"{server.url}/draft", "num_speculative_tokens": 2})
        ranks = ("--tensor-parallel-size", "2", "--speculative-config", config)
        with serving(f"{server.url}/m", environ=clean_environ(), folder=tmp_path, vllm=ranks) as both:
            both.wait_until_ready()
            sent, draft_sent = (
                sum(request.sent for request in server.requests if re.match(path, request.path))
                for path in (r"/m/.*\.safetensors$", r"/draft/.*\.safetensors$")
            )
            said = both.says("m")
            assert both.end(signal.SIGTERM) == 0, both.log[-4000:]
        assert said
    # What is more than the weights are the headers, which the folder is made of.
    assert weights <= sent < 1.35 * weights, f"{sent / weights:.2f} x the model crossed the network"
    assert draft_weights <= draft_sent < 1.35 * draft_weights, f"{draft_sent / draft_weights:.2f} x the draft model"


def test_a_stream_that_is_killed_ends_vllm(model: Callable[[str], Path], tmp_path: Path) -> None:
    files = served(model("llama"))
    with RangedServer(files) as server:
        server.add("slow", "safetensors", first=3, times=None, bytes_per_second=2e4)
        with serving(f"{server.url}/m", environ=clean_environ(), folder=tmp_path) as broken:
            deadline = time.monotonic() + READY_SECONDS
            while "coldstream: reading" not in broken.log:
                assert broken.process.poll() is None, broken.log[-4000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            below = descendants(broken.process.pid)
            streamers = [pid for pid in below if "coldstream.engine.streamer" in read(f"/proc/{pid}/cmdline")]
            assert streamers
            for pid in streamers:
                os.kill(pid, signal.SIGKILL)
            code = broken.process.wait(120)
        assert code == 1, broken.log[-4000:]
        assert "coldstream: " in broken.log
        assert "the streaming process ended" in broken.log
        assert not alive(below)


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("org/absent",), "there is no model org/absent", 10),
        (("org/absent", "--loader", "runai", "--print-command", "--vllm", "/nowhere/vllm"), "no program", 10),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    arguments: tuple[str, ...], said: str, code: int, rclone: S3Server, tmp_path: Path
) -> None:
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    named = () if "--vllm" in arguments else ("--vllm", str(PYTHON.with_name("vllm")))
    _, err = command.run("serve", *arguments, *named, code=code)
    assert said in err
    assert err.count("error:") == 1


def test_run_ai_reads_the_same_bucket(rclone: S3Server, model: Callable[[str], Path], tmp_path: Path) -> None:
    """coldstream serve --loader runai"""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.run("upload", str(model("tied-llama")), "--as", "org/llama")
    environ = clean_environ(**rclone.environ(command.environ["R2_BUCKET"]), VLLM_ASSETS_CACHE=str(tmp_path / "assets"))
    with serving("org/llama", "--loader", "runai", environ=environ, folder=tmp_path) as found:
        found.wait_until_ready()
        assert found.says("org/llama")
        assert "RunAI" in found.log or "runai_streamer" in found.log
        assert found.end(signal.SIGTERM) == 0


def test_shards_are_made_uploaded_and_served(rclone: S3Server, model: Callable[[str], Path], tmp_path: Path) -> None:
    """coldstream shard --tp 2; coldstream serve --loader runai-sharded"""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.environ |= QUICK | {
        "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command.run("upload", str(model("llama")), "--as", "org/llama")
    vllm = str(PYTHON.with_name("vllm"))
    made = json.loads(
        command.process("shard", "org/llama", "--tp", "2", "--vllm", vllm, "--json", "--", "--max-model-len", "256")[0]
    )
    assert made["name"] == "org/llama-tp2"
    assert command.states()["org/llama-tp2"] == "ready"
    assert not list((tmp_path / "cache").glob("shards-*"))
    command.run("download", "org/llama-tp2", "made")
    name = "model.layers.0.self_attn.o_proj.weight"
    parts = [load_file(tmp_path / "made" / f"model-rank-{rank}-part-0.safetensors")[name] for rank in (0, 1)]
    whole = [tensors[name] for path in model("llama").glob("*.safetensors") if name in (tensors := load_file(path))]
    assert torch.cat(parts, dim=1).equal(whole[0]), "as the checkpoint has it, not as this CPU's kernels want it"
    environ = clean_environ(**rclone.environ(command.environ["R2_BUCKET"]), VLLM_ASSETS_CACHE=str(tmp_path / "assets"))
    ranks = ("--tensor-parallel-size", "2")
    with serving("org/llama", "--loader", "runai-sharded", environ=environ, folder=tmp_path, vllm=ranks) as found:
        found.wait_until_ready()
        assert found.says("org/llama")
        assert found.end(signal.SIGTERM) == 0
