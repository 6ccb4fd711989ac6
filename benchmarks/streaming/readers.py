"""The loaders, each in a process of its own: `python readers.py READER OPTIONS`, OPTIONS being JSON.

The others run with the set-up's Python, `coldstream` with its own. Every reader takes all bytes of all shards into
memory and counts them; with `verify` it also hashes what it has got (SHA-256 of each shard or, for readers of tensors,
of each tensor) so that a wrong byte cannot pass as speed. Prints one line of JSON: bytes, hashes, and the wall and CPU
time at which the imports were done, so that nobody is charged for importing torch.

OPTIONS: url (http://host:port), bucket, key (the model's folder), files ([name, size] each), authority (PEM or null),
threads, chunk_bytes, scratch (a folder on tmpfs), verify; for `coldstream` also uri, mode, stream (keywords of
coldstream.stream) and repeats; for `mapped` also folder and reuse.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BEGAN = time.perf_counter()


def main() -> None:
    """Runs one reader."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    load = READERS[name](options)
    marks = {"import_seconds": time.perf_counter() - BEGAN, "import_cpu_seconds": sum(os.times()[:4])}
    began = time.perf_counter()
    result = load()
    marks["load_seconds"] = time.perf_counter() - began
    print(json.dumps({**marks, **result}))


def runai(options: dict[str, Any]) -> Any:
    """Run:ai Model Streamer: the files by name, so that nothing is listed; its environment comes from the caller."""
    from runai_model_streamer import SafetensorsStreamer

    paths = [f"s3://{options['bucket']}/{options['key']}/{name}" for name, _ in options["files"]]

    def load() -> dict[str, Any]:
        size, hashes, first = 0, {}, 0.0
        began = time.perf_counter()
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(paths, device="cpu", owned=options.get("owned", True))
            for name, tensor in streamer.get_tensors():
                first = first or time.perf_counter() - began
                size += tensor.nbytes
                if options["verify"]:
                    import torch

                    hashes[name] = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        return {"bytes": size, "tensors": hashes, "first_seconds": first}

    return load


def obstore(options: dict[str, Any]) -> Any:
    """obstore: ranges of a chunk's size on threads, each copied into its place in one reused buffer per thread."""
    import obstore as library
    from obstore.store import S3Store

    store = S3Store(
        options["bucket"],
        endpoint=options["url"],
        region="us-east-1",
        access_key_id="benchmark-key",
        secret_access_key="benchmark-secret",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "120s"},
    )

    def one(name: str, start: int, stop: int, view: memoryview) -> None:
        view[: stop - start] = memoryview(library.get_range(store, f"{options['key']}/{name}", start=start, end=stop))

    return lambda: _ranges(options, one)


def boto3(options: dict[str, Any]) -> Any:
    """boto3's download_fileobj with its default TransferConfig into a BytesIO, one file after the other."""
    import io

    client = _boto_client(options)

    def load() -> dict[str, Any]:
        size, hashes = 0, {}
        for name, _ in options["files"]:
            into = io.BytesIO()
            client.download_fileobj(options["bucket"], f"{options['key']}/{name}", into)
            size += into.getbuffer().nbytes
            if options["verify"]:
                hashes[name] = hashlib.sha256(into.getbuffer()).hexdigest()
        return {"bytes": size, "files": hashes}

    return load


def _boto_client(options: dict[str, Any]) -> Any:
    import boto3 as library
    from botocore.config import Config

    return library.client(
        "s3",
        endpoint_url=options["url"],
        aws_access_key_id="benchmark-key",
        aws_secret_access_key="benchmark-secret",
        region_name="us-east-1",
        verify=options["authority"],
        config=Config(s3={"addressing_style": "path"}),
    )


def s3fs(options: dict[str, Any]) -> Any:
    """s3fs: cat_ranges of a file's chunks, one file after the other."""
    from s3fs import S3FileSystem

    client: dict[str, Any] = {"endpoint_url": options["url"], "region_name": "us-east-1"}
    if options["authority"]:
        client["verify"] = options["authority"]
    system = S3FileSystem(
        key="benchmark-key",
        secret="benchmark-secret",
        client_kwargs=client,
        config_kwargs={"s3": {"addressing_style": "path"}},
        default_cache_type="none",
    )

    def load() -> dict[str, Any]:
        size, hashes = 0, {}
        step = options["chunk_bytes"]
        for name, file_bytes in options["files"]:
            path = f"{options['bucket']}/{options['key']}/{name}"
            starts = list(range(0, file_bytes, step))
            stops = [min(start + step, file_bytes) for start in starts]
            pieces = system.cat_ranges([path] * len(starts), starts, stops, on_error="raise")
            size += sum(map(len, pieces))
            if options["verify"]:
                digest = hashlib.sha256()
                for piece in pieces:
                    digest.update(piece)
                hashes[name] = digest.hexdigest()
        return {"bytes": size, "files": hashes}

    return load


