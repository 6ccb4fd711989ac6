"""What the weights were limited by, and what the whole start was: a line for each. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coldstream.telemetry.timeline.phases import UNNAMED, Phase, Span
from coldstream.telemetry.timeline.start_record import Ended, Stream
from coldstream.units import format_seconds

# What is shorter is the noise of the lines' arrival.
_NOTHING_SECONDS = 0.05


def verdicts(phases: Sequence[Phase], spans: Sequence[Span], stream: Stream | None, *, loader: str) -> tuple[str, ...]:
    """The two lines.

    Args:
        phases: Of the start.
        spans: Beside them.
        stream: Of the weights; None with another loader, or when it is not known.
        loader: That was used.
    """
    return _weights(phases, spans, stream, loader), _start(phases)


def ending(ended: Ended, weights: str | None) -> tuple[str, ...]:
    """The lines of a start that was not over: where to look, rather than what took how long.

    Args:
        ended: How.
        weights: The line of the weights; None when their stream was not over either.
    """
    if ended.outcome == "cancelled":
        where = "it was ended through coldstream: Ctrl-C, a signal, or the cloud that takes the machine"
    elif ended.reason is not None:
        where = f"reason: {ended.reason}"
    elif ended.signal == "SIGKILL":
        where = "was it the out-of-memory killer? the kernel's log tells"
    else:
        where = "vLLM's own messages tell why"
    return (where,) if weights is None else (where, weights)


def _weights(phases: Sequence[Phase], spans: Sequence[Span], stream: Stream | None, loader: str) -> str:
    taking = next((phase for phase in phases if phase.name.partition(" + ")[0] == "weights"), None)
    if stream is None:
        took = f", {format_seconds(taking.seconds)}" if taking else ""
        return (
            f"the weights: read by vLLM itself ({loader}){took}" if loader != "coldstream" else "the weights: no report"
        )
    span = next((span for span in spans if span.name == "stream"), None)
    if stream.waited_seconds is None or taking is None or span is None:
        return f"the weights: {stream.limited_by}"
    if stream.waited_seconds > _NOTHING_SECONDS:
        return f"the weights: vLLM waited {format_seconds(stream.waited_seconds)} for them; {stream.limited_by}"
    if stream.limit == "consumer":
        # A stream that ends before anybody reads it is not limited by who will.
        early = format_seconds(max(0.0, taking.start - span.stop))
        return f"the weights: limited by nothing, there {early} before vLLM took them"
    return f"the weights: {stream.limited_by}; nothing waited for them"


def _start(phases: Sequence[Phase]) -> str:
    groups: dict[str, list[Phase]] = {}
    for phase in phases:
        groups.setdefault(phase.group, []).append(phase)
    total = sum(phase.seconds for phase in phases)
    if not total:
        return "the start: no time passed"
    longest = max(groups, key=lambda group: sum(phase.seconds for phase in groups[group]))
    parts = groups[longest]
    share = sum(phase.seconds for phase in parts) / total
    if longest == UNNAMED:
        return f"the start: {share:.0%} of it has no name; vLLM tells at VLLM_LOGGING_LEVEL=INFO"
    of = f" ({', '.join(f'{phase.name} {format_seconds(phase.seconds)}' for phase in parts)})" if len(parts) > 1 else ""
    return f"the start: {longest}, {share:.0%} of it{of}"
