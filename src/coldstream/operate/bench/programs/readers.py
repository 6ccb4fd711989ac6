"""The loaders, each in a process of its own: `python readers.py READER`, with options as JSON in BENCH_OPTIONS.

They run with the interpreter that has the loader, so this file needs the standard library alone. Every reader takes all
bytes of all shards into memory, or on to a device, and counts them; with `verify` it also hashes what it has got
(SHA-256 of each tensor) so that a wrong byte cannot pass as speed. Prints one line of JSON: bytes, hashes, and the wall
and CPU time at which the imports were done, so that nobody is charged for importing torch. Keys come from the
environment, under the names that AWS gave them.

Options: files ([name, size] each), device, threads, chunk_bytes, scratch (a folder for those that write files), verify;
for readers of a bucket url (http://host:port, or null for AWS itself), bucket, key (the model's folder), authority (PEM
or null); for those of a folder `folder` instead; for `coldstream` uri, mode, stream (keywords of coldstream.stream) and
repeats; for `download` also download (the command that does it); for `mapped` reuse.

`python readers.py probe` prints which of `PACKAGES` this interpreter has.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

BEGAN = time.perf_counter()
PACKAGES = (
    "boto3",
    "coldstream",
    "huggingface_hub",
    "obstore",
    "runai-model-streamer",
    "runai-model-streamer-s3",
    "s3fs",
    "safetensors",
    "torch",
    "vllm",
)
_COPY_BYTES = 256 << 20
_COPIES = 8
Options = dict[str, Any]
Result = dict[str, Any]


def main() -> None:
    """Runs one reader."""
    if sys.argv[1] == "probe":
        print(json.dumps(probe()))
        return
    name, options = sys.argv[1], json.loads(os.environ["BENCH_OPTIONS"])
    load = READERS[name](options)
    wait = _device(options)
    marks = {"import_seconds": time.perf_counter() - BEGAN, "import_cpu_seconds": sum(os.times()[:4])}
    began = time.perf_counter()
    result = load()
    wait()
    marks["load_seconds"] = time.perf_counter() - began
    if tensors := result.get("tensors"):
        lines = "\n".join(f"{tensor} {digest}" for tensor, digest in sorted(tensors.items()))
        result["digest"] = hashlib.sha256(lines.encode()).hexdigest()
    print(json.dumps({**marks, **result}))


def probe() -> dict[str, str]:
    """Package to version, and Python's own."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"Python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _device(options: Options) -> Callable[[], None]:
    """Wakes the device, which takes a while; gives what waits until it is idle."""
    device = options.get("device", "cpu")
    if device == "cpu":
        return lambda: None
    import torch

    torch.zeros(1, device=device)
    torch.cuda.synchronize(device)
    return lambda: torch.cuda.synchronize(device)


def _place(options: Options) -> Callable[[Any], None]:
    """What takes a buffer to the device, when it is to go to one."""
    device = options.get("device", "cpu")
    if device == "cpu":
        return lambda _: None
    import torch

    def place(buffer: Any) -> None:
        torch.frombuffer(buffer, dtype=torch.uint8).to(device)

    return place


def _tensor_hash(tensor: Any) -> str:
    """SHA-256 of a torch tensor's bytes."""
    import torch

    # A view of a scalar as bytes needs a dimension; the copy is for devices.
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()).hexdigest()


def _file_hashes(content: Any) -> dict[str, str]:
    """SHA-256 of each tensor of a whole safetensors file."""
    view = memoryview(content)
    start = 8 + int.from_bytes(view[:8], "little")
    header = json.loads(bytes(view[8:start]))
    header.pop("__metadata__", None)
    places = {name: entry["data_offsets"] for name, entry in header.items()}
    return {
        name: hashlib.sha256(view[start + first : start + stop]).hexdigest()
        for name, (first, stop) in places.items()
        if stop > first
    }


