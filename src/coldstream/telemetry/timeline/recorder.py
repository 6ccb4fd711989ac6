"""Collects what happens during one start."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from coldstream.package import __version__
from coldstream.telemetry.timeline import marks as lines
from coldstream.telemetry.timeline.phases import Phase, Span, clean, hidden_share, phases_of, under_way, waited_seconds
from coldstream.telemetry.timeline.start_record import (
    FORMAT,
    FORMAT_ANSWERED,
    Ended,
    Machine,
    Stream,
    Timeline,
    as_values,
    run_name,
)
from coldstream.telemetry.timeline.start_verdict import ending, verdicts

if TYPE_CHECKING:
    from typing import Protocol

    class Report(Protocol):
        """What is read of a load's report."""

        @property
        def bytes(self) -> int: ...

        @property
        def received_bytes(self) -> int: ...

        @property
        def cache_bytes(self) -> int: ...

        @property
        def seconds(self) -> float: ...

        @property
        def limit(self) -> str: ...

        @property
        def limited_by(self) -> str: ...

        @property
        def verified(self) -> bool: ...

        @property
        def offline(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How vLLM ended before its start was over.

    Attributes:
        at: When, by the clock of all other times.
        code: As a shell would tell it.
        signal: That ended it, by name; None when it ended by itself.
        cancelled: Whether somebody ended it through us.
        reason: Why, in its own words; None when it printed nothing of the kind.
    """

    at: float
    code: int
    signal: str | None = None
    cancelled: bool = False
    reason: str | None = None


class Recorder:
    """Collects the marks, lines and spans of a start. Thread-safe."""

    def __init__(self, began: float) -> None:
        """Begins.

        Args:
            began: When the command began, by the clock of all other times.
        """
        self._began = began
        self._lock = threading.Lock()
        self._marks: dict[str, float] = {}
        self._spans: list[Span] = []
        self._events: set[str] = set()
        self._figures: dict[str, float] = {}

    @property
    def marks(self) -> dict[str, float]:
        """Those that were set, in seconds since the command began."""
        with self._lock:
            return dict(self._marks)

    @property
    def compile_caches(self) -> str:
        """What became of vLLM's compile caches, as far as its lines tell: see `marks.compile_caches`."""
        with self._lock:
            return lines.compile_caches(self._events, self._marks)

    def phase(self, now: float) -> Phase:
        """The phase that the start is in.

        Args:
            now: By the clock of all other times; the phase ends then as far as is known.
        """
        return under_way(self.marks, max(0.0, now - self._began))

    def mark(self, name: str, now: float) -> None:
        """Sets a mark of our own, the first time."""
        with self._lock:
            self._marks.setdefault(name, max(0.0, now - self._began))

    def line(self, text: str, now: float) -> None:
        """Looks at a line of vLLM's. Those that come once it answers are of no start."""
        with self._lock:
            if "ready" in self._marks:
                return
            if event := lines.compile_event(text):
                self._events.add(event)
            self._figures |= lines.figures(text)
            passed = lines.passed(text)
            if passed is None:
                return
            name, last = passed
            since = max(0.0, now - self._began)
            self._marks[name] = since if last else self._marks.get(name, since)
            seconds = lines.compile_seconds(text)
            if seconds is not None:
                # What is loaded is not announced, only reported.
                began = max(0.0, since - seconds)
                self._marks["compiling"] = min(began, self._marks.get("compiling", began))

    def span(self, name: str, start: float, stop: float, *, note: str = "") -> None:
        """Adds what ran beside the phases.

        Args:
            name: One of `phases.SPANS`.
            start: By the clock of all other times.
            stop: The same.
            note: What it was.
        """
        start, stop = max(0.0, start - self._began), max(0.0, stop - self._began)
        with self._lock:
            self._spans.append(Span(name=name, start=start, stop=max(start, stop), note=clean(note)))

    def figures(self, found: Mapping[str, float]) -> None:
        """Adds what vLLM says of itself: name to number."""
        with self._lock:
            self._figures |= found

    def finish(
        self,
        *,
        model: str,
        began_at: datetime,
        loader: str,
        vllm: str | None,
        machine: Machine,
        report: Report | None = None,
        bundle: Mapping[str, Any] | None = None,
        exited: Exit | None = None,
    ) -> Timeline:
        """What was collected. The mark "ready" is set, or it is known how vLLM ended.

        Args:
            model: As it is served.
            began_at: When the command began, with a zone.
            loader: How vLLM got the weights.
            vllm: Its version.
            machine: Where it runs.
            report: Of the stream; None when there was none.
            bundle: What became of the caches.
            exited: How vLLM ended before the start was over; None when it was.
        """
        with self._lock:
            marks, spans, figures = dict(self._marks), tuple(self._spans), dict(self._figures)
            compiled = lines.compile_caches(self._events, self._marks)
        # When it is ready all work of the start is done, whatever a late rank says.
        stopped = None if exited is None else max(0.0, exited.at - self._began)
        end = marks["ready"] if stopped is None else marks.get("ready", stopped)
        marks = {name: at if name == "first token" else min(at, end) for name, at in marks.items()}
        phases = tuple(phases_of(marks, compiled=compiled, ended=stopped))
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
        stream = None if report is None else _stream(report, spans, marks)
        loader = clean(loader)
        said = verdicts(phases, spans, stream, loader=loader)
        if ended is not None:
            said = ending(ended, said[0] if stream is not None else None)
        return Timeline(
            run=run_name(began_at, model),
            model=clean(model),
            began=began_at,
            coldstream=__version__,
            vllm=None if vllm is None else clean(vllm),
            loader=loader,
            machine=machine,
            ready_seconds=marks.get("ready"),
            first_token_seconds=marks.get("first token"),
            phases=phases,
            spans=tuple(sorted(spans, key=lambda span: (span.start, span.stop))),
            verdict=tuple(map(clean, said)),
            stream=stream,
            bundle=None if bundle is None else as_values(bundle),
            compile_caches=compiled,
            figures=figures,
            ended=ended,
            format=FORMAT_ANSWERED if ended is None else FORMAT,
        )


def _stream(report: Report, spans: tuple[Span, ...], marks: Mapping[str, float]) -> Stream:
    span = next((span for span in spans if span.name == "stream"), None)
    return Stream(
        bytes=report.bytes,
        received_bytes=report.received_bytes,
        cache_bytes=report.cache_bytes,
        seconds=report.seconds,
        hidden_share=hidden_share(span.start, span.stop, marks) if span else None,
        waited_seconds=waited_seconds(span.stop, marks) if span else None,
        limit=clean(report.limit),
        limited_by=clean(report.limited_by),
        verified=report.verified,
        offline=report.offline,
    )
