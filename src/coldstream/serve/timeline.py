"""What the start of vLLM spent where: marks in its own lines, by our clock. Pure.

vLLM's lines carry whole seconds; when a line arrives tells more. Processes start one after another, each with an
import of its own, so the marks follow each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Mark, and the line that sets it: vLLM 0.28 to 0.32.
_MARKS = (
    ("api", re.compile(r"Resolved architecture: ")),
    ("engine", re.compile(r"Initializing a V1 LLM engine ")),
    ("worker", re.compile(r"Starting to load model ")),
    ("created", re.compile(r"Initializing model took ")),
    ("weights", re.compile(r"Loading weights took ")),
    ("compiled", re.compile(r"torch\.compile takes |Compiling a graph for .* takes ")),
    ("captured", re.compile(r"Graph capturing finished")),
    ("initialised", re.compile(r"init engine \(profile, create kv cache, warmup model\) took ")),
)
# Phase, the marks that end it in the order of time, and what it is.
_PHASES = (
    ("resolve", "spawned", "find the model, begin its stream"),
    ("api import", "api", "vLLM in the API server"),
    ("engine import", "engine", "and again in the engine"),
    ("worker import", "worker", "and again in the worker"),
    ("model", "created", "layers without weights"),
    ("weights", "weights", "tensors into the layers"),
    ("engine", "initialised", "profile, KV cache, compilation, warm-up"),
    ("server", "ready", "until it answers"),
)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the start.

    Attributes:
        name: In a word or two.
        start: Seconds since the command began.
        stop: The same.
        note: What it is.
    """

    name: str
    start: float
    stop: float
    note: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


class Timeline:
    """Collects the marks of one start. Not thread-safe: one thread reads the lines."""

    def __init__(self, began: float) -> None:
        """Begins.

        Args:
            began: When the command began, by the clock of all other times.
        """
        self._began = began
        self.marks: dict[str, float] = {}

    def mark(self, name: str, now: float) -> None:
        """Sets a mark, the first time."""
        self.marks.setdefault(name, now - self._began)

    def line(self, text: str, now: float) -> None:
        """Looks for a mark in a line of vLLM's."""
        for name, pattern in _MARKS:
            if name not in self.marks and pattern.search(text):
                self.mark(name, now)

    def phases(self) -> list[Phase]:
        """The parts, in order; one whose line did not come is part of the next."""
        return phases_of(self.marks)


def phases_of(marks: Mapping[str, float]) -> list[Phase]:
    """Phases out of marks."""
    found: list[Phase] = []
    start = 0.0
    for name, mark, note in _PHASES:
        if mark not in marks:
            continue
        stop = max(start, marks[mark])
        found.append(Phase(name, start, stop, note))
        start = stop
    return found


def hidden_share(stream_stop: float, marks: Mapping[str, float]) -> float | None:
    """How much of the stream ran while vLLM was busy with something else: 1.0 when nothing waited for it.

    Args:
        stream_stop: When the last byte was there, in seconds since the command began.
        marks: Of the start.
    """
    if "worker" not in marks or stream_stop <= 0:
        return None
    wanted_at = marks.get("created", marks["worker"])
    return min(1.0, wanted_at / stream_stop)
