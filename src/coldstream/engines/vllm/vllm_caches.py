"""vLLM's caches: where vLLM and its compilers keep them, and what they depend on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from coldstream.node.engine_caches import CacheInputs, EngineCaches

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
_INPUTS = CacheInputs(
    packages=("vllm",),
    parallel=("tensor-parallel", "pipeline-parallel"),
    left_out=_FRONT,
    variables=r"VLLM_.+",
    variables_left_out=r"VLLM_(CACHE_ROOT|CONFIG_ROOT|ASSETS_CACHE.*|XLA_CACHE_PATH|LOG.*|NO_USAGE_STATS|DO_NOT_TRACK"
    r"|USAGE_.*|ALLOW_RUNTIME_LORA_UPDATING|PORT|HOST_IP|RPC_.*|API_.*|IMAGE_FETCH.*|VIDEO_.*|AUDIO_.*|MEDIA_.*|MAX_AUDIO.*"
    r"|HTTP_TIMEOUT.*|DP_MASTER.*|DEBUG_LOG.*|SERVER_DEV_MODE|WORKER_MULTIPROC_METHOD|ENABLE_V1_MULTIPROCESSING"
    r"|EXECUTE_MODEL_TIMEOUT.*|ENGINE_.*TIMEOUT.*|RINGBUFFER_.*|CPU_KVCACHE_SPACE|SOURCE.*|IMAGE_VERSION|BUILD_.*)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmCaches(EngineCaches):
    """The `CacheLayout` of a vLLM of this version, on a GPU or not."""

    folders: Mapping[str, str] = field(default_factory=lambda: _FOLDERS)
    left_out: re.Pattern[str] = _LEFT_OUT
    code: re.Pattern[str] = _CODE
    gpu: bool = False
    version: str = ""

    def environment(self, root: str, environ: Mapping[str, str]) -> dict[str, str]:
        variables = EngineCaches.environment(self, root, environ)
        if not self.gpu and "VLLM_USE_AOT_COMPILE" not in environ:
            # On the CPU, vLLM 0.32 saves an artefact that it cannot load, and compiles again; without it, what Inductor
            # keeps does load.
            variables["VLLM_USE_AOT_COMPILE"] = "0"
        release = tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])
        if self.gpu and "VLLM_ENABLE_STARTUP_PLAN" not in environ and release >= _STARTUP_PLAN_SINCE:
            variables["VLLM_ENABLE_STARTUP_PLAN"] = "1"
        return variables


key_parts = _INPUTS.key_parts
caches_base = VllmCaches().base