def runai(options: Options) -> Callable[[], Result]:
    """Run:ai Model Streamer: the files by name, so that nothing is listed; its environment comes from the caller."""
    from runai_model_streamer import SafetensorsStreamer

    prefix = options.get("folder") or f"s3://{options['bucket']}/{options['key']}"
    paths = [f"{prefix}/{name}" for name, _ in options["files"]]
    device = options.get("device", "cpu")
    if device != "cpu":
        import torch  # noqa: F401  # so that its import counts as one

    def load() -> Result:
        size, first = 0, 0.0
        hashes: dict[str, str] = {}
        began = time.perf_counter()
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(paths, device="cpu", owned=options.get("owned", True))
            for name, tensor in streamer.get_tensors():
                first = first or time.perf_counter() - began
                size += tensor.nbytes
                # As vLLM does without ranks that share: a copy of each to where it belongs.
                there = tensor if device == "cpu" else tensor.to(device)
                if options["verify"] and tensor.nbytes:
                    hashes[name] = _tensor_hash(there)
        return {"bytes": size, "tensors": hashes, "first_seconds": first}

    return load


def obstore(options: Options) -> Callable[[], Result]:
    """obstore: ranges of a chunk's size on threads, each copied into its place in one reused buffer per thread."""
    import obstore as library
    from obstore.store import S3Store

    given = {
        "endpoint": options["url"],
        "region": os.environ.get("AWS_REGION"),
        "access_key_id": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret_access_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": os.environ.get("AWS_SESSION_TOKEN"),
    }
    store: Any = S3Store(
        options["bucket"],
        **{name: value for name, value in given.items() if value},
        virtual_hosted_style_request=not options["url"],
        client_options={"allow_http": True, "timeout": "120s"},
    )

    def one(name: str, start: int, stop: int, view: memoryview) -> None:
        view[: stop - start] = memoryview(library.get_range(store, f"{options['key']}/{name}", start=start, end=stop))

    return lambda: _ranges(options, one)


def boto3(options: Options) -> Callable[[], Result]:
    """boto3's download_fileobj with its default TransferConfig into a BytesIO, one file after the other."""
    import io

    client, place = _boto_client(options), _place(options)

    def load() -> Result:
        size = 0
        hashes: dict[str, str] = {}
        for name, _ in options["files"]:
            into = io.BytesIO()
            client.download_fileobj(options["bucket"], f"{options['key']}/{name}", into)
            size += into.getbuffer().nbytes
            place(into.getbuffer())
            if options["verify"]:
                hashes |= _file_hashes(into.getbuffer())
        return {"bytes": size, "tensors": hashes}

    return load


def _boto_client(options: Options) -> Any:
    import boto3 as library
    from botocore.config import Config

    style = {"addressing_style": "path"} if options["url"] else {}
    return library.client("s3", endpoint_url=options["url"], verify=options.get("authority"), config=Config(s3=style))


def s3fs(options: Options) -> Callable[[], Result]:
    """s3fs: cat_ranges of a file's chunks, one file after the other."""
    from s3fs import S3FileSystem

    client: dict[str, Any] = {"region_name": os.environ.get("AWS_REGION")}
    config: dict[str, Any] = {}
    if options["url"]:
        client["endpoint_url"] = options["url"]
        config = {"s3": {"addressing_style": "path"}}
    if options.get("authority"):
        client["verify"] = options["authority"]
    system = S3FileSystem(
        key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        token=os.environ.get("AWS_SESSION_TOKEN"),
        client_kwargs=client,
        config_kwargs=config,
        default_cache_type="none",
    )
    place = _place(options)

    def load() -> Result:
        size = 0
        hashes: dict[str, str] = {}
        step = options["chunk_bytes"]
        for name, file_bytes in options["files"]:
            path = f"{options['bucket']}/{options['key']}/{name}"
            starts = list(range(0, file_bytes, step))
            stops = [min(start + step, file_bytes) for start in starts]
            pieces = system.cat_ranges([path] * len(starts), starts, stops, on_error="raise")
            size += sum(map(len, pieces))
            for piece in pieces:
                place(bytearray(piece) if options.get("device", "cpu") != "cpu" else piece)
            if options["verify"]:
                hashes |= _file_hashes(b"".join(pieces))
        return {"bytes": size, "tensors": hashes}

    return load


