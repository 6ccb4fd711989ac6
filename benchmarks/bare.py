"""From an empty machine to the first token: coldstream's runtime, an install from an index, and a container image.

    apt-get install nginx iproute2 squashfs-tools squashfuse podman     the servers, the capped link, the rows
    .venv/bin/python benchmarks/bare.py > section.md                    needs root, uv and 12 GB of disk
    .venv/bin/python benchmarks/bare.py --only runtime,formats --rounds 1

A node is a network namespace behind a link of 5 Gbit/s, with an empty disk folder, empty memory (`/dev/shm`), a cold
page cache, the system's Python, and nothing else: uv's rows get the program uv, the image's row podman. nginx, on the
other side of the link, serves the bucket, a static index of wheels with their metadata, and a static registry, all with
the same packages and from its page cache (bare_sources.py makes them). Scenarios (`--only`):

    token     from the first instruction on the node to the first token of vLLM (CPU build, eager)
    runtime   the runtime only: until coldstream is executed, with the memory of the bootstrap program
    formats   file systems for the image: size, time to make, time until it can be used, first import with cold caches

Rounds are interleaved and ratios are taken round by round. CPU seconds are of all processes on the node.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from tests.servers.nginx import find as find_nginx  # noqa: E402
from tests.servers.nginx import version as nginx_version  # noqa: E402

from bare_node.formats import FORMATS, measure_format  # noqa: E402
from bare_node.machine import ADDRESS, PORT, Node, Watch, disk, new_node, servers, wait_for_first_token  # noqa: E402
from bare_node.report import BITS, INSTALLED, OWN, ROWS, RUNTIME_ROWS, markdown  # noqa: E402
from bare_node.sources import PYTHON, TAG, Sources  # noqa: E402
from streaming.link import capped_link  # noqa: E402

_DISK_BYTES = 125e6
Sample = dict[str, Any]


def say(text: str) -> None:
    """Shows progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Runs the scenarios, writes benchmarks/out/bare.json, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="token,runtime,formats", help="scenarios, separated by commas")
    parser.add_argument("--rows", default="", help="rows, separated by commas")
    parser.add_argument("--megabytes", default="109", help="sizes of the models, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/coldstream-bare"), help="what is served; kept")
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks/out/bare.json", help="all samples")
    parser.add_argument("--from-json", type=Path, help="print the tables of an earlier run, and stop")
    args = parser.parse_args()
    if args.from_json:
        print(markdown(json.loads(args.from_json.read_text())))
        return
    if os.geteuid() or find_nginx() is None or not shutil.which("uv"):
        raise SystemExit("needs root, nginx (apt-get install nginx) and uv")
    sizes, names = [int(size) for size in args.megabytes.split(",")], args.only.split(",")
    bench = Bench(Sources(args.folder, say), sizes)
    rows = [row for row in args.rows.split(",") if row]
    result = {"arguments": {**vars(args), "rows": rows, "sizes": sizes}, "skipped": bench.skipped, **_facts(bench)}
    samples: dict[str, dict[str, list[Sample]]] = {}
    work: list[tuple[str, str, Callable[[], Sample]]] = []
    if "token" in names:
        for size in sizes:
            chosen = [row for row in ROWS if not rows or row in rows]
            work += [(f"token {size}", row, lambda row=row, size=size: bench.token(row, size)) for row in chosen]
    if "runtime" in names:
        chosen = [row for row in RUNTIME_ROWS if not rows or row in rows]
        work += [("runtime", row, lambda row=row: bench.runtime(row)) for row in chosen]
    if "formats" in names:
        work += [
            ("formats", row, lambda row=row: measure_format(bench.sources, row))
            for row in FORMATS
            if not rows or row in rows
        ]
    for number in range(args.rounds):
        for scenario, row, measure in work:
            if row in bench.skipped:
                continue
            sample = measure()
            samples.setdefault(scenario, {}).setdefault(row, []).append(sample)
            say(f"round {number + 1}  {scenario:<10} {row:<16} {json.dumps(sample)}")
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(json.dumps({**result, "samples": samples}, indent=1, default=str))
    print(markdown(json.loads(args.out.read_text())))


def _facts(bench: Bench) -> dict[str, Any]:
    manifest = json.loads((bench.sources.image(bench.digest).parent / "manifest.json").read_text())
    unpacker = bench.sources.image(bench.digest).parent / "unpacker"
    index = bench.sources.folder / "index/simple"
    registry = bench.sources.folder / "registry"
    versions = {"Python": manifest["platform"]["python"], "vLLM": manifest["platform"]["vllm"]}
    for name, command in (
        ("uv", "uv --version"),
        ("podman", "podman --version"),
        ("squashfs-tools", "mksquashfs -version"),
    ):
        if shutil.which(command.split()[0]):
            out = subprocess.run(command.split(), capture_output=True, text=True, check=False).stdout.split()
            versions[name] = next((word for word in out if word[0].isdigit()), "?")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} virtual cores, Linux {platform.release().split('-')[0]}",
        "versions": {**versions, "nginx": nginx_version()},
        "image": {name: manifest["image"][name] for name in ("size", "unpacked", "files")},
        "unpacker_bytes": unpacker.stat().st_size,
        "wheels_bytes": sum(path.stat().st_size for path in index.glob("*/*.whl")) if index.exists() else 0,
        "layers_bytes": sum(path.stat().st_size for path in registry.glob("v2/bare/blobs/*"))
        if registry.exists()
        else 0,
    }


