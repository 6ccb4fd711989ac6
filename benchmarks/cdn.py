"""Segments and the CDN: what a delta upload sends, and loads through a caching proxy that keeps what Cloudflare would.

    python benchmarks/cdn.py [--mib 480] [--segment-mib 48] [--rounds 3] [--folder DIR]

The bucket is moto's server on loopback, the CDN is nginx before it with Cloudflare's size limit (tests/servers/cdn.py),
both on this machine: the figures say that it works, what is sent and what comes from where, and not how fast a CDN is.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conftest import fresh_bucket
from tests.servers.cdn import cdn_proxy
from tests.servers.stores import moto_server

from coldstream import __version__
from coldstream.operate.demo_bucket import make_model

MIB = 1 << 20


def main() -> None:
    """Runs it all and prints a JSON document; writes benchmarks/out/cdn.json."""
    options = argparse.ArgumentParser()
    options.add_argument("--mib", type=int, default=480)
    options.add_argument("--segment-mib", type=int, default=48)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--folder", type=Path, default=None)
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="coldstream-bench-", dir=args.folder) as temporary:
        found = run(Path(temporary), args.mib, args.segment_mib, args.rounds)
    found["machine"] = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    found["coldstream"] = __version__
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "cdn.json").write_text(json.dumps(found, indent=2))
    print(json.dumps(found, indent=2))


def run(folder: Path, mib: int, segment_mib: int, rounds: int) -> dict[str, Any]:
    """The uploads, then the loads."""
    model = make_model(folder / "model", shards=2, shard_bytes=mib * MIB // 2)
    with moto_server() as moto:
        bucket = fresh_bucket(moto)
        environ = {**os.environ, **moto.environ(bucket), "COLDSTREAM_CACHE_DIR": str(folder / "cache")}
        limit = ("--object-bytes-max", f"{segment_mib}MiB", "--no-plain")
        found: dict[str, Any] = {"model_bytes": sum(path.stat().st_size for path in model.iterdir())}
        found["first_upload"] = _sent(environ, "upload", str(model), "--as", "org/cut", *limit)
        _change_one_tensor(model / "model-00002-of-00002.safetensors")
        found["delta_upload"] = _sent(environ, "upload", str(model), "--as", "org/cut", *limit)
        _coldstream(environ, "upload", str(model), "--as", "org/plain")
        with cdn_proxy(moto, bucket, limit_bytes=(segment_mib + 1) * MIB) as cdn:
            environ["R2_CDN_DOMAIN"] = cdn.url
            found["check_plain"] = _states(environ, "org/plain")
            found["warm"] = _coldstream(environ, "cdn", "warm", "org/cut", "--plan", "free")
            found["check_segments"] = _states(environ, "org/cut")
            found["loads"] = _loads(environ, rounds)
            cdn.stop_after(20)
            found["dies"] = _of(_coldstream(environ, "load", "org/cut", "--no-cache"))
            found["dead"] = _of(_coldstream(environ, "load", "org/cut", "--no-cache"))
    return found


def _loads(environ: dict[str, str], rounds: int) -> dict[str, Any]:
    ways = {"cdn": ("org/cut",), "bucket": ("org/cut", "--via", "s3"), "plain": ("org/plain", "--via", "s3")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    last: dict[str, Any] = {}
    for number in range(rounds + 1):
        for name, arguments in ways.items():
            report = _coldstream(environ, "load", *arguments, "--no-cache")
            last[name] = _of(report)
            if number:  # the first round is a warm-up
                seconds[name].append(report["seconds"])
    return {
        name: {"median": statistics.median(taken), "min": min(taken), "max": max(taken), **last[name]}
        for name, taken in seconds.items()
    }


def _of(report: dict[str, Any]) -> dict[str, Any]:
    cdn = report["cdn"] or {}
    names = ("statuses", "bytes", "bucket_bytes", "fallbacks", "gave_up", "summary")
    return {"seconds": report["seconds"], "cdn": {name: cdn.get(name) for name in names} if cdn else None}


def _sent(environ: dict[str, str], *arguments: str) -> dict[str, Any]:
    report = _coldstream(environ, *arguments)
    return {
        name: report[name]
        for name in ("bytes", "sent_bytes", "sent_segments", "kept_segments", "swept_segments", "seconds")
    }


def _states(environ: dict[str, str], name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in _coldstream(environ, "cdn", "check", name, may_fail=True)["objects"]:
        found[row["state"]] = found.get(row["state"], 0) + 1
    return found


def _change_one_tensor(path: Path) -> None:
    """The last one: the norm, which is small."""
    with path.open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(bytes(16))


def _coldstream(environ: dict[str, str], *arguments: str, may_fail: bool = False) -> Any:
    command = [sys.executable, "-m", "coldstream", *arguments, "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise SystemExit(f"{arguments}: {done.stderr}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
