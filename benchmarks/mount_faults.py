"""What a reader of a bucket mounted with rclone sees when something fails: the table in docs/comparison.md.

    apt-get install fuse3
    .venv/bin/python benchmarks/mount_faults.py > table.md

A file of 32 MiB is mapped and read from its start to its end, as safetensors maps a shard, from a server on loopback
that sends 40 MB/s and fails in one way at a time. Each row is a mount of its own; a reader has `--seconds`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src")]

from tests.servers.ranged import RangedServer  # noqa: E402

from coldstream.operate.bench.contestant import MOUNT  # noqa: E402
from coldstream.operate.bench.programs.mount import mount_environment, unmount  # noqa: E402
from coldstream.operate.demo_bucket import find_rclone  # noqa: E402

_NAME, _BYTES = "model.safetensors", 32 << 20
_BYTES_PER_SECOND = 40e6
_PATH = f"/bench/m/{_NAME}"
# Reads page by page, and waits after a quarter, before rclone has read ahead to the end, until its input ends.
_READER = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    quarter = len(content) // 4
    digest = hashlib.sha256(content[:quarter])
    print("waiting", flush=True)
    sys.stdin.read()
    digest.update(content[quarter:])
print("right" if digest.hexdigest() == sys.argv[2] else "other", flush=True)
"""
Fault = Callable[[RangedServer], None]


def before(kind: str, **options: object) -> tuple[Fault, Fault]:
    """A fault of the requests for the file, from the first one on; nothing happens while it is read."""
    return lambda server: server.add(kind, f"GET {_PATH}", **options), lambda _: None  # type: ignore[arg-type]


def later(fault: Fault) -> tuple[Fault, Fault]:
    """What happens to the server when a quarter of the file has been read."""
    return lambda _: None, fault


def _replace(server: RangedServer) -> None:
    server.put(_PATH, random.Random(2).randbytes(_BYTES))
    server.put("/bench", listing(server))


def _damage(server: RangedServer) -> None:
    content = bytearray(server.files[_PATH])
    content[1_000_000] ^= 1
    server.files[_PATH] = bytes(content)


def _remove(server: RangedServer) -> None:
    del server.files[_PATH]


def _refuse(server: RangedServer) -> None:
    server.add("status", f"GET {_PATH}", status=503, code="SlowDown", times=None)
    server.hang_up()


FAULTS: Mapping[str, tuple[Fault, Fault]] = {
    "the connection is cut once, after 1 MB": before("cut", at=1_000_000),
    "every connection is cut after 1 MB": before("cut", at=1_000_000, times=None),
    "503 to the first three requests": before("status", status=503, code="SlowDown", times=3),
    "503 to every request, after a quarter": later(_refuse),
    "one answer stalls after 1 MB": before("stall", at=1_000_000),
    "one bit of the stored object is wrong": (_damage, lambda _: None),
    "the object is replaced after a quarter": later(_replace),
    "the object is removed after a quarter": later(_remove),
}


def listing(server: RangedServer) -> bytes:
    """The answer to ListObjectsV2."""
    size, etag = len(server.files[_PATH]), server.etags[_PATH]
    entry = f"<Key>m/{_NAME}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>&quot;{etag}&quot;</ETag>"
    contents = f"<Contents>{entry}<Size>{size}</Size></Contents>"
    return f"<ListBucketResult><Name>bench</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>".encode()


def server_of(content: bytes) -> RangedServer:
    """A bucket with one object."""
    return RangedServer({_PATH: content}, bytes_per_second=_BYTES_PER_SECOND)


def outcome(fault: tuple[Fault, Fault], mode: str, seconds: float) -> str:
    """What the reader of a new mount sees."""
    import hashlib

    content = random.Random(1).randbytes(_BYTES)
    with tempfile.TemporaryDirectory(prefix="coldstream-mount-") as temporary, server_of(content) as server:
        server.put("/bench", listing(server))
        fault[0](server)
        folder, cache = Path(temporary, "mount"), Path(temporary, "cache")
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
        environ = mount_environment({**os.environ, **keys, "AWS_ENDPOINT_URL": server.url}, cache=cache, mode=mode)
        reader = [sys.executable, "-c", _READER, str(folder / _NAME), hashlib.sha256(content).hexdigest()]
        command = [sys.executable, str(MOUNT), str(find_rclone()), "bucket:bench/m/", str(folder), *reader]
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, give_up)
        timer.start()
        try:
            if process.stdout.readline():
                fault[1](server)
                process.stdin.close()
            last = process.stdout.readline().strip()
            process.wait()
        finally:
            timer.cancel()
            unmount(folder)
        took = f"{time.monotonic() - began:.1f} s"
        if late.is_set():
            return f"still waiting after {seconds:.0f} s"
        if not last:
            return f"SIGBUS after {took}"
        return f"{'right' if last == 'right' else '**wrong**'} bytes after {took}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    args = parser.parse_args()
    print("| What happens | `--vfs-cache-mode off` | `full` |\n|---|---|---|", flush=True)
    for name, fault in FAULTS.items():
        if args.only in name:
            print(
                f"| {name} | {' | '.join(outcome(fault, mode, args.seconds) for mode in ('off', 'full'))} |", flush=True
            )


if __name__ == "__main__":
    main()