class Bench:
    """The measured starts. What is not installed is in `skipped`, with the reason."""

    def __init__(self, sources: Sources, sizes: Sequence[int]) -> None:
        self.sources = sources
        self.digest = sources.bucket(sizes)
        self.skipped = {}
        if not shutil.which("podman") or not shutil.which("runc"):
            self.skipped["image"] = "podman or runc is not installed"

    def token(self, row: str, megabytes: int) -> Sample:
        """One start until the first token."""
        model = f"bench/llama-{megabytes}"
        flags = f"--host {ADDRESS} --port {PORT} --enforce-eager --max-model-len 256"
        serve = f"serve {model} --bundle off --no-first-token --json -- {flags}"
        if row in OWN:
            served = [self.sources.image(self.digest).parent]
        elif row in INSTALLED:
            served = [self.sources.index() / "simple"]
        else:
            served = [self.sources.registry()]
        served.append(self.sources.folder / "bucket/models" / model)
        root = {"image": "registry", "uv": "index", "uv-compile": "index"}.get(row)
        with (
            new_node(unprivileged=row == "unpack") as node,
            capped_link(BITS) as link,
            servers(self.sources, link, root) as urls,
        ):
            node.environ |= _keys(urls[0]) | {
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            }
            process = node.start(link, self._script(row, node, urls, serve), served)
            watch = Watch(node, process) if row in OWN else None
            with link.server_side():
                seconds = wait_for_first_token(process, node, model)
            cpu = node.cpu_seconds()
            node.stop(process)
            if watch is not None:
                delivered = watch.executed
            else:
                delivered = os.stat(node.folder / "delivered").st_mtime - node.began_time
        return {"seconds": seconds, "delivered": delivered, "cpu": cpu}

    def runtime(self, row: str) -> Sample:
        """One delivery of the runtime, until coldstream is executed."""
        way, _, kind = row.partition(" ")
        with ExitStack() as stack:
            node = stack.enter_context(new_node(unprivileged=way == "unpack"))
            link = stack.enter_context(capped_link(BITS))
            urls = stack.enter_context(servers(self.sources, link, None))
            image = self.sources.image(self.digest)
            node.environ |= _keys(urls[0])
            if way == "unsquashfs":
                served = [shutil.copy(image, node.folder)]
                script = f"exec unsquashfs -q -n -no-xattrs -d /dev/shm/tree {served[0]}"
            else:
                served, script = [image.parent], self._script(way, node, urls, "--version")
            if kind:
                rate = _DISK_BYTES if kind == "slow" else 1e12
                node.environ["COLDSTREAM_RUNTIME_DIR"] = str(stack.enter_context(disk(rate)))
            process = node.start(link, script, served)
            watch = Watch(node, process)
            if process.wait():
                raise SystemExit(f"{row} failed:\n{node.log()}")
            ended = time.time() - node.began_time
            seconds, cpu = watch.executed or ended, watch.cpu if watch.executed else node.cpu_seconds()
        return {"seconds": seconds, "cpu": cpu, "memory": watch.memory}

    def _script(self, row: str, node: Node, urls: Sequence[str], command: str) -> str:
        if row in OWN:
            shutil.copy(_ROOT / "src/coldstream/runtime/bootstrap.py", node.folder / "start.py")
            return f"exec {PYTHON} start.py sha256:{self.digest} {command}"
        if row in INSTALLED:
            shutil.copy(_uv(), node.folder / "uv")
            shutil.copy(self.sources.folder / "index/requirements.txt", node.folder)
            compiles = "--compile-bytecode" if row == "uv-compile" else ""
            install = f"--no-deps --index-url {urls[1]}/simple -r requirements.txt {compiles}"
            return (
                f"./uv venv -q --python {PYTHON} venv && ./uv pip install -q --python venv {install} && touch delivered"
                f" && exec venv/bin/coldstream {command}"
            )
        node.environ |= {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
        names = [name for name in node.environ if name.startswith(("R2_", "VLLM_", "HF_"))]
        runtime = node.folder / "oci-runtime"
        runtime.write_text(_OCI_RUNTIME)
        runtime.chmod(0o755)
        podman = f"podman --root {node.folder}/storage --runroot {node.folder}/run --storage-driver overlay"
        podman += f" --cgroup-manager cgroupfs --runtime {runtime}"
        image = f"{urls[1].removeprefix('http://')}/{TAG}"
        flags = f"--rm --network host --ipc host --cgroup-parent /{node.group.name} "
        flags += " ".join(f"--env {name}" for name in names)
        return (
            f"{podman} pull -q --tls-verify=false {image} && touch delivered"
            f" && exec {podman} run {flags} {image} /runtime/bin/python3 -s /runtime/bin/coldstream {command}"
        )


# Drops the limits that this process may not set, as in a container itself, then runs runc.
_OCI_RUNTIME = f"""#!{PYTHON}
import json, os, sys
arguments = sys.argv[1:]
for flag in ("--bundle", "-b"):
    if flag in arguments and ("create" in arguments or "run" in arguments):
        path = os.path.join(arguments[arguments.index(flag) + 1], "config.json")
        config = json.load(open(path))
        config["process"].pop("rlimits", None)
        json.dump(config, open(path, "w"))
os.execvp("runc", ["runc", *arguments])
"""


def _keys(url: str) -> dict[str, str]:
    return {"R2_ENDPOINT": url, "R2_BUCKET": "models", "R2_ACCESS_KEY": "bench", "R2_SECRET_KEY": "not-checked"}


def _uv() -> str:
    # The program itself, where a version manager has put a script in its place.
    return subprocess.check_output(["uv", "run", "--no-project", "sh", "-c", "echo $UV"], text=True).strip()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
