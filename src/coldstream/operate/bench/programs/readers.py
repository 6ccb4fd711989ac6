"""Runs one loader: `python readers.py READER`, with options as JSON in BENCH_OPTIONS.

It runs with the interpreter that has the loader, so this file needs only the standard library. Every reader loads all
bytes of all shards into memory, or onto a device, and counts them. With `verify` it also hashes each tensor (SHA-256),
so that wrong bytes cannot pass as speed. Prints one line of JSON: bytes, hashes, and the wall and CPU time of the
imports, which no loader is charged for: a reader imports and prepares, yields once, loads, and yields its result.
Endpoint, credentials and certificates come from the environment, under AWS's names.

Options: files ([name, size] each), device, threads, chunk_bytes, verify; for readers of a bucket url (http://host:port,
or null for AWS itself), bucket, key (the model's folder); for readers of a folder `folder` instead; for `coldstream`
uri, mode, stream (keywords of coldstream.stream); for `download` also download (a command).

`python readers.py probe` prints the versions of all packages of this interpreter.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from typing import Any

BEGAN = time.perf_counter()
_COPY_BYTES = 256 << 20
_COPIES = 8
Options = dict[str, Any]
Result = dict[str, Any]
# What a reader yields before it loads.
PREPARED: Result = {}


def main() -> None:
    """Runs the reader on the command line."""
    if sys.argv[1] == "probe":
        print(json.dumps({one.metadata["Name"].lower().replace("_", "-"): one.version for one in distributions()}))
        return
    name, options = sys.argv[1], json.loads(os.environ["BENCH_OPTIONS"])
    reader = READERS[name](options)
    next(reader)
    wait = _wake_device(options)
    marks = {"import_seconds": time.perf_counter() - BEGAN, "import_cpu_seconds": sum(os.times()[:4])}
    began = time.perf_counter()
    result = next(reader)
    wait()
    marks["load_seconds"] = time.perf_counter() - began
    if tensors := result.get("tensors"):
        lines = "\n".join(f"{tensor} {digest}" for tensor, digest in sorted(tensors.items()))
        result["digest"] = hashlib.sha256(lines.encode()).hexdigest()
    print(json.dumps({**marks, **result}))


def _wake_device(options: Options) -> Callable[[], None]:
    """Initializes the device, which takes a while; returns a function that waits until it is idle."""
    device = options.get("device", "cpu")
    if device == "cpu":
        return lambda: None
    import torch

    torch.zeros(1, device=device)
    torch.cuda.synchronize(device)
    return lambda: torch.cuda.synchronize(device)


def _copier(options: Options) -> Callable[[Any], None]:
    device = options.get("device", "cpu")
    if device == "cpu":
        return lambda _: None
    import torch

    def copy(buffer: Any) -> None:
        writable = bytearray(buffer) if isinstance(buffer, bytes) else buffer
        torch.frombuffer(writable, dtype=torch.uint8).to(device)

    return copy


def tensor_hash(tensor: Any) -> str:
    """SHA-256 of a torch tensor or a memoryview."""
    if isinstance(tensor, memoryview):
        return hashlib.sha256(tensor).hexdigest()
    import torch

    # Viewing a scalar as bytes needs a dimension; .cpu() is for tensors on a device.
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()).hexdigest()


def take_tensors(
    options: Options, tensors: Iterable[tuple[str, Any]], place: Callable[[Any], Any] = lambda tensor: tensor
) -> Result:
    """Takes each tensor and puts it in its place; counts and, with `verify`, hashes them."""
    size, first = 0, 0.0
    hashes: dict[str, str] = {}
    began = time.perf_counter()
    for name, tensor in tensors:
        first = first or time.perf_counter() - began
        size += tensor.nbytes
        placed = place(tensor)
        if options["verify"] and tensor.nbytes:
            hashes[name] = tensor_hash(placed)
    return {"bytes": size, "tensors": hashes, "first_seconds": first}


def _file_hashes(content: Any) -> dict[str, str]:
    view = memoryview(content)
    data = view[8 + int.from_bytes(view[:8], "little") :]
    header = json.loads(bytes(view[8 : len(view) - len(data)]))
    header.pop("__metadata__", None)
    places = ((name, slice(*entry["data_offsets"])) for name, entry in header.items())
    return {name: hashlib.sha256(data[place]).hexdigest() for name, place in places if data[place]}


def runai(options: Options) -> Iterator[Result]:
    """Run:ai Model Streamer. The caller sets its environment; files are named, so it lists nothing."""
    from runai_model_streamer import SafetensorsStreamer

    prefix = options.get("folder") or f"s3://{options['bucket']}/{options['key']}"
    paths = [f"{prefix}/{name}" for name, _ in options["files"]]
    device = options.get("device", "cpu")
    yield PREPARED
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(paths, device="cpu", owned=True)
        # As vLLM does without distributed streaming: copies each tensor to the device.
        result = take_tensors(
            options, streamer.get_tensors(), lambda tensor: tensor if device == "cpu" else tensor.to(device)
        )
    yield result


def obstore(options: Options) -> Iterator[Result]:
    """obstore: chunk-sized ranges on threads, each copied into one reused buffer per thread."""
    import obstore as library
    from obstore.store import S3Store

    client = {"allow_http": True, "timeout": "120s"}
    store: Any = S3Store(options["bucket"], virtual_hosted_style_request=not options["url"], client_options=client)

    def read(name: str, start: int, stop: int, view: memoryview) -> None:
        view[: stop - start] = memoryview(library.get_range(store, f"{options['key']}/{name}", start=start, end=stop))

    yield PREPARED
    yield _read_ranges(options, read)


def _ranges(size: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def _read_ranges(options: Options, read: Callable[[str, int, int, memoryview], None]) -> Result:
    """Reads every chunk on threads, each with one buffer; with `verify` one file after the other, into whole files."""
    step, local, copy = options["chunk_bytes"], threading.local(), _copier(options)

    def read_chunk(chunk: tuple[str, int, int]) -> int:
        name, start, stop = chunk
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(step))
        read(name, start, stop, local.buffer)
        copy(local.buffer[: stop - start])
        return stop - start

    with ThreadPoolExecutor(options["threads"]) as pool:

        def read_file(name: str, size: int) -> memoryview:
            whole = memoryview(bytearray(size))
            list(pool.map(lambda part: read(name, part[0], part[1], whole[slice(*part)]), _ranges(size, step)))
            return whole

        if options["verify"]:
            return _read_files(options, read_file)
        chunks = [(name, *part) for name, size in options["files"] for part in _ranges(size, step)]
        return {"bytes": sum(pool.map(read_chunk, chunks))}


def boto3(options: Options) -> Iterator[Result]:
    """boto3: download_fileobj with its default TransferConfig into a BytesIO, one file after the other."""
    import boto3 as library
    from botocore.config import Config

    style = {"addressing_style": "path"} if options["url"] else {}
    client = library.client("s3", config=Config(s3=style))
    copy = _copier(options)

    def read(name: str, _size: int) -> memoryview:
        into = io.BytesIO()
        client.download_fileobj(options["bucket"], f"{options['key']}/{name}", into)
        copy(into.getbuffer())
        return into.getbuffer()

    yield PREPARED
    yield _read_files(options, read)


def s3fs(options: Options) -> Iterator[Result]:
    """s3fs: cat_ranges of a file's chunks, one file after the other."""
    from s3fs import S3FileSystem

    style = {"s3": {"addressing_style": "path"}} if options["url"] else {}
    system = S3FileSystem(config_kwargs=style, default_cache_type="none")
    copy, step = _copier(options), options["chunk_bytes"]

    def read(name: str, size: int) -> list[bytes]:
        starts, stops = zip(*_ranges(size, step), strict=True)
        paths = [f"{options['bucket']}/{options['key']}/{name}"] * len(starts)
        pieces: list[bytes] = system.cat_ranges(paths, list(starts), list(stops), on_error="raise")
        for piece in pieces:
            copy(piece)
        return pieces

    yield PREPARED
    yield _read_files(options, read)


