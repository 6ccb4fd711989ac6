"""What a start spent its time on: marks become phases, and what they mean is said. Pure.

Phases follow each other without a gap or an overlap, from the command to the first token. A phase has a name when the
marks at both of its ends came. Where the mark between two phases is missing, they are one with both names; a longer
stretch without marks has none. What runs beside the phases (the stream, say) is a span.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

SECONDS_MAX = 1e9
TEXT_MAX = 500

Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]
_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
# Shown on terminals and in pages, and may come from anybody: nothing that moves a cursor or turns text around.
Text = Annotated[str, Meta(max_length=TEXT_MAX, pattern=rf"^[^{_CONTROL}]*\Z")]

UNNAMED = "unnamed"
# More phases than that in one stretch say nothing of any of them.
_MERGED_MAX = 2
_IMPORTS = "imports"


@dataclass(frozen=True, slots=True)
class PhaseKind:
    """A phase that a start may have.

    Attributes:
        mark: The one that ends it; the mark of the one before begins it.
        name: In a word or two.
        group: What it counts as when the verdict is given.
        note: What happens in it.
        always: Whether every start has it, so that a missing mark was missed.
    """

    mark: str
    name: str
    group: str
    note: str
    always: bool = True


PHASE_KINDS = (
    PhaseKind("commanded", "command", "command", "Python started, coldstream imported", always=False),
    PhaseKind("downloaded", "download", "download", "the weights, before vLLM starts", always=False),
    PhaseKind("spawned", "resolve", "resolve", "find the model, begin its stream"),
    PhaseKind("args", "api import", _IMPORTS, "vLLM in the API server"),
    PhaseKind("configured", "config", "config", "the model looked at, the engine configured"),
    PhaseKind("engine", "engine spawn", _IMPORTS, "a process, and vLLM again"),
    PhaseKind("loading", "worker spawn", _IMPORTS, "another, and vLLM again; the device"),
    PhaseKind("created", "model init", "model init", "layers without weights"),
    PhaseKind("weights", "weights", "weights", "tensors into the layers"),
    PhaseKind("loaded", "post-load", "post-load", "weights repacked", always=False),
    PhaseKind("compiling", "set-up", "set-up", "until the first run", always=False),
    PhaseKind("compiled", "compile", "compile", "compiled, or loaded from the caches", always=False),
    PhaseKind("profiled", "profile", "warm-up", "memory measured", always=False),
    PhaseKind("sized", "KV cache", "warm-up", "its size settled", always=False),
    PhaseKind("captured", "graph capture", "graph capture", "kernels warmed up, graphs captured", always=False),
    PhaseKind("initialised", "warm-up", "warm-up", "caches allocated, first runs"),
    PhaseKind("ready", "API ready", "API", "until it answers"),
    PhaseKind("first token", "first token", "first token", "asked for once it answered", always=False),
)
SPANS = ("manifest", "connect", "stream", "bundle")
# Without any of these between them, weights and warm-up have all of the engine's work between them.
_INSIDE = ("loaded", "compiling", "compiled", "profiled", "sized", "captured")
_ENGINE_INIT = PhaseKind("initialised", "engine init", "warm-up", "memory measured, caches allocated, first runs")
PHASES = (*(kind.name for kind in PHASE_KINDS), _ENGINE_INIT.name, UNNAMED)
_COMPILE_NOTES = {"loaded": "loaded from the caches", "compiled": "compiled anew"}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What happened beside the phases, and at the same time.

    Attributes:
        name: One of `SPANS`; others may come.
        start: Seconds since the command began.
        stop: The same.
        note: What it was.
    """

    name: Text
    start: Seconds
    stop: Seconds
    note: Text = ""

    def __post_init__(self) -> None:
        if self.stop < self.start:
            raise ValueError(f"{self.name} ends before it begins")

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


class Phase(Span, frozen=True, kw_only=True):
    """A part of the start: a span like it, but phases follow each other.

    Attributes:
        name: In a word or two; "unnamed" when it is not known what happened.
        group: What it counts as when it is said what the start was limited by.
    """

    group: Text = ""

    @property
    def is_named(self) -> bool:
        """Whether it is known what happened."""
        return self.name != UNNAMED


def clean(text: str) -> str:
    """Any text as a `Text`."""
    return re.sub(rf"[{_CONTROL}\ud800-\udfff]", "?", text)[:TEXT_MAX]


