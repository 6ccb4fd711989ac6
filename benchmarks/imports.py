"""What vLLM's start spends on importing itself, and what can be saved: CPU seconds of all its processes, and wall time.

    make .venv-vllm/tests.done                                   vLLM's CPU build
    .venv/bin/python benchmarks/imports.py --markdown > section.md

Each start is of a small model, eager, with everything cached, until /health answers; rounds are interleaved. Bytecode
is compiled beforehand in all rows.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src")]

from coldstream.node.http_endpoint import free_port  # noqa: E402

_PYTHON = _ROOT / ".venv-vllm/bin/python"
_READY_SECONDS = 300
_VLLM = (str(_PYTHON.with_name("vllm")),)
_LAUNCH = (str(_PYTHON), "-P", "-m", "coldstream.engines.vllm.entry")
_API_SERVER = (str(_PYTHON), "-P", "-m", "vllm.entrypoints.openai.api_server")
_ONE_LESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_ROWS: tuple[tuple[str, tuple[str, ...], dict[str, str]], ...] = (
    ("`vllm serve`", (*_VLLM, "serve"), {}),
    ("with a patient garbage collector (`coldstream serve` does this)", (*_LAUNCH, "serve"), {}),
    ("`VLLM_ENABLE_V1_MULTIPROCESSING=0`: the worker lives in the engine", (*_VLLM, "serve"), _ONE_LESS),
    ("both", (*_LAUNCH, "serve"), _ONE_LESS),
    ("`python -m vllm.entrypoints.openai.api_server`", (*_API_SERVER, "--model"), {}),
)


def main() -> None:
    """Runs the rounds and prints a table; writes benchmarks/out/imports.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print the section for docs")
    args = parser.parse_args()
    samples: dict[str, list[tuple[float, float]]] = {row: [] for row, _, _ in _ROWS}
    with tempfile.TemporaryDirectory(prefix="coldstream-imports-") as temporary:
        folder = Path(temporary)
        code = f"from pathlib import Path; from tests.vllm.models import llama; llama(Path({str(folder / 'm')!r}))"
        subprocess.run([str(_PYTHON), "-c", code], cwd=_ROOT, check=True)
        _start(folder, *_ROWS[0][1:])  # fills the caches
        for number in range(args.rounds):
            for row, command, environ in _ROWS:
                sample = _start(folder, command, environ)
                samples[row].append(sample)
                print(f"  round {number + 1}  {row:<64} {sample[0]:5.1f} s  {sample[1]:5.1f} CPU-s", file=sys.stderr)
    out = _ROOT / "benchmarks/out"
    out.mkdir(exist_ok=True)
    (out / "imports.json").write_text(json.dumps({"arguments": vars(args), "samples": samples}, indent=2))
    print(_markdown(args, samples) if args.markdown else json.dumps(samples, indent=2))


def _start(folder: Path, command: tuple[str, ...], environ: dict[str, str]) -> tuple[float, float]:
    """Wall seconds until it answers, and CPU seconds of its processes until then."""
    port = free_port()
    flags = ["--enforce-eager", "--max-model-len", "256", "--host", "127.0.0.1", "--port", str(port)]
    given = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    given["VLLM_CACHE_ROOT"] = str(folder / "cache")
    with open(folder / "log", "wb") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, str(folder / "m"), *flags],
            env={**os.environ, **given, **environ},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > began + _READY_SECONDS:
                raise SystemExit(f"{command} did not start:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.05)
        return time.monotonic() - began, _cpu_seconds(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return status == 200


def _cpu_seconds(session: int) -> float:
    """Of all processes of a session, living or waited for by one that lives."""
    ticks = 0
    for name in os.listdir("/proc"):
        try:
            stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split() if name.isdigit() else []
        except OSError:
            continue
        # After the name: state, parent, group, session; user and system time, and those of dead children.
        if len(stat) > 14 and int(stat[3]) == session:
            ticks += sum(map(int, stat[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _markdown(args: argparse.Namespace, samples: dict[str, list[tuple[float, float]]]) -> str:
    code = "from importlib.metadata import version; print(version('vllm'))"
    vllm = subprocess.run([str(_PYTHON), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    machine = f"{os.cpu_count()} shared virtual cores, Linux {platform.release().split('-')[0]}"
    lines = [
        f"`python benchmarks/imports.py --rounds {args.rounds}`: {machine}, vLLM {vllm}, eager; medians.",
        "",
        "| Start | CPU-s | s until it answers | CPU-s, each |",
        "|---|---:|---:|---|",
    ]
    for row, _, _ in _ROWS:
        walls, cpus = zip(*samples[row], strict=True)
        each = ", ".join(f"{cpu:.1f}" for cpu in cpus)
        lines.append(f"| {row} | {statistics.median(cpus):.1f} | {statistics.median(walls):.1f} | {each} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