def _read_files(options: Options, read: Callable[[str, int], Any]) -> Result:
    total = 0
    hashes: dict[str, str] = {}
    for name, size in options["files"]:
        content = read(name, size)
        total += sum(map(len, content)) if isinstance(content, list) else len(content)
        if options["verify"]:
            hashes |= _file_hashes(b"".join(content) if isinstance(content, list) else content)
        # Before the next file is read: only one counts towards the peak memory.
        del content
    return {"bytes": total, "tensors": hashes}


def download(options: Options) -> Iterator[Result]:
    """Downloads all files to disk with a command, then loads them with safetensors as vLLM's own loader does."""
    import safetensors
    import torch  # noqa: F401  # so that its import is not charged to the load

    def tensors() -> Iterator[tuple[str, Any]]:
        for name, _ in options["files"]:
            with safetensors.safe_open(os.path.join(options["folder"], name), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # safe_open has no __iter__
                    yield key, file.get_tensor(key)

    yield PREPARED
    if command := options.get("download"):
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"the download failed: {done.stderr.strip()[-400:]}")
    device = options.get("device", "cpu")
    # The files are only mapped; the copy stands for the one into the model's parameters.
    yield take_tensors(options, tensors(), lambda tensor: tensor.clone() if device == "cpu" else tensor.to(device))


def pcie(options: Options) -> Iterator[Result]:
    """Measures copies from pinned memory to the device; returns the best of several."""
    import torch

    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=options["device"])
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)

    yield PREPARED
    durations = []
    for _ in range(_COPIES):
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(options["device"])
        durations.append(time.perf_counter() - began)
    yield {"bytes": _COPY_BYTES, "bytes_per_second": _COPY_BYTES / min(durations)}


def coldstream(options: Options) -> Iterator[Result]:
    """The library: drops every tensor; `fill` also waits for the local cache, `warm` needs every byte to be in it."""
    import coldstream as library

    keywords = {"framework": "buffer", "cache": False, "metrics": False, **options.get("stream", {})}
    library.stream(options["uri"], **keywords).close()  # runs the late imports, and reads nothing
    buffers, mode = keywords["framework"] == "buffer", options["mode"]
    if not buffers:
        import torch  # noqa: F401  # so that its import is not charged to the load

    yield PREPARED
    with library.stream(options["uri"], **keywords) as loading:
        result = take_tensors(options, ((name, tensor.data if buffers else tensor) for name, tensor in loading))
        if mode == "fill":
            loading.wait_for_cache()
        report = loading.report
    assert report is not None
    if mode == "fill" and report.cached not in {"written", "complete"}:
        sys.exit(f"the local cache was not filled: {report.cached}")
    if mode == "warm" and report.received_bytes:
        sys.exit(f"{report.received_bytes} bytes were not in the local cache")
    names = ("memory_bytes", "received_bytes", "cache_bytes", "connections", "limit", "limited_by")
    yield result | {"report": {name: getattr(report, name) for name in names}}


READERS: dict[str, Callable[[Options], Iterator[Result]]] = {
    reader.__name__: reader for reader in (boto3, coldstream, download, obstore, pcie, runai, s3fs)
}

if __name__ == "__main__":
    main()