def download(options: Options) -> Callable[[], Result]:
    """What vLLM's own loader needs: all files on the disk first, by a command; then safetensors, as vLLM uses it."""
    import safetensors
    import torch  # noqa: F401  # so that its import counts as one

    def load() -> Result:
        if command := options.get("download"):
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                sys.exit(f"the download failed: {done.stderr.strip()[-400:]}")
        size = 0
        hashes: dict[str, str] = {}
        device = options.get("device", "cpu")
        for name, _ in options["files"]:
            with safetensors.safe_open(os.path.join(options["folder"], name), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # it is no mapping
                    tensor = file.get_tensor(key)
                    # The file is only mapped; the copy stands for the one to where the weights are used.
                    there = tensor.clone() if device == "cpu" else tensor.to(device)
                    size += tensor.nbytes
                    if options["verify"] and tensor.nbytes:
                        hashes[key] = _tensor_hash(there)
        return {"bytes": size, "tensors": hashes}

    return load


def pcie(options: Options) -> Callable[[], Result]:
    """No loader: what a copy from pinned memory to the device gives, the best of a few."""
    import torch

    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=options["device"])
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)

    def load() -> Result:
        taken = []
        for _ in range(_COPIES):
            began = time.perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize(options["device"])
            taken.append(time.perf_counter() - began)
        return {"bytes": _COPY_BYTES, "bytes_per_second": _COPY_BYTES / min(taken)}

    return load


def huggingface(options: Options) -> Callable[[], Result]:
    """Download then load: huggingface_hub's http_get to files, then safetensors' load_file of each."""
    from huggingface_hub.file_download import http_get
    from safetensors.torch import load_file

    def fetch(name: str) -> str:
        path = os.path.join(options["scratch"], name)
        url = f"{options['url']}/{options['bucket']}/{options['key']}/{name}"
        with open(path, "wb") as file:
            http_get(url, file, displayed_filename=name)
        return path

    def load() -> Result:
        size = 0
        hashes: dict[str, str] = {}
        # snapshot_download's default is 8 files at a time.
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(fetch, [name for name, _ in options["files"]]))
        for path in paths:
            for name, tensor in load_file(path).items():
                # load_file only maps the file; the copy stands for the one to where the weights are used.
                size += tensor.clone().nbytes
                if options["verify"] and tensor.nbytes:
                    hashes[name] = _tensor_hash(tensor)
            os.unlink(path)
        return {"bytes": size, "tensors": hashes}

    return load


def mapped(options: Options) -> Callable[[], Result]:
    """What a warm start without coldstream does: safetensors' mmap, and a copy of each tensor.

    With `reuse` the copies go to one faulted-in place, as into a module's parameters; otherwise into new memory.
    """
    import torch
    from safetensors import safe_open

    largest = max(size for _, size in options["files"])
    into = torch.zeros(largest, dtype=torch.uint8) if options["reuse"] else None

    def load() -> Result:
        size = 0
        for name, _ in options["files"]:
            with safe_open(os.path.join(options["folder"], name), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # it is no mapping
                    tensor = file.get_tensor(key)
                    if into is None:
                        tensor.clone()
                    else:
                        into[: tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))
                    size += tensor.nbytes
        return {"bytes": size}

    return load


