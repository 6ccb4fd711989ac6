"""Collects what happens during one start, and draws its verdict: the bottleneck of the weights and of the start."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coldstream.package import __version__
from coldstream.telemetry.timeline.phases import (
    UNNAMED,
    Phase,
    Span,
    clean,
    hidden_share,
    phases_of,
    under_way,
    waited_seconds,
)
from coldstream.telemetry.timeline.start_record import Ended, Machine, Stream, Timeline, as_values, run_name
from coldstream.units import format_seconds

if TYPE_CHECKING:
    from coldstream.engine.load_statistics import LoadReport

# Shorter waits are the noise of when lines arrive.
_NOISE_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What a line of an engine's log says about its start."""

    mark: str | None = None  # the mark that it sets, one of `PhaseKind.mark`
    is_last: bool = False  # whether the last such line counts, rather than the first
    compile_seconds: float | None = None  # how long the compilation took whose end the line reports
    compile_event: str | None = None  # "loaded": a graph came from the compile caches; "compiled": it did not
    # Numbers in it, by name; in seconds unless the name says otherwise.
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How the engine exited before its start was over, at a time by `time.monotonic`; the rest is as in `Ended`."""

    at: float
    code: int
    signal: str | None = None
    cancelled: bool = False
    reason: str | None = None


class Recorder:
    """Collects the marks, log lines and spans of a start, at times by `time.monotonic`. Thread-safe."""

    def __init__(
        self,
        began: float,
        read_line: Callable[[str], LogFacts],
        *,
        engine: str = "vLLM",
        log_setting: str = "VLLM_LOGGING_LEVEL=INFO",
    ) -> None:
        """`engine` is its name, and `log_setting` what makes it report its phases."""
        self._began, self._read_line, self._engine, self._log_setting = began, read_line, engine, log_setting
        self._lock = threading.Lock()
        self._marks: dict[str, float] = {}
        self._spans: list[Span] = []
        self._events: set[str] = set()
        self._figures: dict[str, float] = {}

    @property
    def marks(self) -> dict[str, float]:
        """The marks that are set, in seconds since the command began."""
        with self._lock:
            return dict(self._marks)

    def phase(self, now: float) -> Phase:
        return self._of_engine(under_way(self.marks, self._since(now)))

    def _of_engine(self, phase: Phase) -> Phase:
        # The notes of `PHASE_KINDS` are about vLLM.
        return msgspec.structs.replace(phase, note=phase.note.replace("vLLM", self._engine))

    def _since(self, now: float) -> float:
        return max(0.0, now - self._began)

    def mark(self, name: str, now: float) -> None:
        """Sets a mark of our own, unless it is set."""
        with self._lock:
            self._marks.setdefault(name, self._since(now))

    def line(self, text: str, now: float) -> None:
        """Reads a line of the engine's log. Lines after the health check answers do not belong to the start."""
        with self._lock:
            if "ready" in self._marks:
                return
            facts = self._read_line(text)
            if facts.compile_event:
                self._events.add(facts.compile_event)
            self._figures |= facts.figures
            if facts.mark is None:
                return
            since = self._since(now)
            self._marks[facts.mark] = since if facts.is_last else self._marks.get(facts.mark, since)
            if facts.compile_seconds is not None:
                # Loading from the caches is reported when it is over, but not announced.
                began = max(0.0, since - facts.compile_seconds)
                self._marks["compiling"] = min(began, self._marks.get("compiling", began))

    def span(self, name: str, start: float, stop: float, *, note: str = "") -> None:
        """Adds something that ran beside the phases."""
        start = self._since(start)
        with self._lock:
            self._spans.append(Span(name=name, start=start, stop=max(start, self._since(stop)), note=clean(note)))

    def figures(self, figures: Mapping[str, float]) -> None:
        with self._lock:
            self._figures |= figures

    def finish(
        self,
        *,
        model: str,
        began_at: datetime,
        loader: str,
        version: str | None,
        machine: Machine,
        report: LoadReport | None = None,
        bundle: Mapping[str, Any] | None = None,
        exited: Exit | None = None,
    ) -> Timeline:
        """The timeline. Either the mark "ready" is set, or `exited` is given. See `Timeline` for the arguments."""
        with self._lock:
            marks, spans, figures = dict(self._marks), tuple(self._spans), dict(self._figures)
            compiled = _compile_caches(self._events, self._marks)
        # Once it is ready, all work of the start is done: a late rank's lines do not count.
        stopped = None if exited is None else self._since(exited.at)
        end = marks["ready"] if stopped is None else marks.get("ready", stopped)
        marks = {name: at if name == "first token" else min(at, end) for name, at in marks.items()}
        phases = tuple(map(self._of_engine, phases_of(marks, compiled=compiled, ended=stopped)))
        ended = None
        if exited is not None and stopped is not None:
            ended = Ended(
                outcome="cancelled" if exited.cancelled else "failed",
                seconds=stopped,
                phase=phases[-1].name,
                exit_code=exited.code,
                signal=exited.signal,
                reason=None if exited.reason is None else clean(exited.reason),
            )
        span = next((span for span in spans if span.name == "stream"), None)
        stream = None if report is None else _stream(report, span, marks)
        loader = clean(loader)
        weights = f"weights: {_weights(phases, span, stream, loader, self._engine)}"
        if ended is None:
            verdict = [weights, f"bottleneck: {_bottleneck(phases, self._engine, self._log_setting)}"]
        else:
            verdict = [_where_to_look(ended, self._engine)] + ([weights] if stream is not None else [])
        return Timeline(
            run=run_name(began_at, model),
            model=clean(model),
            began=began_at,
            coldstream=__version__,
            vllm=None if version is None or self._engine != "vLLM" else clean(version),
            engine=clean(" ".join(filter(None, (self._engine, version)))),
            loader=loader,
            machine=machine,
            ready_seconds=marks.get("ready"),
            first_token_seconds=marks.get("first token"),
            phases=phases,
            spans=tuple(sorted(spans, key=lambda span: (span.start, span.stop))),
            verdict=tuple(map(clean, verdict)),
            stream=stream,
            bundle=None if bundle is None else as_values(bundle),
            compile_caches=compiled,
            figures=figures,
            ended=ended,
            format=1 if ended is None else 2,
        )


