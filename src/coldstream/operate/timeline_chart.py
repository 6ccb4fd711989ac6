"""The charts of one start or several: all phases on one axis, and each phase compared.

A phase has the same colour in every chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coldstream.operate.charts import INK, Panel, label_rows, style_axes
from coldstream.telemetry.timeline.phases import UNNAMED, Phase
from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.telemetry.timeline.timeline_text import phase_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNS_MAX = 12

# The three imports are one family, as is what the engine does when it has its weights.
_COLOURS = {
    "command": "#b4bac4",
    "download": "#3fb8a8",
    "resolve": "#8a94a3",
    "api import": "#2f6db3",
    "config": "#49a3b8",
    "engine spawn": "#5b93cf",
    "worker spawn": "#8fb8e3",
    "model init": "#d8b340",
    "weights": "#e08a2c",
    "post-load": "#f0b66a",
    "set-up": "#d9c9a8",
    "compile": "#b8446a",
    "profile": "#d488a4",
    "KV cache": "#a58cc4",
    "graph capture": "#6f4fa3",
    "warm-up": "#c2aee0",
    "engine init": "#c2aee0",
    "API ready": "#58a575",
    "first token": "#2f6f4a",
    UNNAMED: "#e4e4e4",
}
_SPAN_COLOURS = {"manifest": "#c9ced6", "connect": "#9fd3cc", "stream": "#2a9d8f", "bundle": "#b08d57"}
_OTHER = "#7a7a7a"
_WAITED = "#d1495b"
# Distance between the bars of two runs; bars are half a unit high.
_PITCH = 1.3
# The share of the axis that one letter of a label takes.
_LETTER_SHARE = 0.0078


def panels(timelines: Sequence[Timeline]) -> list[Panel]:
    """All phases on one axis, and each phase compared."""
    return [
        Panel(1.3 + 1.05 * len(timelines), lambda part: _draw_bars(part.subplots(), timelines)),
        Panel(
            0.75 + len(phase_names(timelines)) * (0.12 + 0.17 * len(timelines)),
            lambda part: _draw_phases(part.subplots(), timelines),
        ),
    ]


def colour_of(name: str) -> str:
    """A phase's or a span's colour; that of two in one is the first's."""
    first = name.partition(" + ")[0]
    return _COLOURS.get(first) or _SPAN_COLOURS.get(first, _OTHER)


def labels_of(timelines: Sequence[Timeline]) -> list[str]:
    """What tells the runs apart, and is the same in charts and tables."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [letters[index] if len(timelines) > 1 else "" for index in range(len(timelines))]


def _draw_bars(axes: Axes, timelines: Sequence[Timeline]) -> None:
    from matplotlib.patches import Patch

    total = max(max((timeline.seconds for timeline in timelines), default=0.0), 1e-3)
    for index, (timeline, label) in enumerate(zip(timelines, labels_of(timelines), strict=True)):
        row = _PITCH * index
        for phase in timeline.phases:
            _draw_phase(axes, phase, row, total)
        _draw_spans(axes, timeline, row, total)
        axes.text(0, row - 0.29, f"{label}   {_title(timeline)}".strip(), va="bottom", ha="left", fontsize=10)
        # The command refuses to chart starts that did not become ready.
        ready = timeline.ready_seconds
        assert ready is not None
        axes.plot([ready, ready], [row - 0.28, row + 0.28], color=INK, linewidth=1.2)
        axes.text(
            timeline.seconds + 0.006 * total,
            row,
            f"ready {ready:.1f} s",
            va="center",
            ha="left",
            fontsize=9,
            fontweight="bold",
        )
    axes.set_ylim(_PITCH * len(timelines) - 0.45, -0.55)
    axes.set_xlim(0, 1.14 * total)
    axes.set_yticks([])
    axes.set_xlabel("seconds since the command began")
    style_axes(axes, "x")
    names = phase_names(timelines)
    spans = dict.fromkeys(span.name for timeline in timelines for span in timeline.spans)
    handles = [Patch(facecolor=colour_of(name), label=name, hatch=_hatch(name), edgecolor="white") for name in names]
    handles += [Patch(facecolor=colour_of(name), label=f"{name} (in parallel)", edgecolor="white") for name in spans]
    if any(timeline.stream and timeline.stream.waited_seconds for timeline in timelines):
        handles.append(Patch(facecolor=_WAITED, label="stream, waited for", edgecolor="white"))
    axes.figure.legend(
        handles=handles, loc="outside lower center", ncols=7, frameon=False, fontsize=8.5, handlelength=1.1
    )


def _draw_phase(axes: Axes, phase: Phase, row: float, total: float) -> None:
    axes.barh(
        row, phase.seconds, left=phase.start, height=0.5, color=colour_of(phase.name), hatch=_hatch(phase.name),
        edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    for text in (f"{phase.name} {phase.seconds:.1f}", phase.name, f"{phase.seconds:.1f}"):
        if len(text) * _LETTER_SHARE < 0.95 * phase.seconds / (1.14 * total):
            ink = "white" if _is_dark(colour_of(phase.name)) else INK
            middle = phase.start + phase.seconds / 2
            axes.text(middle, row, text, va="center", ha="center", fontsize=8.5, color=ink)
            return


def _draw_spans(axes: Axes, timeline: Timeline, row: float, total: float) -> None:
    """Thin bars below, each beside those that run at the same time; the stream shows what was waited for."""
    ends: list[float] = []
    for span in timeline.spans:
        start, width = span.start, max(span.seconds, 0.002 * total)
        lane = next((index for index, end in enumerate(ends) if end <= start), len(ends))
        ends[lane : lane + 1] = [start + width]
        place = row + 0.33 + 0.11 * lane
        axes.barh(place, width, left=start, height=0.09, color=colour_of(span.name), linewidth=0)
        if span.name == "stream" and timeline.stream and (waited := timeline.stream.waited_seconds):
            axes.barh(place, waited, left=span.stop - waited, height=0.09, color=_WAITED, linewidth=0)


def _draw_phases(axes: Axes, timelines: Sequence[Timeline]) -> None:
    names = phase_names(timelines)
    step = 0.8 / max(1, len(timelines))
    most = max((phase.seconds for timeline in timelines for phase in timeline.phases), default=1.0) or 1.0
    for row, name in enumerate(names):
        for index, (timeline, label) in enumerate(zip(timelines, labels_of(timelines), strict=True)):
            seconds = sum(phase.seconds for phase in timeline.phases if phase.name == name)
            place = row - 0.4 + step * (index + 0.5)
            # The same colour for the same phase; the runs are told apart by their place and letter.
            axes.barh(place, seconds, height=0.86 * step, color=colour_of(name), hatch=_hatch(name), edgecolor="white",
                      linewidth=0.4, alpha=1.0 if index % 2 == 0 else 0.72)  # fmt: skip
            text = f"{label}  {seconds:.1f} s".strip() if seconds else f"{label}  none".strip()
            axes.text(seconds + 0.006 * most, place, text, va="center", ha="left", fontsize=8)
    label_rows(axes, names)
    axes.set_xlim(0, 1.1 * most)
    axes.set_xlabel("seconds in each phase")
    style_axes(axes, "x")


def _title(timeline: Timeline) -> str:
    model = timeline.model if len(timeline.model) <= 60 else f"{timeline.model[:59]}…"
    return f"{model}   {timeline.began:%Y-%m-%d %H:%M:%S} UTC"


def _hatch(name: str) -> str | None:
    return "////" if name == UNNAMED else None


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 150