def coldstream(options: Options) -> Callable[[], Result]:
    """The library itself, in one of five modes.

    `drain` takes every tensor and lets go of it, and hashes it with `verify`; `fill` waits for the local cache as well,
    `warm` fails when not all came from there; `first` asks for the first tensor and leaves, `repeats` times; `leave`
    does so once and notes how long that took.
    """
    import coldstream as library

    keywords = {"framework": "buffer", "cache": False, "metrics": False, **options.get("stream", {})}
    library.stream(options["uri"], **keywords).close()  # imports what is imported late, and touches nothing
    buffers = keywords["framework"] == "buffer"
    if not buffers:
        import torch  # noqa: F401  # so that its import counts as one

    def drain() -> Result:
        size = 0
        hashes: dict[str, str] = {}
        with library.stream(options["uri"], **keywords) as loading:
            for name, tensor in loading:
                count = tensor.data.nbytes if buffers else tensor.nbytes
                size += count
                if options["verify"] and count:
                    hashes[name] = hashlib.sha256(tensor.data).hexdigest() if buffers else _tensor_hash(tensor)
            if options["mode"] == "fill":
                loading.wait_for_cache()
            report = loading.report
        assert report is not None
        if options["mode"] == "fill" and report.cached not in {"written", "complete"}:
            sys.exit(f"the local cache was not filled: {report.cached}")
        if options["mode"] == "warm" and report.received_bytes:
            sys.exit(f"{report.received_bytes} bytes were not in the local cache")
        said = {
            name: getattr(report, name)
            for name in ("memory_bytes", "received_bytes", "cache_bytes", "connections", "limit", "limited_by")
        }
        return {"bytes": size, "tensors": hashes, "report": said}

    def first() -> Result:
        taken = []
        for _ in range(options["repeats"]):
            began = time.perf_counter()
            with library.stream(options["uri"], **keywords) as loading:
                next(loading)
                taken.append(time.perf_counter() - began)
        return {"first_seconds": taken}

    def leave() -> Result:
        loading = library.stream(options["uri"], **keywords)
        next(loading)
        began = time.perf_counter()
        loading.close()
        closed = time.perf_counter() - began
        while _children():
            time.sleep(0.001)
        return {"close_seconds": closed, "gone_seconds": time.perf_counter() - began}

    modes = {"drain": drain, "fill": drain, "warm": drain, "first": first, "leave": leave}
    return modes[str(options["mode"])]


def _children() -> bool:
    return any(
        open(f"/proc/self/task/{task}/children").read()  # closed by going out of use
        for task in os.listdir("/proc/self/task")
    )


def _ranges(options: Options, one: Callable[[str, int, int, memoryview], None]) -> Result:
    """Runs `one` over every chunk on threads, which have one buffer each; with `verify` file by file, into place."""
    import threading

    step, local, place = options["chunk_bytes"], threading.local(), _place(options)

    def job(item: tuple[str, int, int, memoryview | None]) -> int:
        name, start, stop, whole = item
        if whole is not None:
            one(name, start, stop, whole[start:stop])
        else:
            if not hasattr(local, "buffer"):
                local.buffer = memoryview(bytearray(step))
            one(name, start, stop, local.buffer)
            place(local.buffer[: stop - start])
        return stop - start

    size = 0
    hashes: dict[str, str] = {}
    with ThreadPoolExecutor(options["threads"]) as pool:
        if not options["verify"]:
            every = [
                (name, start, min(start + step, count), None)
                for name, count in options["files"]
                for start in range(0, count, step)
            ]
            return {"bytes": sum(pool.map(job, every)), "tensors": hashes}
        for name, count in options["files"]:
            whole = memoryview(bytearray(count))
            jobs = [(name, start, min(start + step, count), whole) for start in range(0, count, step)]
            size += sum(pool.map(job, jobs))
            hashes |= _file_hashes(whole)
    return {"bytes": size, "tensors": hashes}


READERS: dict[str, Callable[[Options], Callable[[], Result]]] = {
    "boto3": boto3,
    "coldstream": coldstream,
    "download": download,
    "huggingface": huggingface,
    "mapped": mapped,
    "obstore": obstore,
    "pcie": pcie,
    "runai": runai,
    "s3fs": s3fs,
}

if __name__ == "__main__":
    main()
