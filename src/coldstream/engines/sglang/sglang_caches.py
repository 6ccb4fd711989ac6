"""SGLang's caches: where SGLang and its compilers keep them, and what they depend on. See docs/sglang.md."""

from __future__ import annotations

import re

from coldstream.node.engine_caches import CacheInputs, EngineCaches

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
# Flags of the server's front. Others may cost a compilation that was not needed; none may be a secret.
_FRONT = """
admin-api-key api-key chat-template enable-cache-report enable-metrics host load-format log-level log-level-http port
random-seed reasoning-parser served-model-name ssl-certfile ssl-keyfile ssl-keyfile-password tool-call-parser
watermark-config
"""
_INPUTS = CacheInputs(
    packages=("sglang", "sglang_kernel", "sgl_kernel", "sgl_deep_gemm", "apache_tvm_ffi"),
    parallel=("tensor-parallel", "pipeline-parallel"),
    left_out=frozenset(f"--{name}" for name in _FRONT.split()),
    variables=r"(SGLANG|SGL)_.+",
    variables_left_out=r"SGLANG_(CACHE_DIR|JIT_CACHE_DIR|DG_CACHE_DIR|LOG.*|.*PORT|HOST_IP|PLUGINS|.*TIMEOUT.*|HEALTH.*)",
)


CACHES = EngineCaches(folders=_FOLDERS, left_out=_LEFT_OUT, code=_CODE)
key_parts = _INPUTS.key_parts
