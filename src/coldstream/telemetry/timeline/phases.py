"""Where start-up time went: turns marks into phases. Pure.

Phases follow each other without gaps. When the mark between two phases is missing, they are one phase with both names;
a longer stretch without marks is unnamed. What runs beside the phases, such as the stream, is a span.
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
# Shown on terminals and in pages, from untrusted files: without characters that move the cursor or reverse text.
Text = Annotated[str, Meta(max_length=TEXT_MAX, pattern=rf"^[^{_CONTROL}]*\Z")]

UNNAMED = "unnamed"
# A stretch with more phases than this says nothing about any of them.
_MERGED_MAX = 2
_IMPORTS = "imports"


@dataclass(frozen=True, slots=True)
class PhaseKind:
    """A phase that a start may have."""

    mark: str  # the mark at its end; it begins at the mark of the phase before
    name: str
    group: str  # what it counts as in the verdict
    note: str  # what happens in it
    always: bool = True  # whether every start has it, so that its mark can be missing

    def phase(self, start: float, stop: float, note: str) -> Phase:
        """Such a phase of one start."""
        return Phase(name=self.name, start=start, stop=stop, note=note, group=self.group)


PHASE_KINDS = (
    PhaseKind("fetched", "runtime fetch", "runtime", "download the runtime to a bare node", always=False),
    PhaseKind("provided", "runtime", "runtime", "mount or unpack it", always=False),
    PhaseKind("commanded", "command", "command", "start Python, import coldstream", always=False),
    PhaseKind("downloaded", "download", "download", "download the weights before vLLM starts", always=False),
    PhaseKind("spawned", "resolve", "resolve", "find the model, start the stream"),
    PhaseKind("args", "api import", _IMPORTS, "import vLLM in the API server"),
    PhaseKind("configured", "config", "config", "inspect the model, configure the engine"),
    PhaseKind("engine", "engine spawn", _IMPORTS, "a process that imports vLLM again"),
    PhaseKind("loading", "worker spawn", _IMPORTS, "another process that imports vLLM; the device"),
    PhaseKind("created", "model init", "model init", "create layers without weights"),
    PhaseKind("weights", "weights", "weights", "copy tensors into the layers"),
    PhaseKind("loaded", "post-load", "post-load", "repack weights", always=False),
    PhaseKind("compiling", "set-up", "set-up", "until the first run", always=False),
    PhaseKind("compiled", "compile", "compile", "compile, or load from the caches", always=False),
    PhaseKind("profiled", "profile", "warm-up", "measure memory", always=False),
    PhaseKind("sized", "KV cache", "warm-up", "determine its size", always=False),
    PhaseKind("captured", "graph capture", "graph capture", "warm up kernels, capture graphs", always=False),
    PhaseKind("initialised", "warm-up", "warm-up", "allocate caches, first runs"),
    PhaseKind("ready", "API ready", "API", "until the health check answers"),
    PhaseKind("first token", "first token", "first token", "requested once vLLM answers", always=False),
)
_RUNTIME_SPANS = ("runtime fetch", "runtime mount", "runtime unpack")
SPANS = ("manifest", "connect", "stream", "draft", "adapters", "bundle", *_RUNTIME_SPANS)
# If none of these marks came, all of the engine's work is between weights and warm-up.
_INSIDE = ("loaded", "compiling", "compiled", "profiled", "sized", "captured")
_ENGINE_INIT = PhaseKind("initialised", "engine init", "warm-up", "measure memory, allocate caches, first runs")
PHASES = (*(kind.name for kind in PHASE_KINDS), _ENGINE_INIT.name, UNNAMED)
_COMPILE_NOTES = {"loaded": "loaded from the caches", "compiled": "compiled"}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Something that ran beside the phases, in seconds since the command began; `name` is not always in `SPANS`."""

    name: Text
    start: Seconds
    stop: Seconds
    note: Text = ""

    def __post_init__(self) -> None:
        if self.stop < self.start:
            raise ValueError(f"{self.name} ends before it begins")

    @property
    def seconds(self) -> float:
        return self.stop - self.start


