"""What the caches of a start depend on, and a name for all of it. Pure.

vLLM hashes its own configuration too, and looks up what it compiled by that; so a key that says too little costs a
download, and one that says too much a compilation. What could make restored code run wrongly must be in it: versions,
the processor's instructions (Inductor compiles for the very machine), the device, and the paths.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Of the key itself: another number, and no old bundle fits.
_VERSION = 1
# Distributions whose version the caches depend on, as their folders in site-packages are named.
PACKAGES = (
    "vllm",
    "torch",
    "triton",
    "pytorch_triton",
    "pytorch_triton_rocm",
    "triton_rocm",
    "triton_cpu",
    "transformers",
    "compressed_tensors",
    "flashinfer_python",
    "flashinfer_cubin",
    "flashinfer_jit_cache",
    "deep_gemm",
    "tilelang",
    "nvidia_cutlass_dsl",
    "quack_kernels",
    "setuptools",
    "numpy",
)
# Flags of `vllm serve` about its front and its files: they change nothing that is compiled, measured or inspected. Some
# hold secrets.
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
        --log-error-stack --max-log-len --middleware --model-loader-extra-config --otlp-traces-endpoint
        --override-generation-config --port --reasoning-parser --response-role --return-tokens-as-token-ids --root-path
        --seed --served-model-name --show-hidden-metrics-for-version --shutdown-timeout --ssl-ca-certs --ssl-cert-reqs
        --ssl-certfile --ssl-ciphers --ssl-keyfile --tool-call-parser --tool-parser-plugin --tool-server
        --trust-request-chat-template --uds --use-tqdm-on-load --uvicorn-log-level
        """,
    )
)
# Variables that vLLM or its compilers read.
_VARIABLES = re.compile(
    r"(VLLM|TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH|TRITON|FLASHINFER|DG|CUDA|NCCL|OMP|ROCM|HIP)_.+"
)
_VARIABLES_FRONT = re.compile(
    r"(VLLM_(CACHE_ROOT|CONFIG_ROOT|ASSETS_CACHE.*|XLA_CACHE_PATH|LOG.*|NO_USAGE_STATS|DO_NOT_TRACK|USAGE_.*"
    r"|PORT|HOST_IP|RPC_.*|API_.*|IMAGE_FETCH.*|VIDEO_.*|AUDIO_.*|MEDIA_.*|MAX_AUDIO.*|HTTP_TIMEOUT.*|DP_MASTER.*"
    r"|DEBUG_LOG.*|SERVER_DEV_MODE|WORKER_MULTIPROC_METHOD|ENABLE_V1_MULTIPROCESSING|EXECUTE_MODEL_TIMEOUT.*|ENGINE_.*TIMEOUT.*"
    r"|RINGBUFFER_.*|CPU_KVCACHE_SPACE|SOURCE.*|IMAGE_VERSION|BUILD_.*)"
    r"|CUDA_(CACHE_.*|VISIBLE_DEVICES|HOME|PATH|VERSION)|NCCL_DEBUG.*|TORCH_(LOGS|TRACE)|TORCHINDUCTOR_CACHE_DIR"
    r"|TRITON_CACHE_DIR|DG_JIT_CACHE_DIR|FLASHINFER_WORKSPACE_BASE|.*(KEY|TOKEN|SECRET|PASSWORD).*)"
)
# How a bundle was built that does not fit; what is missing here is a package.
_BUILT = {
    "model": "for another version of the model",
    "device": "on {theirs} (this is {ours})",
    "processor": "on a processor with other instruction sets",
    "loader": "with --loader {theirs} (this is {ours})",
    "tensor-parallel": "with --tensor-parallel-size {theirs} (this is {ours})",
    "pipeline-parallel": "with --pipeline-parallel-size {theirs} (this is {ours})",
    "caches": "with its caches in {theirs} (here: {ours})",
    "site": "with vLLM in {theirs} (here: {ours})",
}
# Where a flag or a variable begins within its part; a value may hold spaces.
_BEGINS = re.compile(r" (?=--?[A-Za-z]|[A-Z][A-Z0-9_]*=)")
_DIFFERENCES_MAX = 3
_VALUE_MAX = 60
_SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What the caches of a start depend on.

    Attributes:
        parts: Each in words: what `coldstream bundle show` shows. No secret.
    """

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """A name for all parts: 64 hexadecimal digits."""
        text = json.dumps([_VERSION, sorted(self.parts.items())], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, parts: Mapping[str, str]) -> tuple[str, ...]:
        """The names of the parts that are not as in `parts`."""
        return tuple(sorted(n for n in {*self.parts, *parts} if self.parts.get(n) != parts.get(n)))

    def explain(self, parts: Mapping[str, str]) -> str:
        """Tells people how a bundle with `parts` was built that does not fit: "with vllm 0.31.0 (this is 0.32.0)"."""
        built: list[str] = []
        for name in self.differences(parts):
            theirs, ours = parts.get(name, "none"), self.parts.get(name, "none")
            if name in {"arguments", "environment"}:
                built += _changed(theirs, ours)
            else:
                text = _BUILT.get(name, f"with {name} {{theirs}} (this is {{ours}})")
                built.append(text.format(theirs=_short(theirs), ours=_short(ours)))
        more = len(built) - _DIFFERENCES_MAX
        return "; ".join(built[:_DIFFERENCES_MAX]) + (f"; and {more} more differences" if more > 0 else "")


def key_of(
    *,
    model: str,
    loader: str,
    device: str,
    processor: str,
    python: str,
    packages: Mapping[str, str],
    arguments: Sequence[str],
    environ: Mapping[str, str],
    caches: str,
    site: str,
) -> Key:
    """The key of a start.

    Args:
        model: What tells the model's content from any other.
        loader: How vLLM gets the weights: its path to the model, which it hashes, differs with it.
        device: GPUs with capability and driver family, or "cpu".
        processor: Its instruction sets.
        python: Implementation, version and architecture.
        packages: Distribution to version, of vLLM's environment.
        arguments: For `vllm serve`.
        environ: What vLLM is started with.
        caches: The folder below which the caches lie.
        site: Where vLLM is installed: compiled code names its sources by their paths.
    """
    versions = {name.replace("_", "-"): packages[name] for name in PACKAGES if name in packages}
    flags = relevant_arguments(arguments)
    parallel = {name: flags.pop(f"--{name}-size", "1") for name in ("tensor-parallel", "pipeline-parallel")}
    parts = {
        "model": model,
        "loader": loader,
        "device": device,
        "processor": processor,
        "python": python,
        **versions,
        **parallel,
        "arguments": " ".join(f"{flag}={value}" if value else flag for flag, value in sorted(flags.items())),
        "environment": " ".join(f"{name}={value}" for name, value in sorted(_relevant_environ(environ).items())),
        "caches": caches,
        "site": site,
    }
    return Key(parts=parts)


def relevant_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """The flags that may change what is compiled, each with its value; those about the server's front left out."""
    found: dict[str, list[str]] = {}
    flag = ""
    for argument in arguments:
        if re.match(r"--?[A-Za-z]", argument):
            name, equals, value = argument.partition("=")
            flag = _SHORT.get(name) or (name.replace("_", "-") if name.startswith("--") else name)
            # The last one counts, as in vLLM.
            found[flag] = [value] if equals else []
        else:
            found.setdefault(flag, []).append(argument)
    return {flag: " ".join(values) for flag, values in found.items() if flag not in _FRONT}


def _changed(theirs: str, ours: str) -> list[str]:
    """How the flags or the variables of two keys differ."""
    before, now = (dict(item.partition("=")[::2] for item in _BEGINS.split(text) if item) for text in (theirs, ours))
    built = []
    for name in sorted(n for n in {*before, *now} if before.get(n) != now.get(n)):
        if name not in before:
            built.append(f"without {name}")
        elif name not in now:
            built.append(f"with {name} {_short(before[name])}".rstrip() + " (this is without)")
        else:
            built.append(f"with {name} {_short(before[name])} (this is {_short(now[name])})")
    return built


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_MAX else f"{text[: _VALUE_MAX - 1]}…"


def _relevant_environ(environ: Mapping[str, str]) -> dict[str, str]:
    return {n: v for n, v in environ.items() if _VARIABLES.fullmatch(n) and not _VARIABLES_FRONT.fullmatch(n)}
