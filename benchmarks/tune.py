"""Predictions of `coldstream tune` against loads over a link that is capped at several speeds.

    apt-get install iproute2                                     the capped link; needs root
    .venv/bin/python benchmarks/tune.py --markdown > section.md

A model of random weights lies in `rclone serve s3`, behind a link capped by a token bucket.
For each speed the link is measured once as `coldstream tune --measure` does, the load of the whole model is predicted
from that, and then timed; rounds are interleaved.
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

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from tests.checkpoints import sharded_checkpoint  # noqa: E402

from coldstream.operate.demo_bucket import DemoServer, s3_server  # noqa: E402
from coldstream.tune.predict import NetworkPath, predict  # noqa: E402
from streaming.bucket import capped_bucket, keys_of  # noqa: E402
from streaming.link import Link  # noqa: E402

_NAME = "bench/model"
_GIGABITS = (0.5, 1.0, 2.0)


def main() -> None:
    """Runs the rounds and prints a table; writes benchmarks/out/tune.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=740)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print the section for docs/benchmarks.md")
    args = parser.parse_args()
    samples: dict[float, list[dict[str, float]]] = {speed: [] for speed in _GIGABITS}
    with tempfile.TemporaryDirectory(prefix="coldstream-tune-") as temporary:
        folder = Path(temporary)
        size = _make_model(folder, args.megabytes)
        for number in range(args.rounds):
            for speed in _GIGABITS:
                with capped_bucket(folder / "bucket", speed * 1e9) as (link, server):
                    samples[speed].append(_round(folder, link, server, size))
                print(f"  round {number + 1}  {speed} Gbit/s  {samples[speed][-1]}", file=sys.stderr)
    out = _ROOT / "benchmarks/out"
    out.mkdir(exist_ok=True)
    (out / "tune.json").write_text(json.dumps({"arguments": vars(args), "samples": samples}, indent=2))
    print(_markdown(args, samples) if args.markdown else json.dumps(samples, indent=2))


def _make_model(folder: Path, megabytes: int) -> int:
    """A model of about this size; how many bytes of weights it has."""
    model = folder / "model"
    model.mkdir()

    def made(layers: int) -> dict[str, bytes]:
        return sharded_checkpoint(shards=4, layers=layers, rows=1024, columns=4096)

    once, twice = _weights(made(1)), _weights(made(2))
    files = made(max(1, 1 + round((megabytes * 1e6 - once) / (twice - once))))
    for path, content in files.items():
        (model / path).write_bytes(content)
    with s3_server(folder / "bucket") as server:
        command = [sys.executable, "-m", "coldstream", "upload", str(model), "--as", _NAME, "--quiet"]
        subprocess.run(command, env=_environ(server, folder), check=True, stdout=subprocess.DEVNULL)
    return _weights(files)


def _weights(files: dict[str, bytes]) -> int:
    return sum(len(content) for path, content in files.items() if path.endswith(".safetensors"))


def _environ(server: DemoServer, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        **keys_of(server),
        "COLDSTREAM_CACHE_DIR": str(folder / "cache"),
    }


def _round(folder: Path, link: Link, server: DemoServer, size: int) -> dict[str, float]:
    curve = _run(folder, link, server, "tune", _NAME, "--measure")["curve"]
    way = NetworkPath(link_bytes_per_second=curve["most"], connection_bytes_per_second=curve["each"])
    predicted = predict(size, way, connections=curve["connections"]).seconds
    connections = str(curve["connections"])
    seconds = _run(folder, link, server, "load", _NAME, "--no-cache", "--connections", connections)["seconds"]
    return {"connections": curve["connections"], "predicted": predicted, "measured": seconds}


def _run(folder: Path, link: Link, server: DemoServer, *arguments: str) -> dict[str, object]:
    command = [*link.enter, sys.executable, "-m", "coldstream", *arguments, "--json", "--quiet"]
    ended = subprocess.run(command, env=_environ(server, folder), check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(ended.stdout)
    return found


def _markdown(args: argparse.Namespace, samples: dict[float, list[dict[str, float]]]) -> str:
    command = f"python benchmarks/tune.py --megabytes {args.megabytes} --rounds {args.rounds}"
    machine = f"{os.cpu_count()} shared virtual cores, Linux {platform.release().split('-')[0]}"
    lines = [
        f"`{command}`: {machine}, Python {platform.python_version()}; medians.",
        "",
        "| Link | connections | predicted s | measured s | predicted / measured, each |",
        "|---|---:|---:|---:|---|",
    ]
    for speed, rounds in samples.items():
        each = ", ".join(f"{sample['predicted'] / sample['measured']:.2f}" for sample in rounds)
        middle = {name: statistics.median(sample[name] for sample in rounds) for name in rounds[0]}
        lines.append(
            f"| {speed:g} Gbit/s | {middle['connections']:.0f} | {middle['predicted']:.1f} "
            f"| {middle['measured']:.1f} | {each} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