class Phase(Span, frozen=True, kw_only=True):
    """A part of the start, named `UNNAMED` when it is unknown what happened; `group` as in `PhaseKind`."""

    group: Text = ""

    @property
    def is_named(self) -> bool:
        return self.name != UNNAMED


def clean(text: str) -> str:
    """Any text as a `Text`."""
    return re.sub(rf"[{_CONTROL}\ud800-\udfff]", "?", text)[:TEXT_MAX]


def phases_of(marks: Mapping[str, float], *, compiled: str = "unknown", ended: float | None = None) -> list[Phase]:
    """The phases between marks, which are in seconds since the command began; for `compiled` see `Timeline`.

    If the engine exited before the start was over, at `ended`, the last phase is the one in which it exited.
    """
    phases: list[Phase] = []
    missed: list[PhaseKind] = []
    start = 0.0
    for kind in _expected(marks):
        missed.append(kind)
        if kind.mark not in marks:
            continue
        # One rank may begin the next phase before another has ended this one.
        stop = max(start, marks[kind.mark])
        if stop > start:
            phases.append(_phase(missed, start, stop, compiled))
        missed.clear()
        start = stop
    if ended is not None:
        # Another phase, which not every start has, may have begun without a line in the log.
        kind = missed[0] if missed else PHASE_KINDS[-1]
        silent = "; vLLM had printed nothing" if kind.mark == "args" else ""
        phases.append(kind.phase(start, max(start, ended), f"exited in this phase; {kind.note}{silent}"))
    return phases


def under_way(marks: Mapping[str, float], now: float) -> Phase:
    """The phase that a start is in at `now`: the next one that every start has."""
    kinds = [*_expected(marks)]
    passed = [place for place, kind in enumerate(kinds) if kind.mark in marks]
    kind = kinds[min(passed[-1] + 1, len(kinds) - 1) if passed else 0]
    start = max(marks.values(), default=0.0)
    return kind.phase(start, max(start, now), kind.note)


def _expected(marks: Mapping[str, float]) -> Iterator[PhaseKind]:
    detailed = any(mark in marks for mark in _INSIDE)
    compiles = marks.keys() & {"compiling", "compiled"}
    for kind in PHASE_KINDS:
        if kind.always or kind.mark in marks or (compiles and kind.mark in {"compiling", "compiled"}):
            yield _ENGINE_INIT if kind.mark == "initialised" and not detailed else kind


def _phase(kinds: Sequence[PhaseKind], start: float, stop: float, compiled: str) -> Phase:
    if len(kinds) > _MERGED_MAX:
        note = "the log has no lines about it"
        return Phase(name=UNNAMED, start=start, stop=stop, note=note, group=UNNAMED)
    notes = [_COMPILE_NOTES.get(compiled, kind.note) if kind.mark == "compiled" else kind.note for kind in kinds]
    name = " + ".join(kind.name for kind in kinds)
    group = " + ".join(dict.fromkeys(kind.group for kind in kinds))
    return Phase(name=name, start=start, stop=stop, note="; ".join(notes), group=group)


def named_share(phases: Sequence[Phase]) -> float:
    """The share of the time with known phases, up to 1.0."""
    total = sum(phase.seconds for phase in phases)
    return sum(phase.seconds for phase in phases if phase.is_named) / total if total else 1.0


def hidden_share(start: float, stop: float, marks: Mapping[str, float]) -> float | None:
    """The share of the stream that ran while vLLM was busy with something else; None when its log does not say."""
    needed = _needed_at(marks)
    if needed is None or stop < start:
        return None
    return 1.0 if stop <= needed else max(0.0, needed - start) / (stop - start)


def waited_seconds(stop: float, marks: Mapping[str, float]) -> float | None:
    """How long vLLM read weights of a stream that was complete only at `stop`; None when its log does not say."""
    needed = _needed_at(marks)
    return None if needed is None else max(0.0, min(stop, marks.get("weights", stop)) - needed)


def _needed_at(marks: Mapping[str, float]) -> float | None:
    """When vLLM began to read the weights."""
    return marks.get("created", marks.get("loading"))
