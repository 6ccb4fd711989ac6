"""coldstream: from a bare spot GPU to vLLM's first token in seconds, with the weights in an object store.

    for name, tensor in coldstream.stream("Qwen/Qwen3-8B"): ...    as they arrive
    tensors = coldstream.load("s3://bucket/org/model")             all of them
    coldstream.load_into(module, "https://cdn.example.com/model")  into a torch module, in place

The rooms, from the bottom up; each may use those above it in this list (`make check` enforces it):

    package  errors  units  printable  progress    leaves
    machine      this machine: hardware, limits, files and processes
    net          HTTP, TLS, proxies, retries
    model        pure: names, headers, chunks, the manifest, the selection of files
    settings     where the bucket is, and its credentials
    places       where models are: object stores, folders, the Hub, web servers, a CDN
    cache        the local copy of a model
    engine       the streamer: from connections or files into memory
    telemetry    the timeline of a start; metrics for Prometheus
    loading      the Python library: stream, load, load_into, share, attach
    mirror       upload, list, verify, download, remove
    tune         settings for a model on a GPU
    node         running an inference engine, whichever it is: its model folder, caches, child process
    runtime      the image in the bucket that starts a bare node
    engines      one package for each inference engine: vllm, sglang
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
    from coldstream.loading.options import Options
    from coldstream.loading.sharing import Attached, Share, attach, share
    from coldstream.loading.small_file import read_file
    from coldstream.loading.streaming import Load, LoadIntoReport, load, load_into, stream
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
    "read_file",
    "share",
    "stream",
]
# Where the names are defined; all others are errors.
_MODULES = {
    "engine.load_statistics": ("LoadReport",),
    "loading.options": ("Options",),
    "loading.small_file": ("read_file",),
    "loading.sharing": ("Attached", "Share", "attach", "share"),
    "loading.streaming": ("Load", "LoadIntoReport", "load", "load_into", "stream"),
    "loading.tensors": ("TypedBuffer",),
    "node.model_folder": ("prepare",),
}


def __getattr__(name: str) -> object:
    """Imports a public name on first use: `coldstream --help` and the streamer's processes start without them."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "errors")
    value = getattr(importlib.import_module(f"coldstream.{module}"), name)
    globals()[name] = value
    return value
