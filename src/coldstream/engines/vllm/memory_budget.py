"""Whether vLLM will have enough memory, by its own rule, before it starts.

vLLM reserves a share of all memory (of the GPU; with the CPU build, of the machine), and refuses to start when less is
free (`request_memory` in vllm/v1/worker/utils.py, `CPUWorker` in vllm/v1/worker/cpu_worker.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.program import Program
from coldstream.machine import hardware
from coldstream.units import format_bytes

# `CacheConfig.gpu_memory_utilization` of vLLM 0.32 and 0.33. Earlier versions used 0.9, and had no such rule on CPUs.
_UTILIZATION, _UTILIZATION_BEFORE = 0.92, 0.9
_SINCE = (0, 32)


def memory_shortage(program: Program, flags: Flags, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Why vLLM will refuse to start, and a remedy; None when it will start, or when that is unknown.

    Args:
        program: The vLLM.
        flags: The user's.
        environ: Its environment.
    """
    match = re.match(r"(\d+)\.(\d+)", program.version or "")
    is_recent = match is not None and (int(match[1]), int(match[2])) >= _SINCE
    share = _utilization(flags, default=_UTILIZATION if is_recent else _UTILIZATION_BEFORE)
    if program.is_cpu_build:
        if not is_recent or environ.get("VLLM_CPU_KVCACHE_SPACE") or flags.value("--kv-cache-memory-bytes"):
            return None
        memory = [("the memory node", *node)] if (node := hardware.node_memory()) is not None else []
        remedy = "set VLLM_CPU_KVCACHE_SPACE to the size of the KV cache in GiB"
    else:
        memory = _visible(hardware.gpu_memory(), environ)[: flags.ranks]
        remedy = "stop other programs on the GPU, or lower --gpu-memory-utilization"
    for place, total, free in memory:
        if free < (needed := math.ceil(total * share)):
            amounts = f"{format_bytes(needed)} of {place} ({share:.0%}), but only {format_bytes(free)} is free"
            return f"vLLM will not start: it needs {amounts}", remedy
    return None


def _utilization(flags: Flags, *, default: float) -> float:
    for flag in ("--gpu-memory-utilization", "--device-memory-utilization"):
        with suppress(ValueError):
            return float(flags.value(flag) or "")
    return default


def _visible(cards: Sequence[tuple[int, int]], environ: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """Name, total bytes and free bytes of the cards that a program sees, in its order."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    indices = range(len(cards)) if chosen is None else [int(word) for word in chosen.split(",") if word.isdecimal()]
    return [(f"GPU {index}", *cards[index]) for index in indices if index < len(cards)]