def _stream(report: LoadReport, span: Span | None, marks: Mapping[str, float]) -> Stream:
    names = ("bytes", "received_bytes", "cache_bytes", "seconds", "limit", "limited_by", "verified", "offline")
    return Stream(
        **{name: getattr(report, name) for name in names},
        hidden_share=hidden_share(span.start, span.stop, marks) if span else None,
        waited_seconds=waited_seconds(span.stop, marks) if span else None,
    )


def _compile_caches(events: set[str], marks: Mapping[str, float]) -> str:
    if events:
        return "compiled" if "compiled" in events else "loaded"
    if marks.keys() & {"compiling", "compiled"} or "initialised" not in marks:
        return "unknown"
    return "none"


def _where_to_look(ended: Ended, engine: str) -> str:
    if ended.outcome == "cancelled":
        return "cancelled through coldstream: Ctrl-C, a signal or a spot interruption"
    if ended.reason is not None:
        return f"reason: {ended.reason}"
    if ended.signal == "SIGKILL":
        return "possibly killed by the out-of-memory killer; see the kernel's log"
    return f"see {engine}'s own messages for the reason"


def _weights(phases: Sequence[Phase], span: Span | None, stream: Stream | None, loader: str, engine: str) -> str:
    """What limited the weights; `stream` is None with another loader, or when its report is missing."""
    reading = next((phase for phase in phases if phase.name.partition(" + ")[0] == "weights"), None)
    if stream is None:
        if loader == "coldstream":
            return "no report"
        return f"read by {engine} itself ({loader})" + (f" in {format_seconds(reading.seconds)}" if reading else "")
    if stream.waited_seconds is None or reading is None or span is None:
        return stream.limited_by
    if stream.waited_seconds > _NOISE_SECONDS:
        return f"{engine} waited {format_seconds(stream.waited_seconds)} for them; {stream.limited_by}"
    early = max(0.0, reading.start - span.stop)
    # A stream that is complete before its first reader comes is not limited by the reader.
    why = "" if stream.limit == "consumer" else f"; {stream.limited_by}"
    return f"ready {format_seconds(early)} before {engine} needed them{why}"


def _bottleneck(phases: Sequence[Phase], engine: str, log_setting: str) -> str:
    total = sum(phase.seconds for phase in phases)
    if not total:
        return "none"
    groups: dict[str, list[Phase]] = {}
    for phase in phases:
        groups.setdefault(phase.group, []).append(phase)
    longest, parts = max(groups.items(), key=lambda group: sum(phase.seconds for phase in group[1]))
    share = f"{100 * sum(phase.seconds for phase in parts) / total:.0f} % of start-up"
    if longest == UNNAMED:
        return f"unknown ({share}); {log_setting} makes {engine} report its phases"
    detail = ": " + ", ".join(f"{phase.name} {format_seconds(phase.seconds)}" for phase in parts)
    return f"{longest} ({share}{detail if len(parts) > 1 else ''})"


BOOTSTRAP_VARIABLE = "COLDSTREAM_BOOTSTRAP"
# The marks at the ends of the bootstrap's steps.
_STEP_MARKS = {"fetch": "fetched", "mount": "provided", "unpack": "provided"}
# A record that is older was inherited from another start.
_AGE_SECONDS_MAX = 3600.0

_Time = Annotated[float, Meta(ge=0)]


class BootstrapRecord(msgspec.Struct, frozen=True):
    """What the bootstrap program did before it started coldstream, with all times in seconds since 1970."""

    began: _Time
    # (name, start, stop, what limited it)
    phases: Annotated[
        list[tuple[Literal["fetch", "mount", "unpack"], _Time, _Time, Literal["link", "disk", "processor"]]],
        Meta(max_length=8),
    ]

    @property
    def monotonic_began(self) -> float:
        """When the bootstrap began, by `time.monotonic`."""
        return time.monotonic() - (time.time() - self.began)

    def apply(self, recorder: Recorder) -> None:
        """Adds its steps to a timeline that began with it."""
        offset = self.monotonic_began - self.began
        for name, start, stop, limit in self.phases:
            recorder.mark(_STEP_MARKS[name], stop + offset)
            recorder.span(f"runtime {name}", start + offset, stop + offset, note=f"limited by the {limit}")


def bootstrap_record() -> BootstrapRecord | None:
    """The record, removed from the environment; None where coldstream was started in another way."""
    text = os.environ.pop(BOOTSTRAP_VARIABLE, None)
    if text is not None:
        with suppress(msgspec.MsgspecError):
            record = msgspec.json.decode(text, type=BootstrapRecord)
            if 0 <= time.time() - record.began <= _AGE_SECONDS_MAX:
                return record
    return None
