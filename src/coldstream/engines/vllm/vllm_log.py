"""What vLLM's output says: how far a start is, and why it failed. Pure.

For vLLM 0.28 to 0.33.
"""

from __future__ import annotations

import re
from dataclasses import replace

from coldstream.node.engine_log import NUMBER, EngineFailure, LogReader, Mark, number
from coldstream.telemetry.timeline.recorder import LogFacts

# In their order in a start.
MARKS = (
    Mark(name="args", lines=r"non-default args: "),
    Mark(name="configured", lines=r"Resolved architecture: "),
    Mark(name="engine", lines=r"Initializing a V1 LLM engine "),
    Mark(name="loading", lines=r"Starting to load model |Loading model from scratch"),
    Mark(name="created", lines=r"Initializing model took "),
    Mark(name="weights", lines=r"Loading weights took ", last=True),
    Mark(name="loaded", lines=r"Model loading took ", last=True),
    Mark(
        name="compiling",
        lines=r"Starting torch\.compile|Warming up model for the compilation|Using cache directory: .* torch\.compile",
    ),
    Mark(
        name="compiled",
        lines=r"torch\.compile (?:and initial profiling/warmup run together )?(?:took|takes) |Warming up done",
        last=True,
    ),
    Mark(name="profiled", lines=r"Initial profiling/warmup run took |Available KV cache memory: ", last=True),
    Mark(name="sized", lines=r"KV cache size: ", last=True),
    Mark(name="captured", lines=r"Graph capturing finished in ", last=True),
    Mark(name="initialised", lines=r"init engine \(profile, create kv cache, warmup model\) took ", last=True),
)
_COMPILE_SECONDS = re.compile(rf"torch\.compile (?:and .* together )?(?:took|takes) ({NUMBER}) s")

_LOADED = re.compile(r"Directly load (?:the compiled graph\(s\)|AOT compilation)")
_COMPILED = re.compile(r"Compiling a graph for |saved AOT compiled function to ")

# Figures that vLLM prints, for the record: our name, and the line.
_FIGURES = (
    ("model_init_seconds", re.compile(rf"Initializing model took ({NUMBER}) seconds")),
    ("weights_seconds", re.compile(rf"Loading weights took ({NUMBER}) seconds")),
    ("model_loading_seconds", re.compile(rf"Model loading took .* and ({NUMBER}) seconds")),
    ("dynamo_seconds", re.compile(rf"Dynamo bytecode transform time: ({NUMBER}) s")),
    ("torch_compile_seconds", _COMPILE_SECONDS),
    ("graph_capture_seconds", re.compile(rf"Graph capturing finished in ({NUMBER}) secs")),
    ("init_engine_seconds", re.compile(rf"init engine \(.*?\) took ({NUMBER}) s")),
    ("compilation_seconds", re.compile(rf"init engine \(.*?\) took .*\(compilation: ({NUMBER}) s")),
    ("kv_cache_tokens", re.compile(rf"KV cache size: ({NUMBER}) tokens")),
)
# Metrics of vLLM that belong to a start: its name, and ours.
_METRICS = {
    "vllm:time_to_first_token_seconds_sum": "time_to_first_token_seconds",
    "vllm:request_queue_time_seconds_sum": "queue_seconds",
    "vllm:request_prefill_time_seconds_sum": "prefill_seconds",
}


_READER = LogReader(MARKS, _FIGURES)


def read_line(line: str) -> LogFacts:
    """What a line says about the start."""
    seconds = _COMPILE_SECONDS.search(line)
    return replace(
        _READER.read_line(line),
        compile_seconds=number(seconds[1]) if seconds else None,
        compile_event="loaded" if _LOADED.search(line) else "compiled" if _COMPILED.search(line) else None,
    )


def metrics(text: str) -> dict[str, float]:
    """What vLLM's `/metrics` says about the first token, in seconds; sums over its engines."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        ours = _METRICS.get(name)
        match = re.search(rf"}} ({NUMBER}(?:e[+-]?\d+)?)$", rest) if ours else None
        if ours and match:
            sums[ours] = sums.get(ours, 0.0) + number(match[1])
    return sums


class FailureReason(EngineFailure):
    """Why vLLM failed."""

    # vLLM's processes put this before each line, and their logs before each line of a traceback.
    prefix = re.compile(r"^(?:\((\S+ pid=\d+)\) )?(?:ERROR \S+ \S+ \[[^]]*\] )?")
    usage = re.compile(r"vllm\b[^:]*: (error: .*)$")
    consequence = re.compile(
        r"Engine core initialization failed|initialization failed due to|[Ss]ee (?:root cause|stack trace)"
    )
    hints = (
        (
            re.compile(r"Load format `?coldstream`? is not supported"),
            "this vLLM cannot find coldstream: install it in vLLM's own environment",
        ),
    )
