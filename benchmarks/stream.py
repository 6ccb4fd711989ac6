"""Streaming a model into memory: coldstream, the loaders that people use, and a bare C loop.

    apt-get install nginx openssl gcc libssl-dev iproute2        the servers, the C floor, the capped link
    python benchmarks/stream.py --setup                          the other loaders, into .venv-bench
    python benchmarks/stream.py --markdown > section.md          everything; all samples go to --out
    python benchmarks/stream.py --only http,tls --rounds 3
    python benchmarks/stream.py --only http --rows coldstream,floor --gib 1

Rows: coldstream; runai-model-streamer with its default and its best number of clients (searched among 1, 4, 8, 16 and
32, by CPU and by wall); obstore, boto3, s3fs, huggingface_hub + safetensors; a bare C loop (c_floor.c) as the floor.
Each is a process of its own, measured from spawn to exit with all that it starts, by the runner of `coldstream bench`.
Rounds are interleaved and ratios are taken round by round. The server's CPU time counts for none of them.

Scenarios (`--only`): http, tls, processors (TLS with fewer instructions), link (5 Gbit/s token bucket in a network
namespace; needs root), r2 (such links to a bucket with late first bytes and slow connections), connections (16 of
30 MB/s), faults (1 % slow, 5 % 503, 3 % reset), first (tensor), small (91 MB), memory, warm (cache), tiny (60,000
tensors), leave.
Link and connections also have `rclone mount`, which needs FUSE.

It needs about 12 GiB of memory for 4 GiB models, two idle cores, and Linux. The set-up's virtual environment needs
torch, which runai-model-streamer and safetensors' loader import (any 2.x; 2.13.0 is what we measure with). Ctrl-C ends
every process and removes the namespaces.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import typing_extensions

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from tests.servers.nginx import find as find_nginx  # noqa: E402
from tests.servers.nginx import version as nginx_version  # noqa: E402

from coldstream.operate.bench.comparing import describe_machine  # noqa: E402
from coldstream.operate.bench.contestant import probe_interpreters  # noqa: E402
from streaming.contestants import Contestants, compile_floor  # noqa: E402
from streaming.report import markdown  # noqa: E402
from streaming.scenarios import FAR_LINKS, SCENARIOS, Bench, say  # noqa: E402

_VENV = _ROOT / ".venv-bench"
_PACKAGES = (
    "torch==2.13.0",
    "runai-model-streamer[s3]==0.17.*",
    "obstore",
    "s3fs",
    "boto3",
    "huggingface_hub",
    "safetensors",
    "numpy",
)
_SHOWN = ("runai-model-streamer", "torch", "obstore", "boto3", "s3fs", "huggingface_hub", "safetensors")


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make the other loaders' virtual environment, and stop")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, separated by commas")
    parser.add_argument("--rows", default="", help="rows whose names contain one of these")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--far-links", type=int, default=len(FAR_LINKS), help="only the first of the links of r2")
    parser.add_argument("--search-rounds", type=int, default=2, help="rounds that search Run:ai's best")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="a tmpfs for models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out/stream.json", help="all samples")
    parser.add_argument("--markdown", action="store_true", help="print the section for docs/benchmarks.md")
    parser.add_argument("--from-json", type=Path, help="print the section from an earlier run's file, and stop")
    args = parser.parse_args()
    if args.setup:
        setup()
        return
    if args.from_json:
        print(markdown(json.loads(args.from_json.read_text())), end="")
        return
    names = [name for name in args.only.split(",") if name]
    if unknown := set(names) - set(SCENARIOS):
        raise SystemExit(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    if find_nginx() is None:
        raise SystemExit("nginx is not installed (apt-get install nginx)")
    if not (_VENV / "bin/python").exists():
        raise SystemExit(f"the other loaders are missing; run: {Path(sys.argv[0])} --setup")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    compile_bytecode()
    results = run(args, names)
    text = markdown(results)
    if args.markdown:
        print(text, end="")
    else:
        print("\n".join(line for line in text.splitlines() if line.startswith("|")))


def compile_bytecode() -> None:
    """Compiles what coldstream imports, as pip does for an installed package, instead of at each start."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    names = ("click", "msgspec", "urllib3", "xxhash")
    places = [str(Path(importlib.import_module(name).__file__ or "").parent) for name in names]
    command = [sys.executable, "-m", "compileall", "-q", str(_ROOT / "src"), *places, typing_extensions.__file__]
    subprocess.run(command, check=True)


def setup() -> None:
    """Makes the virtual environment with the other loaders."""
    subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
    pip = [str(_VENV / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *_PACKAGES], check=True)


def run(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Runs scenarios and gives everything that the report needs, as JSON has it."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coldstream-bench-", dir=args.folder)))
        tools = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coldstream-bench-")))
        (root / "scratch").mkdir()
        bench = Bench(
            root=root,
            contestants=Contestants(python=_VENV / "bin/python", floor=compile_floor(tools), scratch=root / "scratch"),
            gib=args.gib,
            rounds=args.rounds,
            far_links=args.far_links,
            search_rounds=args.search_rounds,
            only_rows=[row.strip().lower() for row in args.rows.split(",") if row.strip()],
        )
        results = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": describe_machine(),
            "versions": _versions(),
            "rounds": args.rounds,
            "bytes": bench.llama().size,
            "scenarios": found,
        }
        for name in names:
            say(f"scenario {name}")
            found[name] = SCENARIOS[name](bench)
            # After each: an hour's figures are not lost to a Ctrl-C in the last scenario.
            args.out.write_text(json.dumps(results, indent=1))
    return results


def _versions() -> dict[str, str]:
    (packages,) = probe_interpreters([str(_VENV / "bin/python")]).values()
    openssl = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout.split()[1]
    own = {"Python": platform.python_version(), "nginx": nginx_version(), "OpenSSL of the C floor": openssl}
    return {**own, **{name: packages[name.replace("_", "-")] for name in _SHOWN}}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Also where a shell has started it in the background, with SIGINT ignored.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
