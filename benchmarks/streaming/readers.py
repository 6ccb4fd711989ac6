"""Readers of benchmarks/stream.py that `coldstream bench` does not have; run like coldstream's own readers.

    python readers.py huggingface | mapped | first | repeated | leave

They take the options of `coldstream.operate.bench.programs.readers`, and scratch (a folder for downloads), reuse and
whole (for `mapped`), repeats (for `first` and `repeated`), loader (for `repeated`). The interpreter may have no
coldstream: its readers are imported by path.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# In place of this folder, whose modules are not for programs.
sys.path[0] = str(Path(__file__).resolve().parents[2] / "src/coldstream/operate/bench/programs")

import readers  # noqa: E402
from readers import PREPARED, Options, Result  # noqa: E402


def huggingface(options: Options) -> Iterator[Result]:
    """Downloads with huggingface_hub's http_get, then loads each file with safetensors' load_file."""
    from huggingface_hub.file_download import http_get
    from safetensors.torch import load_file

    def fetch(name: str) -> str:
        path = os.path.join(options["scratch"], name)
        with open(path, "wb") as file:
            http_get(f"{options['url']}/{options['bucket']}/{options['key']}/{name}", file, displayed_filename=name)
        return path

    def tensors(paths: list[str]) -> Iterator[tuple[str, object]]:
        for path in paths:
            yield from load_file(path).items()
            os.unlink(path)

    yield PREPARED
    # snapshot_download's default is 8 files at a time.
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(fetch, [name for name, _ in options["files"]]))
    # load_file only maps the file; the copy stands for the one into the model's parameters.
    yield readers.take_tensors(options, tensors(paths), lambda tensor: tensor.clone())


def mapped(options: Options) -> Iterator[Result]:
    """Files of this machine or a mount without coldstream: safetensors' mmap, and a copy of each tensor.

    With `reuse` the copies go to one faulted-in buffer, like a module's parameters; otherwise to new memory. With
    `whole` each file is read at once, as by vLLM's `--safetensors-load-strategy eager`, and its tensors are counted.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load

    largest = max(size for _, size in options["files"])
    into = torch.zeros(largest, dtype=torch.uint8) if options["reuse"] else None

    yield PREPARED
    size = 0
    for name, _ in options["files"]:
        path = Path(options["folder"], name)
        if options.get("whole"):
            size += sum(tensor.nbytes for tensor in load(path.read_bytes()).values())
            continue
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # safe_open has no __iter__
                tensor = file.get_tensor(key)
                if into is None:
                    tensor.clone()
                else:
                    into[: tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))
                size += tensor.nbytes
    yield {"bytes": size}


def first(options: Options) -> Iterator[Result]:
    """coldstream: waits for the first tensor and leaves, `repeats` times."""
    stream = _stream(options)
    yield PREPARED
    durations = []
    for _ in range(options["repeats"]):
        began = time.perf_counter()
        with stream() as loading:
            next(loading)
            durations.append(time.perf_counter() - began)
    yield {"first_seconds": durations}


def repeated(options: Options) -> Iterator[Result]:
    """A loader in a process that is warm: how long each of `repeats` loads takes from the call until it has ended."""
    reader = readers.READERS[options["loader"]]
    yield PREPARED
    size, durations = 0, []
    for _ in range(options["repeats"] + 1):
        loading = reader(options)
        next(loading)
        began = time.perf_counter()
        size = next(loading)["bytes"]
        durations.append(time.perf_counter() - began)
    yield {"bytes": size, "repeated_seconds": durations[1:]}


def leave(options: Options) -> Iterator[Result]:
    """coldstream: leaves after the first tensor, and measures how long that takes."""
    stream = _stream(options)
    yield PREPARED
    loading = stream()
    next(loading)
    began = time.perf_counter()
    loading.close()
    closed = time.perf_counter() - began
    while _has_children():
        time.sleep(0.001)
    yield {"close_seconds": closed, "gone_seconds": time.perf_counter() - began}


def _stream(options: Options) -> Callable[[], object]:
    import coldstream

    keywords = {"framework": "buffer", "cache": False, "metrics": False, **options.get("stream", {})}
    coldstream.stream(options["uri"], **keywords).close()  # runs the late imports, and reads nothing
    return lambda: coldstream.stream(options["uri"], **keywords)


def _has_children() -> bool:
    return any(Path(f"/proc/self/task/{task}/children").read_text() for task in os.listdir("/proc/self/task"))


if __name__ == "__main__":
    readers.READERS |= {reader.__name__: reader for reader in (first, huggingface, leave, mapped, repeated)}
    readers.main()
