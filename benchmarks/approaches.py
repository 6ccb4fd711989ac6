"""Ways to get a model from a bucket into memory over one capped link: the measured rows of docs/comparison.md.

    apt-get install iproute2 fuse3                               the capped link and the mount; needs root
    make .venv-vllm/tests.done                                   the environment with the other loaders
    .venv/bin/python benchmarks/approaches.py --markdown > section.md

The bucket is `rclone serve s3` in a network namespace, behind a token bucket. Every row reads all tensors of the same
Llama-like model into host memory, in a fresh process. The objects lie on tmpfs, so that the server reads no disk.
Time and CPU count from the call of the loader to the last tensor; starting Python and importing torch do not count.
What rclone spends in its own process counts; the 0.1 s until a mount is ready do not.
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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from coldstream.operate.bench.contestant import CHUNK_BYTES, MOUNT  # noqa: E402
from coldstream.operate.bench.programs.mount import mount_environment, unmount  # noqa: E402
from coldstream.operate.bench.runner import run  # noqa: E402
from coldstream.operate.demo_bucket import BUCKET, DemoServer, find_rclone, s3_server  # noqa: E402
from streaming.bucket import capped_bucket, keys_of  # noqa: E402
from streaming.contestants import reader_program  # noqa: E402
from streaming.link import Link  # noqa: E402
from streaming.model import Model, llama_tensors, make_model  # noqa: E402

_NAME = "bench/random"
_GIB = 1 << 30
_SECONDS_MAX = 600.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One load: seconds of wall and CPU time, and the peak memory of the reader and of a mount's process."""

    seconds: float
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all rows share: the model, the link to it, and the folder for copies."""

    folder: Path
    model: Model
    link: Link
    server: DemoServer
    python: Path

    def environ(self, **options: object) -> dict[str, str]:
        """The environment of a reader, with its options."""
        server = self.server
        keys = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS": "60000",
            "RUNAI_STREAMER_LOG_LEVEL": "ERROR",
        }
        request = {
            "files": self.model.files,
            "bucket": BUCKET,
            "key": _NAME,
            "url": server.endpoint,
            "chunk_bytes": CHUNK_BYTES,
            "verify": False,
            **options,
        }
        own = {"COLDSTREAM_CACHE_DIR": str(self.folder / "cache"), "BENCH_OPTIONS": json.dumps(request)}
        return {**os.environ, **keys_of(server), **keys, **own}

    def read(self, reader: str, *, python: Path | None = None, is_linked: bool = True, **options: object) -> Sample:
        """Runs a reader once; `is_linked` puts it behind the link."""
        command = [str(python or self.python), str(reader_program(reader)), reader]
        prefix = self.link.enter if is_linked else ()
        done = run(command, self.environ(**options), prefix=prefix, pss=False, timeout_seconds=_SECONDS_MAX)
        return Sample(seconds=done.seconds, cpu_seconds=done.cpu_seconds, memory_bytes=done.memory_bytes)


def stream(setup: Setup) -> Sample:
    """coldstream, straight from the bucket, without its local copy."""
    return setup.read(
        "coldstream",
        python=Path(sys.executable),
        uri=f"s3://{BUCKET}/{_NAME}",
        mode="drain",
        stream={"framework": "buffer", "cache": False},
    )


def runai(setup: Setup) -> Sample:
    """Run:ai Model Streamer as it comes."""
    return setup.read("runai")


def download(setup: Setup) -> Sample:
    """A download to the disk, then safetensors."""
    into = setup.folder / f"downloaded-{time.time_ns()}"
    command = [sys.executable, "-m", "coldstream", "download", _NAME, str(into), "--quiet"]
    return setup.read("download", folder=str(into), download=["env", f"PYTHONPATH={_ROOT / 'src'}", *command])


def local(setup: Setup) -> Sample:
    """Weights that are already on the disk, as in an image that has been pulled."""
    for name, _ in setup.model.files:
        _drop(setup.model.folder / name)
    return setup.read("mapped", is_linked=False, folder=str(setup.model.folder), reuse=False)


def mount(mode: str, *, whole: bool = False) -> Callable[[Setup], Sample]:
    """A bucket mounted by rclone, then safetensors from the mount; `whole` reads files at once instead of mapping."""

    def measure(setup: Setup) -> Sample:
        folder, cache = setup.folder / "mount", setup.folder / "mount-cache"
        reader = [str(setup.python), str(reader_program("mapped")), "mapped"]
        command = [sys.executable, str(MOUNT), str(find_rclone()), f"bucket:{BUCKET}/{_NAME}", str(folder), *reader]
        options = setup.environ(folder=str(folder), reuse=False, whole=whole)
        try:
            done = run(
                command,
                mount_environment(options, cache=cache, mode=mode),
                prefix=setup.link.enter,
                timeout_seconds=_SECONDS_MAX,
            )
        finally:
            unmount(folder)
            shutil.rmtree(cache, ignore_errors=True)
        return Sample(seconds=done.seconds, cpu_seconds=done.cpu_seconds, memory_bytes=done.memory_bytes)

    return measure


def _drop(path: Path) -> None:
    """Takes a file out of the page cache, so that the next read is a read of the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


