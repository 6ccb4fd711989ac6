"""From a server's memory to the GPU: coldstream, safetensors, Run:ai, and the copy that limits them all.

    python benchmarks/gpu.py                                on a machine with CUDA; writes benchmarks/out/gpu.json
    python benchmarks/gpu.py --device cpu --gib 0.25        the smoke test: the same without a GPU

Needs torch, numpy, xxhash and this checkout; safetensors and runai_model_streamer[s3] are measured where they can be
imported. Nothing beyond loopback is used. The model lies in anonymous memory (memfd), which the page cache's owners and
the benchmark's own multi-process sendfile server read alike.

Each row is a process of its own, which imports, wakes the device and then measures from the call until all tensors are
on the device and the device is idle. Rounds are interleaved; medians with minimum and maximum. CPU time is that of the
process and its children. In the last round every row's tensors are compared with the file's bytes, on the CPU, after
the clock has stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from streaming.model import GIB, Model, llama_tensors, make_model  # noqa: E402
from streaming.servers import Server, folder_files  # noqa: E402

_SHARDS = 4
_BUCKET = "bench"
_RUNAI_CLIENTS = (None, 1, 16)


def main() -> None:
    """Runs the rounds, or one row in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="as torch names it")
    parser.add_argument("--gib", type=float, default=8.0, help="size of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)), help="of the server")
    parser.add_argument("--rows", default="", help="rows whose names contain one of these, separated by commas")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        request = json.loads(args.row)
        print(json.dumps(_ROWS[request["kind"]](request)))
        return
    results = run(args)
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(results, indent=1))
    show(results)
    if not all(results["right"].values()):
        raise SystemExit("a row gave wrong bytes, or failed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All rounds of all rows that can be had here."""
    with tempfile.TemporaryDirectory(prefix="coldstream-gpu-") as temporary:
        model = _model_in_memory(Path(temporary), args.gib)
        server = Server(folder_files(model.root), workers=args.workers)
        try:
            url = f"http://127.0.0.1:{server.port}"
            wanted = [part.strip() for part in args.rows.split(",") if part.strip()]
            rows = {
                name: {**request, "device": args.device, "folder": str(model.folder), "url": url, "files": model.files}
                for name, request in _requests(f"{url}/{model.path}", model)
                if not wanted or any(part in name for part in wanted)
            }
            samples: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
            right: dict[str, bool] = {}
            for number in range(args.rounds):
                names = list(rows)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    result = _run_row(name, {**rows[name], "verify": number == args.rounds - 1})
                    right[name] = bool(result and result.get("right", True))
                    if result:
                        samples[name].append(result)
        finally:
            server.close()
    return {
        "machine": _machine(args.device),
        "bytes": model.size,
        "tensors": model.tensors,
        "rounds": args.rounds,
        "samples": samples,
        "right": right,
    }


def show(results: dict[str, Any]) -> None:
    """A Markdown table, then the two ratios that matter."""
    size = results["bytes"]
    print(f"{results['machine']}")
    print(
        f"{size / GIB:.2f} GiB, {results['tensors']} tensors, {_SHARDS} shards; medians of {results['rounds']} rounds\n"
    )
    print("| Row | GiB/s | s | CPU-s/GiB | first tensor, ms | bytes |")
    print("|---|---|---|---|---|---|")
    speeds: dict[str, float] = {}
    for name, runs in results["samples"].items():
        if not runs:
            print(f"| {name} | failed | | | | |")
            continue
        seconds = [run["seconds"] for run in runs]
        speeds[name] = run_speed = statistics.median(run["bytes"] / run["seconds"] / GIB for run in runs)
        cpu = statistics.median(run["cpu_seconds"] / run["bytes"] * GIB for run in runs)
        first = statistics.median(run.get("first_seconds", 0.0) for run in runs) * 1000
        spread = f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
        state = "right" if results["right"][name] else "WRONG"
        print(f"| {name} | {run_speed:.2f} | {spread} | {cpu:.2f} | {first:.0f} | {state} |")
    limit = speeds.get("pinned copy")
    local, served = speeds.get("coldstream, local"), speeds.get("coldstream, server")
    rival = max((speed for name, speed in speeds.items() if name.startswith("Run:ai, server")), default=None)
    print()
    if limit and local:
        print(f"coldstream from local memory: {local / limit:.0%} of the pinned copy (goal 90 %)")
    if rival and served:
        print(f"coldstream from the server: {served / rival:.1f} x Run:ai's best (goal 2)")


def _model_in_memory(folder: Path, gib: float) -> Model:
    """A model whose shards are memfds; the folder has links to them, which any process of this user can open."""
    (folder / _BUCKET / "llama").mkdir(parents=True)
    for number in range(1, _SHARDS + 1):
        name = f"model-{number:05d}-of-{_SHARDS:05d}.safetensors"
        descriptor = os.memfd_create(name)
        (folder / _BUCKET / "llama" / name).symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
    # Without a manifest: its format wants msgspec, which this benchmark does not ask for.
    tensors = llama_tensors(int(gib * GIB))
    return make_model(folder, f"{_BUCKET}/llama", tensors, shards=_SHARDS, manifest=False)


def _requests(url: str, model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "pinned copy", {"kind": "pinned", "bytes": model.size}
    yield "coldstream, server", {"kind": "coldstream", "uri": url}
    yield "coldstream, local", {"kind": "coldstream", "uri": model.folder.as_uri()}
    if importlib.util.find_spec("safetensors"):
        yield "safetensors load_file, local", {"kind": "safetensors"}
    if importlib.util.find_spec("runai_model_streamer"):
        for clients in _RUNAI_CLIENTS:
            label = "default" if clients is None else f"{clients} client{'s' if clients > 1 else ''}"
            prefix = f"s3://{model.path}"
            yield f"Run:ai, server, {label}", {"kind": "runai", "prefix": prefix, "clients": clients}
        yield "Run:ai, local, default", {"kind": "runai", "prefix": str(model.folder), "clients": None}


def _run_row(name: str, request: dict[str, Any]) -> dict[str, float] | None:
    """One row in a process of its own; None, and a word on standard error, where it failed."""
    steering = ("AWS_", "RUNAI_", "COLDSTREAM_", "R2_")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    environ |= {
        "AWS_ENDPOINT_URL": request["url"],
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "benchmark-key",
        "AWS_SECRET_ACCESS_KEY": "benchmark-secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_S3_TIMEOUT": "60000",
        "RUNAI_STREAMER_LOG_LEVEL": "ERROR",
    }
    if request.get("clients"):
        environ["RUNAI_STREAMER_CONCURRENCY"] = str(request["clients"])
    command = [sys.executable, str(Path(__file__).resolve()), "--row", json.dumps(request)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        print(f"  {name}: exit {done.returncode}: {done.stderr.strip()[-600:]}", file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {name:<30} {found['bytes'] / found['seconds'] / GIB:6.2f} GiB/s", file=sys.stderr, flush=True)
    return found


def _timed(request: dict[str, Any], load: Callable[[Callable[[], None]], dict[str, Any] | None]) -> dict[str, Any]:
    """Times `load`, which gives the tensors by name and calls its argument at the first one.

    The device is awake before the clock starts and idle when it stops.
    """
    import torch

    device = torch.device(request["device"])
    torch.zeros(1, device=device)
    first: list[float] = []
    before = _cpu_seconds()
    _synchronize(device)
    began = time.perf_counter()
    tensors = load(lambda: first.append(time.perf_counter() - began) if not first else None)
    _synchronize(device)
    result: dict[str, Any] = {"seconds": time.perf_counter() - began, "cpu_seconds": _cpu_seconds() - before}
    if tensors is None:
        return {**result, "bytes": request["bytes"]}
    result |= {"bytes": sum(tensor.nbytes for tensor in tensors.values()), "first_seconds": first[0] if first else 0.0}
    if request.get("verify"):
        result["right"] = _compare(request, tensors)
    return result


def _compare(request: dict[str, Any], tensors: dict[str, Any]) -> bool:
    """Whether the tensors are those of the files, on the right device, byte for byte."""
    import torch

    from coldstream.model.header import header_stop, parse_header

    count = 0
    for name, size in request["files"]:
        content = (Path(request["folder"]) / name).read_bytes()
        head = memoryview(content)[: header_stop(memoryview(content)[:8], file_bytes=size, path=name)]
        for entry in parse_header(head, file_bytes=size, path=name).tensors:
            tensor = tensors[entry.name]
            there = memoryview(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
            on_device = tensor.device.type == torch.device(request["device"]).type
            if not on_device or tuple(tensor.shape) != entry.shape or there != content[entry.start : entry.stop]:
                return False
            count += 1
    return count == len(tensors)


def _pinned(request: dict[str, Any]) -> dict[str, Any]:
    """Copies from one pinned buffer to as many places on the device as the model has bytes."""
    import torch

    device = torch.device(request["device"])
    piece = min(256 << 20, request["bytes"])
    source = torch.zeros(piece, dtype=torch.uint8, pin_memory=device.type == "cuda")
    # Touched beforehand: what a GPU's allocator takes is none of the copy's time.
    into = torch.zeros(request["bytes"], dtype=torch.uint8, device=device)

    def load(_first: Callable[[], None]) -> None:
        for start in range(0, request["bytes"], piece):
            stop = min(start + piece, request["bytes"])
            into[start:stop].copy_(source[: stop - start], non_blocking=True)

    return _timed(request, load)


def _coldstream(request: dict[str, Any]) -> dict[str, Any]:
    import coldstream

    def load(first: Callable[[], None]) -> dict[str, Any]:
        tensors = {}
        options = {} if request["device"] != "cpu" else {"keep_all": True}
        with coldstream.stream(request["uri"], device=request["device"], cache=False, **options) as loading:
            for name, tensor in loading:
                first()
                tensors[name] = tensor
        return tensors

    return _timed(request, load)


def _safetensors(request: dict[str, Any]) -> dict[str, Any]:
    from safetensors.torch import load_file

    def load(first: Callable[[], None]) -> dict[str, Any]:
        tensors: dict[str, Any] = {}
        for name, _ in request["files"]:
            found = load_file(os.path.join(request["folder"], name), device=request["device"])
            # On the CPU load_file only maps the file; a copy makes it comparable.
            tensors |= {key: value.clone() for key, value in found.items()} if request["device"] == "cpu" else found
            first()
        return tensors

    return _timed(request, load)


def _runai(request: dict[str, Any]) -> dict[str, Any]:
    from runai_model_streamer import SafetensorsStreamer

    def load(first: Callable[[], None]) -> dict[str, Any]:
        tensors = {}
        paths = [f"{request['prefix']}/{name}" for name, _ in request["files"]]
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(paths, device=request["device"])
            for name, tensor in streamer.get_tensors():
                first()
                tensors[name] = tensor.to(request["device"])
        return tensors

    return _timed(request, load)


_ROWS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "pinned": _pinned,
    "coldstream": _coldstream,
    "safetensors": _safetensors,
    "runai": _runai,
}


def _synchronize(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _machine(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"
    return f"{name}, {os.cpu_count()} cores, Linux {platform.release()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