def phases_of(marks: Mapping[str, float], *, compiled: str = "unknown", ended: float | None = None) -> list[Phase]:
    """Phases out of marks.

    Args:
        marks: Name to seconds since the command began.
        compiled: See `compile_caches`.
        ended: When vLLM ended before the start was over, the same; then the last phase is the one that it ended in.

    Returns:
        They touch each other, and begin at 0.
    """
    found: list[Phase] = []
    missed: list[PhaseKind] = []
    start = 0.0
    for kind in _expected(marks):
        missed.append(kind)
        if kind.mark not in marks:
            continue
        # Of several ranks one may begin with the next thing before another has ended the last one.
        stop = max(start, marks[kind.mark])
        if stop > start:
            found.append(_phase(missed, start, stop, compiled))
        missed.clear()
        start = stop
    if ended is not None:
        found.append(_last(missed[0] if missed else PHASE_KINDS[-1], start, max(start, ended)))
    return found


def under_way(marks: Mapping[str, float], now: float) -> Phase:
    """The phase that a start is in, which is not over: the next one that every start has.

    Args:
        marks: Name to seconds since the command began.
        now: The same.
    """
    kinds = [*_expected(marks)]
    passed = [place for place, kind in enumerate(kinds) if kind.mark in marks]
    kind = kinds[min(passed[-1] + 1, len(kinds) - 1) if passed else 0]
    start = max(marks.values(), default=0.0)
    return Phase(name=kind.name, start=start, stop=max(start, now), note=kind.note, group=kind.group)


def _last(kind: PhaseKind, start: float, stop: float) -> Phase:
    """The phase that every start comes to next, of whose end no line tells: another may have begun in it."""
    note = f"ended in it; {kind.note}"
    if kind.mark == "args":
        note += "; no line of vLLM's had come"
    return Phase(name=kind.name, start=start, stop=stop, note=note, group=kind.group)


def _expected(marks: Mapping[str, float]) -> Iterator[PhaseKind]:
    detailed = any(mark in marks for mark in _INSIDE)
    compiles = marks.keys() & {"compiling", "compiled"}
    for kind in PHASE_KINDS:
        if kind.always or kind.mark in marks or (compiles and kind.mark in {"compiling", "compiled"}):
            yield _ENGINE_INIT if kind.mark == "initialised" and not detailed else kind


def _phase(kinds: Sequence[PhaseKind], start: float, stop: float, compiled: str) -> Phase:
    if len(kinds) > _MERGED_MAX:
        note = "the lines that would tell did not come"
        return Phase(name=UNNAMED, start=start, stop=stop, note=note, group=UNNAMED)
    notes = [_COMPILE_NOTES.get(compiled, kind.note) if kind.mark == "compiled" else kind.note for kind in kinds]
    groups = dict.fromkeys(kind.group for kind in kinds)
    return Phase(
        name=" + ".join(kind.name for kind in kinds),
        start=start,
        stop=stop,
        note="; ".join(filter(None, notes)),
        group=" + ".join(groups),
    )


def named_share(phases: Sequence[Phase]) -> float:
    """How much of the time is known by name: 1.0 when all of it is."""
    total = sum(phase.seconds for phase in phases)
    return sum(phase.seconds for phase in phases if phase.is_named) / total if total else 1.0


def hidden_share(start: float, stop: float, marks: Mapping[str, float]) -> float | None:
    """How much of the stream ran while vLLM was busy with something else: 1.0 when nothing waited for it.

    Args:
        start: When the stream began, in seconds since the command began.
        stop: When the last byte was there.
        marks: Of the start.
    """
    wanted = wanted_at(marks)
    if wanted is None or stop < start:
        return None
    return 1.0 if stop <= wanted else max(0.0, wanted - start) / (stop - start)


def waited_seconds(stop: float, marks: Mapping[str, float]) -> float | None:
    """How long vLLM took weights while they were still coming.

    Args:
        stop: When the last byte was there, in seconds since the command began.
        marks: Of the start.
    """
    wanted = wanted_at(marks)
    if wanted is None:
        return None
    return max(0.0, min(stop, marks.get("weights", stop)) - wanted)


def wanted_at(marks: Mapping[str, float]) -> float | None:
    """When vLLM began to take the weights; None when its lines do not tell."""
    return marks.get("created", marks.get("loading"))
