"""What vLLM's output says: how far a start is, and why it failed. Pure.

For vLLM 0.28 to 0.33. The time stamps of its log have whole seconds, so the time at which a line arrives counts. When
several patterns match a line, the leftmost match wins: behind it may come a model's name or a configuration, with any
words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from coldstream.telemetry.timeline.recorder import LogFacts

_NUMBER = r"[0-9][0-9,]*(?:\.[0-9]+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a start: its name in `coldstream.telemetry.timeline.phases`, and a pattern of what vLLM prints there.

    With `last`, the last of several processes to print it sets the mark (their work ends), otherwise the first (their
    work begins).
    """

    name: str
    lines: str
    last: bool = False


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
_LAST = {mark.name: mark.last for mark in MARKS}
_ANY = re.compile("|".join(f"(?P<{mark.name}>{mark.lines})" for mark in MARKS))
_COMPILE_SECONDS = re.compile(rf"torch\.compile (?:and .* together )?(?:took|takes) ({_NUMBER}) s")

_LOADED = re.compile(r"Directly load (?:the compiled graph\(s\)|AOT compilation)")
_COMPILED = re.compile(r"Compiling a graph for |saved AOT compiled function to ")

# Figures that vLLM prints, for the record: our name, and the line.
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
# Metrics of vLLM that belong to a start: its name, and ours.
_METRICS = {
    "vllm:time_to_first_token_seconds_sum": "time_to_first_token_seconds",
    "vllm:request_queue_time_seconds_sum": "queue_seconds",
    "vllm:request_prefill_time_seconds_sum": "prefill_seconds",
}

# vLLM's processes put this before each line, and their logs before each line of a traceback.
_PREFIX = re.compile(r"^(?:\((\S+ pid=\d+)\) )?(?:ERROR \S+ \S+ \[[^]]*\] )?")
# The last line of a traceback, which no indentation precedes.
_RAISED = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception))\b(?:: (.*))?$")
_USAGE = re.compile(r"vllm\b[^:]*: (error: .*)$")
_UNRECOGNIZED = "error: unrecognized arguments:"
# How a process reports that another one has failed.
_CONSEQUENCE = re.compile(
    r"Engine core initialization failed|initialization failed due to|[Ss]ee (?:root cause|stack trace)"
)
_VALIDATION = re.compile(r"\d+ validation errors? for ")
_UNKNOWN_FORMAT = re.compile(r"Load format `?coldstream`? is not supported")
_REASON_CHARACTERS = 300


def read_line(line: str) -> LogFacts:
    """What a line says about the start."""
    match = _ANY.search(line)
    mark = match.lastgroup if match else None
    seconds = _COMPILE_SECONDS.search(line)
    return LogFacts(
        mark=mark,
        is_last=mark is not None and _LAST[mark],
        compile_seconds=_number(seconds[1]) if seconds else None,
        compile_event="loaded" if _LOADED.search(line) else "compiled" if _COMPILED.search(line) else None,
        figures={name: _number(match[1]) for name, pattern in _FIGURES if (match := pattern.search(line))},
    )


def metrics(text: str) -> dict[str, float]:
    """What vLLM's `/metrics` says about the first token, in seconds; sums over its engines."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        ours = _METRICS.get(name)
        match = re.search(rf"}} ({_NUMBER}(?:e[+-]?\d+)?)$", rest) if ours else None
        if ours and match:
            sums[ours] = sums.get(ours, 0.0) + _number(match[1])
    return sums


def _number(text: str) -> float:
    return float(text.replace(",", ""))


class FailureReason:
    """Reads the output line by line: the first reason of several processes, the outermost of nested exceptions."""

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}
        self._last: tuple[str, str] | None = None
        self._incomplete: str | None = None
        self.hint: str | None = None

    def line(self, text: str) -> None:
        if _UNKNOWN_FORMAT.search(text):
            self.hint = "this vLLM cannot find coldstream: install it in vLLM's own environment"
        match = _PREFIX.match(text)
        process = (match and match[1]) or ""
        if self._incomplete == process:
            self._complete(process, _PREFIX.sub("", text))
            return
        reason = raised(text)
        if reason is None:
            return
        self._last = process, reason
        if _CONSEQUENCE.search(reason) is None:
            self._causes[process] = reason
            if _VALIDATION.search(reason):
                self._incomplete, self._causes[process] = process, ""

    def _complete(self, process: str, text: str) -> None:
        """Adds what pydantic prints below its exception: the field (unless it concerns all), and what is wrong."""
        is_field = not text.startswith(" ")
        message = text.strip().partition(" [type=")[0].removeprefix("Value error, ")
        cause = self._causes[process] + (f"{text.strip()}: " if is_field else message)
        self._causes[process] = cause[:_REASON_CHARACTERS]
        if not is_field:
            self._incomplete = None

    @property
    def text(self) -> str | None:
        if self._last is None:
            return None
        process, reason = self._last
        causes = self._causes
        if _CONSEQUENCE.search(reason):
            # A process that reports another's failure may have logged harmless errors of its own.
            causes = {at: cause for at, cause in causes.items() if at != process} or causes
        return next(iter(causes.values()), reason)


def raised(line: str) -> str | None:
    """The exception at the end of a traceback, or the usage error, in a line of output; None in other lines.

    >>> raised("(Worker pid=7) ERROR 11-28 19:03:58 [multiproc_executor.py:953] ValueError: no such shape")
    'ValueError: no such shape'
    """
    plain = _PREFIX.sub("", line.rstrip())
    if usage := _USAGE.match(plain):
        reason = usage[1]
        if reason.startswith(_UNRECOGNIZED):
            # The value of a misspelt flag may be a secret, and reasons are stored.
            flags = [word.partition("=")[0] for word in reason.removeprefix(_UNRECOGNIZED).split() if word[0] == "-"]
            reason = " ".join([_UNRECOGNIZED, *flags])
        return reason[:_REASON_CHARACTERS]
    match = _RAISED.match(plain)
    if match is None:
        return None
    name, message = match.groups()
    # Our own messages make sense without the class's name.
    return (message if message and name.startswith("coldstream.") else match.group())[:_REASON_CHARACTERS]