def huggingface(options: dict[str, Any]) -> Any:
    """Download then load: huggingface_hub's http_get to files, then safetensors' load_file of each."""
    from huggingface_hub.file_download import http_get
    from safetensors.torch import load_file

    def fetch(name: str) -> str:
        path = os.path.join(options["scratch"], name)
        url = f"{options['url']}/{options['bucket']}/{options['key']}/{name}"
        with open(path, "wb") as file:
            http_get(url, file, displayed_filename=name)
        return path

    def load() -> dict[str, Any]:
        size, hashes = 0, {}
        # snapshot_download's default is 8 files at a time.
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(fetch, [name for name, _ in options["files"]]))
        for path in paths:
            for name, tensor in load_file(path).items():
                # load_file only maps the file; the copy stands for the one to where the weights are used.
                size += tensor.clone().nbytes
                if options["verify"]:
                    import torch

                    hashes[name] = hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
            os.unlink(path)
        return {"bytes": size, "tensors": hashes}

    return load


def mapped(options: dict[str, Any]) -> Any:
    """What a warm start without coldstream does: safetensors' mmap, and a copy of each tensor.

    With `reuse` the copies go to one faulted-in place, as into a module's parameters; otherwise into new memory.
    """
    import torch
    from safetensors import safe_open

    largest = max(size for _, size in options["files"])
    into = torch.zeros(largest, dtype=torch.uint8) if options["reuse"] else None

    def load() -> dict[str, Any]:
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


def coldstream(options: dict[str, Any]) -> Any:
    """The library itself, in one of four modes.

    `drain` takes every tensor and lets go of it, and hashes it with `verify`; `fill` waits for the local cache as well;
    `first` asks for the first tensor and leaves, `repeats` times; `leave` does so once and notes how long that took.
    """
    import coldstream as library

    keywords = {"framework": "buffer", "cache": False, **options.get("stream", {})}
    library.stream(options["uri"], **keywords).close()  # imports what is imported late, and touches nothing

    def drain() -> dict[str, Any]:
        size, hashes = 0, {}
        with library.stream(options["uri"], **keywords) as loading:
            for name, tensor in loading:
                size += tensor.data.nbytes
                if options["verify"]:
                    hashes[name] = hashlib.sha256(tensor.data).hexdigest()
            if options["mode"] == "fill":
                loading.wait_for_cache()
            report = loading.report
        said = {name: getattr(report, name) for name in ("memory_bytes", "received_bytes", "cache_bytes", "limit")}
        return {"bytes": size, "tensors": hashes, "report": said}

    def first() -> dict[str, Any]:
        taken = []
        for _ in range(options["repeats"]):
            began = time.perf_counter()
            with library.stream(options["uri"], **keywords) as loading:
                next(loading)
                taken.append(time.perf_counter() - began)
        return {"first_seconds": taken}

    def leave() -> dict[str, Any]:
        loading = library.stream(options["uri"], **keywords)
        next(loading)
        began = time.perf_counter()
        loading.close()
        closed = time.perf_counter() - began
        while _children():
            time.sleep(0.001)
        return {"close_seconds": closed, "gone_seconds": time.perf_counter() - began}

    return {"drain": drain, "fill": drain, "first": first, "leave": leave}[options["mode"]]


def _children() -> bool:
    return any(
        open(f"/proc/self/task/{task}/children").read()  # closed by going out of use
        for task in os.listdir("/proc/self/task")
    )


def _ranges(options: dict[str, Any], one: Any) -> dict[str, Any]:
    """Runs `one` over every chunk on threads; every thread has one buffer, or with `verify` all go to their place."""
    import threading

    step, local = options["chunk_bytes"], threading.local()
    jobs = [(name, start, min(start + step, size)) for name, size in options["files"] for start in range(0, size, step)]
    whole = {name: bytearray(size) for name, size in options["files"]} if options["verify"] else {}

    def job(item: tuple[str, int, int]) -> int:
        name, start, stop = item
        if whole:
            one(name, start, stop, memoryview(whole[name])[start:stop])
        else:
            if not hasattr(local, "buffer"):
                local.buffer = memoryview(bytearray(step))
            one(name, start, stop, local.buffer)
        return stop - start

    with ThreadPoolExecutor(options["threads"]) as pool:
        size = sum(pool.map(job, jobs))
    return {"bytes": size, "files": {name: hashlib.sha256(content).hexdigest() for name, content in whole.items()}}


READERS = {
    "boto3": boto3,
    "coldstream": coldstream,
    "huggingface": huggingface,
    "mapped": mapped,
    "obstore": obstore,
    "runai": runai,
    "s3fs": s3fs,
}

if __name__ == "__main__":
    main()
