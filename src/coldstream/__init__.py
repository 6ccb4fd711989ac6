"""coldstream: from a bare spot GPU to vLLM's first token in seconds, with the weights in an object store.

    for name, tensor in coldstream.stream("Qwen/Qwen3-8B"): ...    as they arrive
    tensors = coldstream.load("s3://bucket/org/model")             all of them
    coldstream.load_into(module, "https://cdn.example.com/model")  into a torch module, in place

The map, from the bottom up:

    errors  units  extras  uri  child_environment  process_session  printable    leaves
    cgroup  limits                              what this process may use, and which limit it ran into
    paths  retry  machine  https  drawing  atomic  reply  lfs  aws_profile  env  tree    what all the rest is made with
    header  plan  manifest  selection           pure: what a file is, how it is cut, what a model consists of
    store                                       where models are kept: S3 and its like, or a folder
    source  hub                                 where models come from: a folder, Hugging Face
    cloudflare                                  Cloudflare's own API: temporary keys
    mirror                                      upload, list, verify, download, remove
    cache                                       the local copy of what was loaded
    engine                                      the streamer: from links or files into memory
    origin                                      from a URI to what the engine needs
    timeline                                    what a start spent its time on
    metrics                                     Prometheus: what loads and starts did
    tensors  device  loading                    the library's face: stream, load, load_into
    folder  vllm  serve                         what vLLM is given, its load format, and the command that starts it
    readahead                                   what a start reads from the disk, asked for ahead of it
    bench                                       ways of loading a model, compared on this machine
    tune  cost  prices                          settings for a model; what a month of models costs, here and elsewhere
    template  launch                            the file that brings a model up elsewhere; its launch
    cdn                                         the CDN in front of the bucket: its rule, what it keeps, filling it
    probe  doctor                               does this bucket work; what is wrong
    demo  throttle  cpu_vllm                    all of it at work on this machine; a slow link and a vLLM for it
    cli                                         one file per verb; renders what the others return
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

# For `machine.process_began`: as early as code of ours runs.
IMPORTED = time.monotonic()

if TYPE_CHECKING:
    from coldstream.folder import prepare
    from coldstream.loading import (
        Attached,
        Load,
        LoadIntoReport,
        LoadReport,
        Options,
        Share,
        attach,
        load,
        load_into,
        share,
        stream,
    )
    from coldstream.tensors import TypedBuffer

__version__ = "0.1.0"

__all__ = [
    "Attached",
    "Load",
    "LoadIntoReport",
    "LoadReport",
    "Options",
    "Share",
    "TypedBuffer",
    "attach",
    "load",
    "load_into",
    "prepare",
    "share",
    "stream",
]
_ELSEWHERE = {"TypedBuffer": "coldstream.tensors", "prepare": "coldstream.folder"}


def __getattr__(name: str) -> object:
    """Imports what is asked for: the streamer's own processes and `--help` need none of it."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_ELSEWHERE.get(name, "coldstream.loading"))
    value = getattr(module, name)
    globals()[name] = value
    return value
