"""vLLM's caches: where vLLM and its compilers keep them, and what they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from coldstream.node.engine_caches import EngineCaches
from coldstream.node.engine_program import release

# Since this version vLLM can keep its measurements of the GPU's memory.
_STARTUP_PLAN_SINCE = (0, 32)


class VllmCaches(EngineCaches):
    """The caches of a vLLM of this version, on a GPU or not."""

    # vLLM's own cache root holds most of what it builds: compiled graphs, facts about model classes, which GPUs reach
    # each other, autotuning, memory plans.
    folders: ClassVar = {
        "VLLM_CACHE_ROOT": "vllm",
        "DG_JIT_CACHE_DIR": "deep_gemm",
    }
    # Downloaded rather than built, and of this machine.
    left_out = r"vllm/assets(/.*)?|vllm/usage_stats\.json"
    code = r"vllm/(torch_compile_cache|deep_gemm)/.*"
    packages = ("vllm",)
    front = """
        allow-credentials allowed-headers allowed-methods allowed-origins api-key api-server-count chat-template
        chat-template-content-format collect-detailed-traces disable-fastapi-docs disable-log-requests disable-log-stats
        disable-uvicorn-access-log download-dir enable-auto-tool-choice enable-force-include-usage enable-log-outputs
        enable-log-requests enable-prompt-tokens-details enable-request-id-headers enable-server-load-tracking
        enable-ssl-refresh enable-tokenizer-info-endpoint exclude-tools-when-tool-choice-none generation-config
        h11-max-header-count h11-max-incomplete-event-size headless hf-token host ignore-patterns kv-events-config
        load-format log-config-file log-error-stack lora-modules max-log-len middleware model-loader-extra-config
        otlp-traces-endpoint override-generation-config port reasoning-parser response-role return-tokens-as-token-ids
        root-path seed served-model-name show-hidden-metrics-for-version shutdown-timeout ssl-ca-certs ssl-cert-reqs
        ssl-certfile ssl-ciphers ssl-keyfile tool-call-parser tool-parser-plugin tool-server trust-request-chat-template
        uds use-tqdm-on-load uvicorn-log-level
    """
    variables = r"VLLM_.+"
    variables_left_out = (
        r"VLLM_(CACHE_ROOT|CONFIG_ROOT|ASSETS_CACHE.*|XLA_CACHE_PATH|LOG.*|NO_USAGE_STATS|DO_NOT_TRACK"
        r"|USAGE_.*|ALLOW_RUNTIME_LORA_UPDATING|PORT|HOST_IP|RPC_.*|API_.*|IMAGE_FETCH.*|VIDEO_.*|AUDIO_.*|MEDIA_.*"
        r"|MAX_AUDIO.*|HTTP_TIMEOUT.*|DP_MASTER.*|DEBUG_LOG.*|SERVER_DEV_MODE|WORKER_MULTIPROC_METHOD"
        r"|ENABLE_V1_MULTIPROCESSING|EXECUTE_MODEL_TIMEOUT.*|ENGINE_.*TIMEOUT.*|RINGBUFFER_.*|CPU_KVCACHE_SPACE|SOURCE.*"
        r"|IMAGE_VERSION|BUILD_.*)"
    )

    def __init__(self, *, gpu: bool = False, version: str = "") -> None:
        self._gpu, self._version = gpu, version

    def environment(self, root: str, environ: Mapping[str, str]) -> dict[str, str]:
        variables = super().environment(root, environ)
        if not self._gpu and "VLLM_USE_AOT_COMPILE" not in environ:
            # On the CPU, vLLM 0.32 saves an artefact that it cannot load, and compiles again; without it, what Inductor
            # keeps does load.
            variables["VLLM_USE_AOT_COMPILE"] = "0"
        is_recent = release(self._version, 2) >= _STARTUP_PLAN_SINCE
        if self._gpu and "VLLM_ENABLE_STARTUP_PLAN" not in environ and is_recent:
            variables["VLLM_ENABLE_STARTUP_PLAN"] = "1"
        return variables
