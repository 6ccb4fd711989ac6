"""Whether vLLM will find the memory that it asks for: its own rule, before it starts.

vLLM asks for a share of all memory, of the GPU or with its CPU build of the machine, and refuses to start when less is
free (`request_memory` in vllm/v1/worker/utils.py, `CPUWorker` in vllm/v1/worker/cpu_worker.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from coldstream.engines.vllm.flags import number_of, value_of
from coldstream.engines.vllm.program import Program
from coldstream.machine import hardware
from coldstream.units import format_bytes

# `CacheConfig.gpu_memory_utilization` of vLLM 0.32 and 0.33; earlier ones took 0.9, and on CPUs had no such rule.
_UTILIZATION, _UTILIZATION_BEFORE = 0.92, 0.9
_SINCE = (0, 32)


def memory_shortage(program: Program, arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Why vLLM will refuse to start, and what helps; None when it will not, or when that cannot be told.

    Args:
        program: The vLLM.
        arguments: For `vllm serve`.
        environ: That it runs with.
    """
    match = re.match(r"(\d+)\.(\d+)", program.version or "")
    is_recent = match is not None and (int(match[1]), int(match[2])) >= _SINCE
    share = _utilization(arguments, default=_UTILIZATION if is_recent else _UTILIZATION_BEFORE)
    if program.is_cpu_build:
        if not is_recent or environ.get("VLLM_CPU_KVCACHE_SPACE") or value_of(arguments, "--kv-cache-memory-bytes"):
            return None
        memory = [("the memory node", *node)] if (node := hardware.node_memory()) is not None else []
        remedy = "set VLLM_CPU_KVCACHE_SPACE to the size of the KV cache in GiB"
    else:
        memory = _visible(hardware.gpu_memory(), environ)[: _ranks(arguments)]
        remedy = "end what uses the GPU, or lower --gpu-memory-utilization"
    for place, total, free in memory:
        if free < (needed := math.ceil(total * share)):
            amounts = f"{format_bytes(needed)} of {place} ({share:.0%}), and {format_bytes(free)} is free"
            return f"vLLM will not start: it asks for {amounts}", remedy
    return None


def _ranks(arguments: Sequence[str]) -> int:
    return number_of(arguments, "--tensor-parallel-size") * number_of(arguments, "--pipeline-parallel-size")


def _utilization(arguments: Sequence[str], *, default: float) -> float:
    for flag in ("--gpu-memory-utilization", "--device-memory-utilization"):
        with suppress(ValueError):
            return float(value_of(arguments, flag) or "")
    return default


def _visible(cards: Sequence[tuple[int, int]], environ: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """Name, total and free bytes of the cards that a program sees, in its order."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    indices = range(len(cards)) if chosen is None else [int(word) for word in chosen.split(",") if word.isdecimal()]
    return [(f"GPU {index}", *cards[index]) for index in indices if index < len(cards)]
