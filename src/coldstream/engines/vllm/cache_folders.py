"""Where vLLM and its compilers keep their caches: one folder each, below one root."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

# Each variable, and its folder below the root. vLLM's own cache root holds most of what it builds: compiled graphs,
# facts about model classes, which GPUs reach each other, autotuning, memory plans.
_FOLDERS = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "DG_JIT_CACHE_DIR": "deep_gemm",
    "TILELANG_CACHE_DIR": "tilelang",
    "CUDA_CACHE_PATH": "cuda",
}
# Since this version vLLM can keep its measurements of the GPU's memory.
_STARTUP_PLAN_SINCE = (0, 32)
# Downloaded rather than built (`assets`), or useful only to the process that made it.
_LEFT_OUT = re.compile(r"vllm/assets(/.*)?|vllm/usage_stats\.json|(.*/)?locks/.*|.*\.(lock|tmp|pid)|.*\.tmp\..*")
# Folders of compiled code: a new file there means that something was compiled.
_CODE = re.compile(r"(inductor|triton|flashinfer|deep_gemm|tilelang|cuda|vllm/torch_compile_cache|vllm/deep_gemm)/.*")


class VllmCaches:
    """See `coldstream.node.inference_engine.CacheLayout`."""

    def __init__(self, *, gpu: bool = False, version: str = "") -> None:
        """Describes the caches of a vLLM.

        Args:
            gpu: Whether it runs on one.
            version: Of vLLM.
        """
        self._gpu, self._version = gpu, version

    def environment(self, root: str, environ: Mapping[str, str]) -> dict[str, str]:
        # A variable that the user set stays, except vLLM's own cache root: `root` is then below it.
        variables = {
            name: os.path.join(root, folder)
            for name, folder in _FOLDERS.items()
            if name == "VLLM_CACHE_ROOT" or not environ.get(name)
        }
        if not self._gpu and "VLLM_USE_AOT_COMPILE" not in environ:
            # On the CPU, vLLM 0.32 saves an artefact that it cannot load, and compiles again; without it, what Inductor
            # keeps does load.
            variables["VLLM_USE_AOT_COMPILE"] = "0"
        if self._gpu and "VLLM_ENABLE_STARTUP_PLAN" not in environ and _release(self._version) >= _STARTUP_PLAN_SINCE:
            variables["VLLM_ENABLE_STARTUP_PLAN"] = "1"
        return variables

    def keeps(self, path: str) -> bool:
        return _LEFT_OUT.fullmatch(path) is None

    def is_compiled(self, path: str) -> bool:
        return _CODE.fullmatch(path) is not None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
