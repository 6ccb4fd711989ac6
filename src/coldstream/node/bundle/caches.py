"""The folders of a start's caches: one for each, below one root, and the variables that tell vLLM of them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping

# Variable, and its folder below the root. vLLM puts most of what it makes below its own cache root: compiled graphs,
# what it knows of model classes, which GPUs reach each other, autotuning, memory plans.
_FOLDERS = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "DG_JIT_CACHE_DIR": "deep_gemm",
    "TILELANG_CACHE_DIR": "tilelang",
    "CUDA_CACHE_PATH": "cuda",
}
# From this version on vLLM can keep what it measured of the GPU's memory.
_STARTUP_PLAN_SINCE = (0, 32)
# Not built but fetched (`assets`), or of use only to the process that made it.
_LEFT_OUT = re.compile(r"vllm/assets(/.*)?|vllm/usage_stats\.json|(.*/)?locks/.*|.*\.(lock|tmp|pid)|.*\.tmp\..*")
# Those whose files are code: new ones there mean that something was compiled.
_CODE = re.compile(r"(inductor|triton|flashinfer|deep_gemm|tilelang|cuda|vllm/torch_compile_cache|vllm/deep_gemm)/.*")

Tree = Mapping[str, tuple[int, int]]


def environment(root: str, environ: Mapping[str, str], *, gpu: bool, vllm: str) -> dict[str, str]:
    """The variables that put vLLM's caches below `root`, in a form that the next start can load.

    Args:
        root: A folder.
        environ: The user's: what is set there stays, but for vLLM's own cache root, below which `root` is then.
        gpu: Whether vLLM runs on one.
        vllm: Its version.
    """
    found = {
        name: os.path.join(root, folder)
        for name, folder in _FOLDERS.items()
        if name == "VLLM_CACHE_ROOT" or not environ.get(name)
    }
    if not gpu and "VLLM_USE_AOT_COMPILE" not in environ:
        # On the CPU vLLM 0.32 saves an artefact that it then cannot load, and compiles again; what Inductor keeps
        # without it does load.
        found["VLLM_USE_AOT_COMPILE"] = "0"
    if gpu and "VLLM_ENABLE_STARTUP_PLAN" not in environ and _release(vllm) >= _STARTUP_PLAN_SINCE:
        found["VLLM_ENABLE_STARTUP_PLAN"] = "1"
    return found


def tree(root: str) -> dict[str, tuple[int, int]]:
    """The files below `root` that are worth keeping: relative path to (size, time of change in ns). Links are none."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if _LEFT_OUT.fullmatch(relative):
                continue
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                found[relative] = (status.st_size, status.st_mtime_ns)
    return found


def built(before: Tree, now: Tree) -> list[str]:
    """The files that were not there before."""
    return sorted(path for path in now if path not in before)


def compiled(paths: list[str]) -> list[str]:
    """Those of them that come from a compiler."""
    return [path for path in paths if _CODE.fullmatch(path)]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
