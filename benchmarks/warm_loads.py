"""Loads of files on this machine: coldstream, with and without its hashes, and safetensors' mmap.

    python benchmarks/warm_loads.py --gib 4 --rounds 5 --markdown > section.md
    python benchmarks/warm_loads.py --before ../earlier-checkout          rows of another version, too

The model lies in a folder, with a manifest, and in the page cache. Each row is a process that has imported everything
that it needs; the time is from the call to the last tensor. Rows that copy do what a model's loader does: they copy
each tensor to memory that was touched before. The rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_GIB = 1 << 30
_PROGRAM = """
import json, os, resource, sys, time
source, folder, row, verify, size = sys.argv[1:]
sys.path.insert(0, source)
import torch
torch.set_num_threads(1)
into = torch.zeros(int(size), dtype=torch.uint8)
if row == "safetensors":
    from safetensors import safe_open
    def tensors():
        for name in sorted(os.listdir(folder)):
            if name.endswith(".safetensors"):
                with safe_open(os.path.join(folder, name), framework="pt") as file:
                    for key in file.keys():
                        yield file.get_tensor(key)
else:
    import coldstream
    keywords = {"framework": "pt", "metrics": False, "cache": False, "verify": verify == "True"}
    coldstream.stream(folder, **keywords).close()
    def tensors():
        for _, tensor in coldstream.stream(folder, **keywords):
            yield tensor
def cpu():
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
before, began, count, first = cpu(), time.perf_counter(), 0, None
for tensor in tensors():
    first = first or time.perf_counter() - began
    if row != "views":
        into[: tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))
    count += tensor.nbytes
    del tensor
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "first": first, "cpu": cpu() - before, "bytes": count}))
"""


def main() -> None:
    """Runs the rounds and prints a table; writes benchmarks/out/warm_loads.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to put the model [default: a temporary folder]"
    )
    parser.add_argument("--markdown", action="store_true", help="print the section for docs/benchmarks.md")
    args = parser.parse_args()
    here, before = _ROOT / "src", args.before and args.before / "src"
    rows: dict[str, tuple[Any, ...]] = {
        "safetensors, mmap and copy": (here, "safetensors", False),
        "coldstream, verified, and copy": (here, "copy", True),
        "coldstream, not verified, and copy": (here, "copy", False),
        "coldstream, verified": (here, "views", True),
        "coldstream, not verified": (here, "views", False),
    }
    if before:
        rows |= {
            "before: coldstream, verified, and copy": (before, "copy", True),
            "before: coldstream, verified": (before, "views", True),
        }
    with tempfile.TemporaryDirectory(prefix="coldstream-warm-loads-", dir=args.folder) as temporary:
        largest = _make_model(Path(temporary), args.gib)
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for number in range(args.rounds + 1):
            for name, (source, row, verify) in rows.items():
                sample = _run(source, Path(temporary, "bench/model"), row, verify, largest)
                if number:  # the first round warms the page cache
                    samples[name].append(sample)
                    print(f"  round {number}  {name:<40} {sample['seconds']:6.2f} s", file=sys.stderr, flush=True)
    out = _ROOT / "benchmarks/out"
    out.mkdir(exist_ok=True)
    (out / "warm_loads.json").write_text(json.dumps({"arguments": vars(args), "samples": samples}, default=str))
    print(_markdown(args, samples) if args.markdown else json.dumps(samples))


def _make_model(folder: Path, gib: float) -> int:
    """Returns the size of the largest tensor."""
    sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]
    from streaming.model import llama_tensors, make_model

    tensors = llama_tensors(int(gib * _GIB))
    make_model(folder, "bench/model", tensors, shards=4)
    return max(2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for _, shape in tensors)


def _run(source: Path, folder: Path, row: str, verify: bool, size: int) -> dict[str, float]:  # noqa: FBT001  # of a row
    command = [sys.executable, "-c", _PROGRAM, str(source), str(folder), row, str(verify), str(size)]
    environ = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ, cwd=folder)
    sample: dict[str, float] = json.loads(done.stdout)
    return sample


def _markdown(args: argparse.Namespace, samples: dict[str, list[dict[str, float]]]) -> str:
    base = samples["safetensors, mmap and copy"]
    machine = f"{os.cpu_count()} shared virtual cores, Linux {platform.release().split('-')[0]}"
    command = f"python benchmarks/warm_loads.py --gib {args.gib:g} --rounds {args.rounds}"
    lines = [
        f"`{command}`: {machine}, Python {platform.python_version()}. Medians of interleaved rounds, with their range.",
        "",
        "| Row | s | GiB/s | speed, times safetensors | CPU-s/GiB | first tensor, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in samples.items():
        gib = runs[0]["bytes"] / _GIB
        cells = [
            _cell([run["seconds"] for run in runs]),
            _cell([gib / run["seconds"] for run in runs]),
            _cell([other["seconds"] / run["seconds"] for other, run in zip(base, runs, strict=True)]),
            _cell([run["cpu"] / gib for run in runs]),
            _cell([run["first"] for run in runs], digits=3),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], *, digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
