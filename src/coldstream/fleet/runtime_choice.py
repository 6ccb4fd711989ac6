"""Chooses the runtime that the nodes of a deployment start from. Pure."""

from __future__ import annotations

import re

from coldstream.errors import IntegrityError
from coldstream.fleet.deploy_options import DeployOptions
from coldstream.runtime import runtime_store
from coldstream.runtime.runtime_manifest import Platform, RuntimeManifest
from coldstream.runtime.runtime_store import Runtime
from coldstream.tune.gpus import GpuModel

# CUDA versions that support a GPU, by its compute capability (docs.nvidia.com/cuda, release notes).
_BLACKWELL, _TURING = (10, 0), (7, 5)
_CUDA_FOR_BLACKWELL, _CUDA_WITHOUT_VOLTA = (12, 8), (13, 0)


def choose_runtime(options: DeployOptions, entries: list[Runtime]) -> RuntimeManifest | None:
    """The runtime of a deployment, among those in the bucket, the newest first.

    Returns None if nodes need coldstream only: vLLM comes from elsewhere, or the bucket has no runtime that fits.
    Raises what `choose` raises, and IntegrityError if the chosen one is not complete.
    """
    if options.runtime not in (None, "none"):
        entry = runtime_store.choose(entries, options.runtime)
        if entry.manifest is None or entry.state != "ready":
            raise IntegrityError(f"the runtime {entry.digest[:12]} is {entry.state}", hint="publish it again")
        return entry.manifest
    if options.has_own_engine:
        return None
    ready = (entry.manifest for entry in entries if entry.manifest is not None and entry.state == "ready")
    return next((manifest for manifest in ready if fits(manifest.platform, options.gpus.gpu)), None)


def fits(platform: Platform, gpu: GpuModel) -> bool:
    """Whether a machine with such a GPU can run vLLM from a runtime; its driver is checked on the machine."""
    machine = "aarch64" if gpu.name.startswith("GH") else "x86_64"
    if not platform.vllm or platform.machine != machine or platform.cuda is None:
        return False
    cuda = tuple(int(number) for number in re.findall(r"\d+", platform.cuda))[:2]
    if gpu.capability >= _BLACKWELL:
        return cuda >= _CUDA_FOR_BLACKWELL
    return gpu.capability >= _TURING or cuda < _CUDA_WITHOUT_VOLTA
