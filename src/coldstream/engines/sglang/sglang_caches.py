"""SGLang's caches: where SGLang and its compilers keep them, and what they depend on. See docs/sglang.md."""

from __future__ import annotations

from typing import ClassVar

from coldstream.node.engine_caches import EngineCaches


class SglangCaches(EngineCaches):
    """The caches of an SGLang."""

    # As `third_party_cache_defaults` in sglang/srt/environ.py.
    folders: ClassVar = {
        "SGLANG_CACHE_DIR": "sglang",
        "SGLANG_JIT_CACHE_DIR": "sglang/jit",
        "SGLANG_DG_CACHE_DIR": "deep_gemm",
    }
    # Tables made from weights, and copies of models.
    left_out = r"sglang/(ple|model_streamer)/.*"
    code = r"sglang/(jit|cute_aot|torch_compile_cache)/.*"
    packages = ("sglang", "sglang_kernel", "sgl_kernel", "sgl_deep_gemm", "apache_tvm_ffi")
    # Others may cost a compilation that was not needed; none may be a secret.
    front = """
        admin-api-key api-key chat-template enable-cache-report enable-metrics host load-format log-level log-level-http
        port random-seed reasoning-parser served-model-name ssl-certfile ssl-keyfile ssl-keyfile-password
        tool-call-parser watermark-config
    """
    variables = r"(SGLANG|SGL)_.+"
    variables_left_out = (
        r"SGLANG_(CACHE_DIR|JIT_CACHE_DIR|DG_CACHE_DIR|LOG.*|.*PORT|HOST_IP|PLUGINS|.*TIMEOUT.*|HEALTH.*)"
    )
