"""`coldstream bench` on a model of random weights in `rclone serve s3`: the figures and the chart of docs/bench.md.

    make test                                                    vLLM's environment, which has the other loaders
    .venv/bin/python benchmarks/loaders.py --gib 4 --png docs/bench.png > table.txt
    .venv/bin/python benchmarks/loaders.py --gib 4 --gigabits 2  behind a capped link: iproute2 and root

The bucket is on the same machine and takes its share of the cores, from all loaders alike.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from coldstream.operate.demo_bucket import DemoServer, make_model, s3_server  # noqa: E402
from streaming.bucket import capped_bucket, keys_of  # noqa: E402

_NAME = "bench/random"
_COLDSTREAM = (sys.executable, "-m", "coldstream")


def main() -> None:
    """Uploads a model and compares the loaders; prints what `coldstream bench` prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=int, default=4, help="of the model, a shard of each")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gigabits", type=float, help="cap the link at so many each second")
    parser.add_argument("--with", dest="more", default="boto3,obstore", help="further loaders")
    parser.add_argument("--python", type=Path, default=_ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--folder", type=Path, help="where some three times the model find room")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="coldstream-bench-", dir=args.folder) as temporary:
        folder = Path(temporary)
        with s3_server(folder / "bucket") as server:
            model = make_model(folder / "model", shards=args.gib, shard_bytes=1 << 30)
            upload = (*_COLDSTREAM, "upload", str(model), "--as", _NAME, "--quiet")
            subprocess.run(upload, env=_environ(server, folder), check=True, stdout=subprocess.DEVNULL)
        for path in model.iterdir():
            path.unlink()
        with _bucket(folder / "bucket", args.gigabits) as (enter, server):
            options = ["--runs", str(args.runs), "--python", str(args.python), "--no-drop-caches"]
            options += ["--with", args.more] if args.more else []
            options += ["--png", str(args.png)] if args.png else []
            command = (*enter, *_COLDSTREAM, "bench", _NAME, *options)
            raise SystemExit(subprocess.run(command, env=_environ(server, folder), check=False).returncode)


@contextmanager
def _bucket(folder: Path, gigabits: float | None) -> Iterator[tuple[list[str], DemoServer]]:
    """The bucket, and what goes before a command that is to reach it."""
    if gigabits is None:
        with s3_server(folder) as server:
            yield [], server
        return
    with capped_bucket(folder, gigabits * 1e9) as (link, server):
        yield list(link.enter), server


def _environ(server: DemoServer, folder: Path) -> dict[str, str]:
    return {**os.environ, **keys_of(server), "COLDSTREAM_CACHE_DIR": str(folder / "cache"), "NO_COLOR": "1"}


if __name__ == "__main__":
    main()
