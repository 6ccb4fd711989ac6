"""The line of JSON that `serve` prints when vLLM answers, for programs that read its log. Pure.

Its fields are a contract (docs/serve.md): they are only added to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from coldstream.telemetry.timeline.phases import Phase, Seconds, Span, Text
from coldstream.telemetry.timeline.start_record import Timeline

_BEGINNING = '{"coldstream":"ready",'


class ReadyLine(msgspec.Struct, frozen=True, kw_only=True):
    """A start that answered.

    Attributes:
        coldstream: Tells the line from others in a log. Comes first.
        url: Where vLLM answers.
        run: The name of the start's timeline.
        ready_seconds: From the start of the command to the first answer of the health check.
        first_token_seconds: From the start of the command to the first token; None when none came.
    """

    coldstream: Literal["ready"] = "ready"
    url: Text
    run: Text
    model: Text
    ready_seconds: Seconds
    first_token_seconds: Seconds | None
    phases: tuple[Phase, ...]
    spans: tuple[Span, ...]


# Created once: msgspec 0.22 can crash when two threads create the first decoder of a type at the same time.
_DECODER = msgspec.json.Decoder(ReadyLine)


def format_ready_line(timeline: Timeline, url: str) -> str:
    """The line for a start that answered at `url`, without a line break."""
    assert timeline.ready_seconds is not None
    line = ReadyLine(
        url=url,
        run=timeline.run,
        model=timeline.model,
        ready_seconds=timeline.ready_seconds,
        first_token_seconds=timeline.first_token_seconds,
        phases=timeline.phases,
        spans=timeline.spans,
    )
    return msgspec.json.encode(line).decode()


def parse_ready_line(lines: Iterable[str]) -> ReadyLine | None:
    """The last such line of a log; None when it has none. Log collectors may have put a prefix before each line."""
    for line in reversed([*lines]):
        _, beginning, rest = line.partition(_BEGINNING)
        if beginning:
            try:
                return _DECODER.decode(beginning + rest.rstrip())
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                continue
    return None