_ROWS: Mapping[str, Callable[[Setup], Sample]] = {
    "coldstream, streamed": stream,
    "Run:ai's streamer, default": runai,
    "downloaded first, then read": download,
    "mounted with rclone, default": mount("off"),
    "mounted with rclone, default, files read whole": mount("off", whole=True),
    "mounted with rclone, cache on the disk": mount("full"),
    "on the disk already, as in an image": local,
}


def main() -> None:
    """Runs the rounds and prints a table; writes benchmarks/out/approaches.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=int, default=2, help="size of the model; each shard has 1 GiB")
    parser.add_argument("--gigabits", type=float, default=2.0, help="of the link, in each second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", action="append", choices=_ROWS, default=[], help="leave a row out; may be repeated")
    parser.add_argument("--python", type=Path, default=_ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--bucket-folder", type=Path, default=Path("/dev/shm"), help="where the server has its objects")
    parser.add_argument("--markdown", action="store_true", help="print the section for docs/comparison.md")
    args = parser.parse_args()
    samples: dict[str, list[Sample]] = {row: [] for row in _ROWS if row not in args.skip}
    with (
        tempfile.TemporaryDirectory(prefix="coldstream-approaches-") as on_disk,
        tempfile.TemporaryDirectory(prefix="coldstream-approaches-", dir=args.bucket_folder) as in_memory,
    ):
        folder, bucket = Path(on_disk), Path(in_memory)
        model = make_model(folder, "model", llama_tensors(args.gib * _GIB), shards=args.gib, manifest=False)
        upload = [sys.executable, "-m", "coldstream", "upload", str(model.folder), "--as", _NAME, "--quiet"]
        with s3_server(bucket) as server:
            subprocess.run(upload, env=os.environ | keys_of(server), check=True, stdout=subprocess.DEVNULL)
        with capped_bucket(bucket, args.gigabits * 1e9) as (link, server):
            setup = Setup(folder=folder, model=model, link=link, server=server, python=args.python)
            for number in range(args.rounds):
                for row, every in samples.items():
                    every.append(_ROWS[row](setup))
                    print(f"  round {number + 1}  {row:<38} {every[-1].seconds:6.1f} s", file=sys.stderr)
        floor = model.size / link.payload_bytes_per_second
    out = _ROOT / "benchmarks/out"
    out.mkdir(exist_ok=True)
    record = {row: [vars(sample) for sample in every] for row, every in samples.items()}
    (out / "approaches.json").write_text(
        json.dumps({"arguments": vars(args), "samples": record}, indent=2, default=str)
    )
    print(_markdown(args, samples, floor) if args.markdown else json.dumps(record, indent=2))


def _markdown(args: argparse.Namespace, samples: Mapping[str, Sequence[Sample]], floor: float) -> str:
    def cell(values: Sequence[float], form: str) -> str:
        low, middle, high = (format(value, form) for value in (min(values), statistics.median(values), max(values)))
        return f"{middle} ({low} to {high})"

    def version(command: Sequence[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]

    def package(name: str) -> str:
        return version([str(args.python), "-c", f"import importlib.metadata as m; print(m.version({name!r}))"])

    rclone = subprocess.run([str(find_rclone()), "version"], capture_output=True, text=True, check=True).stdout.split()[
        1
    ]
    fuse = version(["fusermount3", "--version"])
    command = f"python benchmarks/approaches.py --gib {args.gib} --gigabits {args.gigabits:g} --rounds {args.rounds}"
    machine = f"{os.cpu_count()} shared virtual cores, Linux {platform.release().split('-')[0]}"
    versions = ", ".join(
        [
            f"Python {platform.python_version()}",
            f"rclone {rclone.removeprefix('v')}",
            f"fuse {fuse}",
            *(f"{name} {package(name)}" for name in ("runai-model-streamer", "safetensors", "torch")),
        ]
    )
    lines = [
        f"`{command}`, {machine}, {versions}. The link alone takes {floor:.1f} s.",
        "",
        "| Row | seconds | CPU-s/GiB | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    for row, every in samples.items():
        seconds = cell([sample.seconds for sample in every], ".1f")
        cpu = cell([sample.cpu_seconds / args.gib for sample in every], ".2f")
        memory = cell([sample.memory_bytes / (1 << 20) for sample in every], ".0f")
        lines.append(f"| {row} | {seconds} | {cpu} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
