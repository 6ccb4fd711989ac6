"""The lines of vLLM that tell how far a start has come. Pure.

vLLM 0.28 to 0.33. Their own clock has whole seconds, so a line counts when it arrives. A line sets the mark whose words
stand in it first: what follows them may be a model's name or a configuration, and hold any words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = r"[0-9][0-9,]*(?:\.[0-9]+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point that a start passes.

    Attributes:
        name: In a word.
        lines: What vLLM prints there: a regular expression.
        last: Whether it is passed when the last process of several prints it (their work ends), and not when the first
            one does (their work begins).
    """

    name: str
    lines: str
    last: bool = False


# In the order in which a start passes them.
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
_LAST = {mark.name: mark.last for mark in MARKS}
_ANY = re.compile("|".join(f"(?P<{mark.name}>{mark.lines})" for mark in MARKS))
_COMPILE_SECONDS = re.compile(rf"torch\.compile (?:and .* together )?(?:took|takes) ({_NUMBER}) s")

_LOADED = re.compile(r"Directly load (?:the compiled graph\(s\)|AOT compilation)")
_COMPILED = re.compile(r"Compiling a graph for |saved AOT compiled function to ")

# What vLLM says of itself, for the record: name and line.
_FIGURES = (
    ("model_init_seconds", re.compile(rf"Initializing model took ({_NUMBER}) seconds")),
    ("weights_seconds", re.compile(rf"Loading weights took ({_NUMBER}) seconds")),
    ("model_loading_seconds", re.compile(rf"Model loading took .* and ({_NUMBER}) seconds")),
    ("dynamo_seconds", re.compile(rf"Dynamo bytecode transform time: ({_NUMBER}) s")),
    ("torch_compile_seconds", _COMPILE_SECONDS),
    ("graph_capture_seconds", re.compile(rf"Graph capturing finished in ({_NUMBER}) secs")),
    ("init_engine_seconds", re.compile(rf"init engine \(.*?\) took ({_NUMBER}) s")),
    ("compilation_seconds", re.compile(rf"init engine \(.*?\) took .*\(compilation: ({_NUMBER}) s")),
    ("kv_cache_tokens", re.compile(rf"KV cache size: ({_NUMBER}) tokens")),
)
# Of the metrics that vLLM exports, those that tell of a start: theirs, and our name for them.
_METRICS = {
    "vllm:time_to_first_token_seconds_sum": "time_to_first_token_seconds",
    "vllm:request_queue_time_seconds_sum": "queue_seconds",
    "vllm:request_prefill_time_seconds_sum": "prefill_seconds",
}


def passed(line: str) -> tuple[str, bool] | None:
    """The mark that a line sets, and whether the last such line counts; None when it sets none."""
    match = _ANY.search(line)
    return (match.lastgroup, _LAST[match.lastgroup]) if match and match.lastgroup else None


def compile_seconds(line: str) -> float | None:
    """How long the compilation took that a line reports the end of."""
    match = _COMPILE_SECONDS.search(line)
    return _number(match[1]) if match else None


def compile_event(line: str) -> str | None:
    """Whether a line says that a graph was "loaded" from the caches, or "compiled"; None for any other."""
    return "loaded" if _LOADED.search(line) else "compiled" if _COMPILED.search(line) else None


def compile_caches(events: set[str], marks: Mapping[str, float]) -> str:
    """What became of the compile caches.

    Args:
        events: All that `compile_event` found.
        marks: Of the start.

    Returns:
        "loaded": all that was needed was in them; "compiled": something was not; "none": nothing is compiled (eager);
        "unknown": it was compiled or loaded without a word of it, as the CPU build does, or the lines did not come.
    """
    if events:
        return "compiled" if "compiled" in events else "loaded"
    if marks.keys() & {"compiling", "compiled"} or "initialised" not in marks:
        return "unknown"
    return "none"


def figures(line: str) -> dict[str, float]:
    """What a line says of its own: name to number, seconds unless the name says otherwise."""
    return {name: _number(match[1]) for name, pattern in _FIGURES if (match := pattern.search(line))}


def metrics(text: str) -> dict[str, float]:
    """What the `/metrics` of a vLLM that was asked for one token tells of it, in seconds; sums over its engines."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        ours = _METRICS.get(name)
        match = re.search(rf"}} ({_NUMBER}(?:e[+-]?\d+)?)$", rest) if ours else None
        if ours and match:
            found[ours] = found.get(ours, 0.0) + _number(match[1])
    return found


def _number(text: str) -> float:
    return float(text.replace(",", ""))
