"""Time until the first answer of a LoRA adapter that a request names: fetched from the bucket, verified, and loaded.

    make .venv-vllm/tests.done                                   vLLM's CPU build
    .venv/bin/python benchmarks/adapters.py --markdown

A Llama and adapters with random weights lie in `rclone serve s3` on loopback. `coldstream serve --adapters on-demand`
serves the Llama, with an empty cache. For each adapter, a request for one token names it twice: at first vLLM does not
know it, then it is loaded.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from tests.adapters import adapter_files, llama_shapes  # noqa: E402
from tests.models import write_model  # noqa: E402

from coldstream.node.http_endpoint import free_port  # noqa: E402
from coldstream.operate.demo_bucket import s3_server  # noqa: E402
from streaming.bucket import keys_of  # noqa: E402

_VLLM = _ROOT / ".venv-vllm/bin/vllm"
_BASE, _HIDDEN, _LAYERS = "bench/llama", 1024, 5
_READY_SECONDS = 400


def main() -> None:
    """Serves, requests, and prints what each request took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=int, default=7)
    parser.add_argument("--rank", type=int, default=64, help="64 makes adapters of 21 MB")
    parser.add_argument("--markdown", action="store_true", help="print the line for docs/adapters.md")
    args = parser.parse_args()
    names = [f"bench/adapter-{number}" for number in range(args.adapters)]
    with tempfile.TemporaryDirectory(prefix="coldstream-adapters-") as temporary:
        folder = Path(temporary)
        with s3_server(folder / "bucket") as server:
            environ = {
                **os.environ,
                **keys_of(server),
                "COLDSTREAM_CACHE_DIR": str(folder / "cache"),
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            }
            size = _fill(folder, environ, names, args.rank)
            samples, log = _serve(folder, environ, names)
    fetches = [float(text) for text in re.findall(r"^adapter \S+: .* in ([\d.]+) ms$", log, re.MULTILINE)]
    figures = {name: round(1000 * statistics.median(row[name] for row in samples)) for name in ("first", "second")}
    slowest = round(1000 * max(row["first"] for row in samples))
    if args.markdown:
        machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
        command = f"python benchmarks/adapters.py --adapters {args.adapters} --rank {args.rank}"
        first = f"{figures['first']} ms (median of {len(samples)}; at most {slowest} ms)"
        print(
            f"`{command}` on {machine}, with vLLM's CPU build: the first answer of an adapter of {size / 1e6:.0f} MB "
            f"took {first}, of which {statistics.median(fetches):.0f} ms to find, copy and verify it; the second took "
            f"{figures['second']} ms."
        )
    else:
        print(json.dumps({"bytes": size, "samples": samples, "fetch_milliseconds": fetches, **figures}, indent=2))


def _fill(folder: Path, environ: dict[str, str], names: list[str], rank: int) -> int:
    """Uploads the base and the adapters; returns the bytes of one adapter."""
    code = "from pathlib import Path; from tests.vllm.models import llama; "
    code += f"llama(Path({str(folder / 'base')!r}), hidden={_HIDDEN}, layers={_LAYERS})"
    subprocess.run([str(_VLLM.with_name("python")), "-c", code], cwd=_ROOT, check=True)
    shapes = llama_shapes(layers=_LAYERS, hidden=_HIDDEN)
    modules = {name.split(".", 3)[3] for name in shapes}
    sources = {_BASE: folder / "base"}
    for seed, name in enumerate(names):
        files = adapter_files(_BASE, rank=rank, modules=modules, shapes=shapes, seed=seed)
        sources[name] = write_model(folder / name, files)
    for name, source in sources.items():
        command = [sys.executable, "-m", "coldstream", "upload", str(source), "--as", name, "--quiet"]
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    return sum(map(len, files.values()))


def _serve(folder: Path, environ: dict[str, str], names: list[str]) -> tuple[list[dict[str, float]], str]:
    """The seconds of both requests for each adapter, and the log."""
    port = free_port()
    flags = ("--enforce-eager", "--max-model-len", "256", "--host", "127.0.0.1", "--port", str(port))
    command = [sys.executable, "-m", "coldstream", "serve", _BASE, "--adapters", "on-demand", "--vllm", str(_VLLM)]
    log = folder / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen([*command, "--", *flags], env=environ, cwd=folder, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while "ready in" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        samples = [{"first": _request(port, name), "second": _request(port, name)} for name in names]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    return samples, log.read_text(errors="replace")


def _request(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"model": name, "prompt": "the river", "max_tokens": 1, "temperature": 0})
    began = time.monotonic()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    seconds = time.monotonic() - began
    connection.close()
    if response.status != 200:
        raise SystemExit(f"{name}: {response.status} {text[:500]!r}")
    return seconds


if __name__ == "__main__":
    main()
