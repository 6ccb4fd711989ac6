"""vLLM's caches: where vLLM and its compilers keep them, one folder each below one root, and what they depend on.

vLLM also hashes its own configuration and looks up compiled graphs by the hash, so a key that says too little costs a
download, and one that says too much costs a compilation. Whatever could make restored code run incorrectly has to be in
it: versions, flags, variables, and where vLLM is installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coldstream.cache.cache import cache_of
from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.program import Program
from coldstream.machine.disk import private_root
from coldstream.model.names import expanded
from coldstream.settings import Settings

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
# Distributions whose versions the caches depend on, named as their folders in site-packages.
_PACKAGES = re.findall(
    r"[a-z_]+",
    """
    vllm torch triton pytorch_triton pytorch_triton_rocm triton_rocm triton_cpu transformers compressed_tensors
    flashinfer_python flashinfer_cubin flashinfer_jit_cache deep_gemm tilelang nvidia_cutlass_dsl quack_kernels
    setuptools numpy
    """,
)
# Flags about the server's front and its files: they change nothing that is compiled, measured or inspected. Some hold
# secrets.
_FRONT = frozenset(
    re.findall(
        r"\S+",
        """
    --allow-credentials --allowed-headers --allowed-methods --allowed-origins --api-key --api-server-count
    --chat-template --chat-template-content-format --collect-detailed-traces --disable-fastapi-docs
    --disable-log-requests --disable-log-stats --disable-uvicorn-access-log --download-dir --enable-auto-tool-choice
    --enable-force-include-usage --enable-log-outputs --enable-log-requests --enable-prompt-tokens-details
    --enable-request-id-headers --enable-server-load-tracking --enable-ssl-refresh --enable-tokenizer-info-endpoint
    --exclude-tools-when-tool-choice-none --generation-config --h11-max-header-count --h11-max-incomplete-event-size
    --headless --hf-token --host --ignore-patterns --kv-events-config --load-format --log-config-file
    --log-error-stack --lora-modules --max-log-len --middleware --model-loader-extra-config --otlp-traces-endpoint
    --override-generation-config --port --reasoning-parser --response-role --return-tokens-as-token-ids --root-path
    --seed --served-model-name --show-hidden-metrics-for-version --shutdown-timeout --ssl-ca-certs --ssl-cert-reqs
    --ssl-certfile --ssl-ciphers --ssl-keyfile --tool-call-parser --tool-parser-plugin --tool-server
    --trust-request-chat-template --uds --use-tqdm-on-load --uvicorn-log-level
        """,
    )
)
# Variables that vLLM and its compilers read.
_VARIABLES = re.compile(
    r"(VLLM|TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH|TRITON|FLASHINFER|DG|CUDA|NCCL|OMP|ROCM|HIP)_.+"
)
_VARIABLES_FRONT = re.compile(
    r"(VLLM_(CACHE_ROOT|CONFIG_ROOT|ASSETS_CACHE.*|XLA_CACHE_PATH|LOG.*|NO_USAGE_STATS|DO_NOT_TRACK|USAGE_.*"
    r"|ALLOW_RUNTIME_LORA_UPDATING|PORT|HOST_IP|RPC_.*|API_.*|IMAGE_FETCH.*|VIDEO_.*|AUDIO_.*|MEDIA_.*|MAX_AUDIO.*|HTTP_TIMEOUT.*|DP_MASTER.*"
    r"|DEBUG_LOG.*|SERVER_DEV_MODE|WORKER_MULTIPROC_METHOD|ENABLE_V1_MULTIPROCESSING|EXECUTE_MODEL_TIMEOUT.*|ENGINE_.*TIMEOUT.*"
    r"|RINGBUFFER_.*|CPU_KVCACHE_SPACE|SOURCE.*|IMAGE_VERSION|BUILD_.*)"
    r"|CUDA_(CACHE_.*|VISIBLE_DEVICES|HOME|PATH|VERSION)|NCCL_DEBUG.*|TORCH_(LOGS|TRACE)|TORCHINDUCTOR_CACHE_DIR"
    r"|TRITON_CACHE_DIR|DG_JIT_CACHE_DIR|FLASHINFER_WORKSPACE_BASE|.*(KEY|TOKEN|SECRET|PASSWORD).*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmCaches:
    """The `CacheLayout` of a vLLM of this version, on a GPU or not."""

    gpu: bool = False
    version: str = ""

    def environment(self, root: str, environ: Mapping[str, str]) -> dict[str, str]:
        # A variable that the user set stays, except vLLM's own cache root: `root` is then below it.
        variables = {
            name: os.path.join(root, folder)
            for name, folder in _FOLDERS.items()
            if name == "VLLM_CACHE_ROOT" or not environ.get(name)
        }
        if not self.gpu and "VLLM_USE_AOT_COMPILE" not in environ:
            # On the CPU, vLLM 0.32 saves an artefact that it cannot load, and compiles again; without it, what Inductor
            # keeps does load.
            variables["VLLM_USE_AOT_COMPILE"] = "0"
        release = tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])
        if self.gpu and "VLLM_ENABLE_STARTUP_PLAN" not in environ and release >= _STARTUP_PLAN_SINCE:
            variables["VLLM_ENABLE_STARTUP_PLAN"] = "1"
        return variables

    def keeps(self, path: str) -> bool:
        return _LEFT_OUT.fullmatch(path) is None

    def is_compiled(self, path: str) -> bool:
        return _CODE.fullmatch(path) is not None


def key_parts(program: Program, flags: Flags, environ: Mapping[str, str]) -> dict[str, str]:
    """The parts of the key that depend on vLLM, its flags and its environment."""
    versions = {name.replace("_", "-"): program.packages[name] for name in _PACKAGES if name in program.packages}
    relevant = {flag: " ".join(values) for flag, values in flags.values.items() if flag not in _FRONT}
    parallel = {name: relevant.pop(f"--{name}-size", "1") for name in ("tensor-parallel", "pipeline-parallel")}
    variables = {
        name: value
        for name, value in environ.items()
        if _VARIABLES.fullmatch(name) and not _VARIABLES_FRONT.fullmatch(name)
    }
    return {
        "python": program.python,
        **versions,
        **parallel,
        "arguments": " ".join(f"{flag}={value}" if value else flag for flag, value in sorted(relevant.items())),
        "environment": " ".join(f"{name}={value}" for name, value in sorted(variables.items())),
        # Compiled code names its sources by their paths.
        "site": program.site,
    }


def caches_base(settings: Settings, environ: Mapping[str, str]) -> Path:
    """The folder with the caches of all starts on this node: below vLLM's own cache root when the user chose one."""
    chosen = environ.get("VLLM_CACHE_ROOT")
    if chosen:
        return private_root(expanded(chosen).absolute()) / "coldstream/bundles"
    return cache_of(settings).root / "bundles"
