"""SGLang's caches: where SGLang and its compilers keep them, and what they depend on. See docs/sglang.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from coldstream.node.engine_caches import CacheInputs, cache_folders, caches_base_below

# Each variable, and its folder below the root (`third_party_cache_defaults` in sglang/srt/environ.py).
_FOLDERS = {
    "SGLANG_CACHE_DIR": "sglang",
    "SGLANG_JIT_CACHE_DIR": "sglang/jit",
    "SGLANG_DG_CACHE_DIR": "deep_gemm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TILELANG_CACHE_DIR": "tilelang",
    "CUDA_CACHE_PATH": "cuda",
}
# Tables made from weights, copies of models, and what is useful only to the process that made it.
_LEFT_OUT = re.compile(r"sglang/(ple|model_streamer)/.*|(.*/)?locks/.*|.*\.(lock|tmp|pid)|.*\.tmp\..*")
# Folders of compiled code: a new file there means that something was compiled.
_CODE = re.compile(r"(inductor|triton|flashinfer|deep_gemm|tilelang|cuda|sglang/(jit|cute_aot|torch_compile_cache))/.*")
_INPUTS = CacheInputs(
    packages=("sglang", "sglang_kernel", "sgl_kernel", "sgl_deep_gemm", "apache_tvm_ffi"),
    parallel=("tensor-parallel", "pipeline-parallel"),
    # Of the server's front. Others may cost a compilation that was not needed; none may be a secret.
    left_out=frozenset(
        re.findall(
            r"\S+",
            """
    --admin-api-key --api-key --chat-template --download-dir --enable-cache-report --enable-metrics
    --fastapi-root-path --host --load-format --log-level --log-level-http --log-requests --log-requests-level
    --model-loader-extra-config --port --random-seed --reasoning-parser --served-model-name --ssl-ca-certs
    --ssl-certfile --ssl-keyfile --ssl-keyfile-password --tool-call-parser --watermark-config --weight-version
            """,
        )
    ),
    variables=r"(SGLANG|SGL)_.+",
    variables_left_out=r"SGLANG_(CACHE_DIR|JIT_CACHE_DIR|DG_CACHE_DIR|LOG.*|.*PORT|HOST_IP|PLUGINS|.*TIMEOUT.*|HEALTH.*)",
)


@dataclass(frozen=True, slots=True)
class SglangCaches:
    """SGLang's `CacheLayout`."""

    def environment(self, root: str, environ: Mapping[str, str]) -> dict[str, str]:
        return cache_folders(root, _FOLDERS, environ, always="SGLANG_CACHE_DIR")

    def keeps(self, path: str) -> bool:
        return _LEFT_OUT.fullmatch(path) is None

    def is_compiled(self, path: str) -> bool:
        return _CODE.fullmatch(path) is not None


key_parts = _INPUTS.key_parts
caches_base = partial(caches_base_below, "SGLANG_CACHE_DIR")
