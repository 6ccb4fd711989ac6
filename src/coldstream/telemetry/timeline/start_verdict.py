"""The verdict on a start, in a line each: what limited the weights, and what took most of the time. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coldstream.telemetry.timeline.phases import UNNAMED, Phase, Span
from coldstream.telemetry.timeline.start_record import Ended, Stream
from coldstream.units import format_seconds

# Shorter waits are the noise of when lines arrive.
_NOISE_SECONDS = 0.05


def verdicts(phases: Sequence[Phase], spans: Sequence[Span], stream: Stream | None, *, loader: str) -> tuple[str, ...]:
    """The two lines of a start that answered; `stream` is None with another loader, or when its report is missing."""
    return f"weights: {_weights(phases, spans, stream, loader)}", f"bottleneck: {_bottleneck(phases)}"


def ending(ended: Ended, weights: str | None) -> tuple[str, ...]:
    """The lines of a start that did not answer: where to look, and the verdict on the weights if they arrived."""
    if ended.outcome == "cancelled":
        where = "cancelled through coldstream: Ctrl-C, a signal or a spot interruption"
    elif ended.reason is not None:
        where = f"reason: {ended.reason}"
    elif ended.signal == "SIGKILL":
        where = "possibly killed by the out-of-memory killer; see the kernel's log"
    else:
        where = "see vLLM's own messages for the reason"
    return (where,) if weights is None else (where, weights)


def _weights(phases: Sequence[Phase], spans: Sequence[Span], stream: Stream | None, loader: str) -> str:
    reading = next((phase for phase in phases if phase.name.partition(" + ")[0] == "weights"), None)
    if stream is None:
        if loader == "coldstream":
            return "no report"
        return f"read by vLLM itself ({loader})" + (f" in {format_seconds(reading.seconds)}" if reading else "")
    span = next((span for span in spans if span.name == "stream"), None)
    if stream.waited_seconds is None or reading is None or span is None:
        return stream.limited_by
    if stream.waited_seconds > _NOISE_SECONDS:
        return f"vLLM waited {format_seconds(stream.waited_seconds)} for them; {stream.limited_by}"
    early = max(0.0, reading.start - span.stop)
    # A stream that is complete before its first reader comes is not limited by the reader.
    why = "" if stream.limit == "consumer" else f"; {stream.limited_by}"
    return f"ready {format_seconds(early)} before vLLM needed them{why}"


def _bottleneck(phases: Sequence[Phase]) -> str:
    groups: dict[str, list[Phase]] = {}
    for phase in phases:
        groups.setdefault(phase.group, []).append(phase)
    total = sum(phase.seconds for phase in phases)
    if not total:
        return "none"
    longest = max(groups, key=lambda group: sum(phase.seconds for phase in groups[group]))
    parts = groups[longest]
    share = f"{100 * sum(phase.seconds for phase in parts) / total:.0f} % of start-up"
    if longest == UNNAMED:
        return f"unknown ({share}); VLLM_LOGGING_LEVEL=INFO makes vLLM report its phases"
    detail = ": " + ", ".join(f"{phase.name} {format_seconds(phase.seconds)}" for phase in parts)
    return f"{longest} ({share}{detail if len(parts) > 1 else ''})"
