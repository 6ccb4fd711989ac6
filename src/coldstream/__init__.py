"""coldstream: from a bare spot GPU to vLLM's first token in seconds, with the weights in an object store.

    for name, tensor in coldstream.stream("Qwen/Qwen3-8B"): ...    as they arrive
    tensors = coldstream.load("s3://bucket/org/model")             all of them
    coldstream.load_into(module, "https://cdn.example.com/model")  into a torch module, in place

The rooms, from the bottom up; each may use those above it in this list (`make check` enforces it):

    package  errors  units  printable  progress  settings    leaves
    machine      this machine: hardware, limits, files and processes
    net          HTTP, TLS, proxies, retries
    model        pure: names, headers, chunks, the manifest, the selection of files
    places       where models are: object stores, folders, the Hub, web servers, a CDN
    cache        the local copy of a model
    engine       the streamer: from connections or files into memory
    telemetry    the timeline of a start; metrics for Prometheus
    loading      the Python library: stream, load, load_into, share, attach
    mirror       upload, list, verify, download, remove
    tune         settings for a model on a GPU
    node         running an inference engine, whichever it is: its model folder, caches, child process
    engines      one package for each inference engine: vllm
    fleet        deployment files, and launches through SkyPilot
    operate      doctor, cost, benchmarks, CDN, charts, the demo
    cli          one module for each command
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldstream.package import __version__ as __version__

if TYPE_CHECKING:
    from coldstream.engine.load_statistics import LoadReport
    from coldstream.errors import (
        BucketNotFoundError,
        CancelledError,
        ColdstreamError,
        ConfigError,
        ConflictError,
        CredentialsError,
        DiskError,
        HeaderError,
        IntegrityError,
        ManifestError,
        NotFoundError,
        PartialError,
        UnavailableError,
        UnsupportedError,
        UploadNotFoundError,
        UsageError,
    )
    from coldstream.loading.load_into import LoadIntoReport, load_into
    from coldstream.loading.options import Options
    from coldstream.loading.sharing import Attached, Share, attach, share
    from coldstream.loading.streaming import Load, load, stream
    from coldstream.loading.tensors import TypedBuffer
    from coldstream.node.model_folder import prepare

__all__ = [
    "Attached",
    "BucketNotFoundError",
    "CancelledError",
    "ColdstreamError",
    "ConfigError",
    "ConflictError",
    "CredentialsError",
    "DiskError",
    "HeaderError",
    "IntegrityError",
    "Load",
    "LoadIntoReport",
    "LoadReport",
    "ManifestError",
    "NotFoundError",
    "Options",
    "PartialError",
    "Share",
    "TypedBuffer",
    "UnavailableError",
    "UnsupportedError",
    "UploadNotFoundError",
    "UsageError",
    "attach",
    "load",
    "load_into",
    "prepare",
    "share",
    "stream",
]
# Where each name is defined; errors are not listed.
_MODULES = {
    "Attached": "loading.sharing",
    "Load": "loading.streaming",
    "LoadIntoReport": "loading.load_into",
    "LoadReport": "engine.load_statistics",
    "Options": "loading.options",
    "Share": "loading.sharing",
    "TypedBuffer": "loading.tensors",
    "attach": "loading.sharing",
    "load": "loading.streaming",
    "load_into": "loading.load_into",
    "prepare": "node.model_folder",
    "share": "loading.sharing",
    "stream": "loading.streaming",
}


def __getattr__(name: str) -> object:
    """Imports a public name on first use: `coldstream --help` and the streamer's processes start without them."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"coldstream.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value
