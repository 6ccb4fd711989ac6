"""One start or several as charts and as a page of HTML. A phase has the same colour everywhere."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

from coldstream.operate.charts import INK, Axes, Page, PageSection, Panel, TableRow, label_rows, style_axes
from coldstream.telemetry.timeline.phases import UNNAMED, Phase, Span
from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.telemetry.timeline.timeline_text import phase_names, stream_text, summary_text
from coldstream.units import format_bytes, format_seconds, plural

RUNS_MAX = 12

# The three imports are one family, as is what the engine does when it has its weights.
_COLOURS = {
    "runtime": "#a3917c", "command": "#b4bac4", "download": "#3fb8a8", "resolve": "#8a94a3", "api import": "#2f6db3",
    "config": "#49a3b8", "engine spawn": "#5b93cf", "worker spawn": "#8fb8e3", "model init": "#d8b340",
    "weights": "#e08a2c", "post-load": "#f0b66a", "set-up": "#d9c9a8", "compile": "#b8446a", "profile": "#d488a4",
    "KV cache": "#a58cc4", "graph capture": "#6f4fa3", "warm-up": "#c2aee0", "engine init": "#d3c6f5",
    "API ready": "#58a575", "first token": "#2f6f4a", UNNAMED: "#e4e4e4", "manifest": "#c9ced6", "connect": "#9fd3cc",
    "stream": "#2a9d8f", "draft": "#1c6b62", "adapters": "#5fb3a1", "bundle": "#b08d57", "runtime fetch": "#7a6a5a",
    "runtime mount": "#94826e", "runtime unpack": "#bdaa93",
}  # fmt: skip
_WAITED = "#d1495b"
# Distance between the bars of two runs; bars are half a unit high.
_PITCH = 1.3
# The share of the axis that one letter of a label takes.
_LETTER_SHARE = 0.0078


def colour_of(name: str) -> str:
    """The colour of a phase or a span; if two are merged, of the first."""
    return _COLOURS.get(name.partition(" + ")[0], "#7a7a7a")


def labels_of(timelines: Sequence[Timeline]) -> list[str]:
    """The letter of each run, in charts and tables."""
    return list(string.ascii_uppercase[: len(timelines)]) if len(timelines) > 1 else [""]


def timeline_page(timelines: Sequence[Timeline]) -> Page:
    """The page of at least one start, with all phases on one axis, and each phase compared."""
    rows_inches = len(phase_names(timelines)) * (0.12 + 0.17 * len(timelines))
    bars = Panel(1.3 + 1.05 * len(timelines), lambda part: _draw_bars(part.subplots(), timelines))
    phases = Panel(0.75 + rows_inches, lambda part: _draw_phases(part.subplots(), timelines))
    labels = labels_of(timelines)
    engines = dict.fromkeys(timeline.software.partition(" ")[0] for timeline in timelines)
    heading = ("Phase", *(f"{label} seconds" for label in labels), "What happened")
    sections = [
        PageSection(chart=bars),
        PageSection(title="Bottlenecks"),
        *(_run(timeline, label) for timeline, label in zip(timelines, labels, strict=True)),
        PageSection(title="Each phase", chart=phases),
        PageSection(title="Figures", heading=heading, rows=list(_rows(timelines))),
    ]
    return Page(
        title=f"How {', '.join(dict.fromkeys(timeline.model for timeline in timelines))} started",
        subtitle=f"{plural(len(timelines), 'start')} of {' and '.join(engines)}, from the command to the first token",
        sections=sections,
        footer=f"coldstream {timelines[0].coldstream}. Phases follow each other without a gap; what is listed under "
        "“In parallel” runs at the same time. Times are when coldstream read the lines of the engine's log.",
    )


def _run(timeline: Timeline, label: str) -> PageSection:
    machine = timeline.machine
    facts = [
        timeline.run,
        timeline.software,
        f"loader {timeline.loader}",
        f"{machine.gpus} x {machine.device}" if machine.gpus else f"{machine.device}, {plural(machine.cores, 'core')}",
        f"compile caches: {timeline.compile_caches}",
    ]
    if timeline.bundle is not None:
        state, size = timeline.bundle.get("state"), timeline.bundle.get("bytes")
        size_text = f", {format_bytes(size)}" if isinstance(size, (int, float)) and size else ""
        facts.append(f"bundle: {state}{size_text}")
    return PageSection(
        title=" ".join(filter(None, (label, timeline.model))),
        text=[line[:1].upper() + line[1:].replace("   ", ", ") for line in summary_text(timeline)],
        facts=" · ".join(facts),
        is_sub=True,
    )


def _rows(timelines: Sequence[Timeline]) -> Iterator[TableRow]:
    for name in phase_names(timelines):
        yield _row(name, timelines, [timeline.phases for timeline in timelines])
    has_tokens = all(timeline.first_token_seconds is not None for timeline in timelines)
    unnamed = max(timeline.unnamed_seconds for timeline in timelines)
    yield TableRow(
        "until the first token" if has_tokens else "until it is ready",
        [f"{timeline.seconds:.2f}" for timeline in timelines],
        f"{format_seconds(unnamed)} of it in no phase" if unnamed else "",
        kind="sum",
    )
    yield TableRow("In parallel", kind="group")
    for name in dict.fromkeys(span.name for timeline in timelines for span in timeline.spans):
        yield _row(name, timelines, [timeline.spans for timeline in timelines])
    figures = dict.fromkeys(name for timeline in timelines for name in timeline.figures)
    if figures:
        yield TableRow("Reported by the engine", kind="group")
    for name in figures:
        values = [timeline.figures.get(name) for timeline in timelines]
        cells = ["-" if v is None else f"{v:,.0f}" if v >= 1000 and v == int(v) else f"{v:.2f}" for v in values]
        yield TableRow(name.replace("_", " "), cells)


def _row(name: str, timelines: Sequence[Timeline], parts: Sequence[Sequence[Phase | Span]]) -> TableRow:
    """The seconds of a phase or span in each run, and the notes on it; a note that not all runs share has letters."""
    cells: list[str] = []
    runs_of: dict[str, list[str]] = {}
    for timeline, label, phases in zip(timelines, labels_of(timelines), parts, strict=True):
        named = [phase for phase in phases if phase.name == name]
        cells.append(f"{sum(phase.seconds for phase in named):.2f}" if named else "-")
        notes = ((stream_text(timeline) if name == "stream" else "") or phase.note for phase in named)
        for note in dict.fromkeys(filter(None, notes)):
            runs_of.setdefault(note, []).append(label)
    runs = sum(cell != "-" for cell in cells)
    note = "; ".join(text if len(who) == runs else f"{', '.join(who)}: {text}" for text, who in runs_of.items())
    return TableRow(name, cells, note, colour_of(name))


def _draw_bars(axes: Axes, timelines: Sequence[Timeline]) -> None:
    from matplotlib.patches import Patch

    total = max(max((timeline.seconds for timeline in timelines), default=0.0), 1e-3)
    for index, (timeline, label) in enumerate(zip(timelines, labels_of(timelines), strict=True)):
        row = _PITCH * index
        for phase in timeline.phases:
            _draw_phase(axes, phase, row, total)
        _draw_spans(axes, timeline, row, total)
        model = timeline.model if len(timeline.model) <= 60 else f"{timeline.model[:59]}…"
        title = f"{label}   {model}   {timeline.began:%Y-%m-%d %H:%M:%S} UTC".strip()
        axes.text(0, row - 0.29, title, va="bottom", ha="left", fontsize=10)
        # The command refuses to chart starts that did not become ready.
        ready = timeline.ready_seconds
        assert ready is not None
        axes.plot([ready, ready], [row - 0.28, row + 0.28], color=INK, linewidth=1.2)
        end = timeline.seconds + 0.006 * total
        axes.text(end, row, f"ready {ready:.1f} s", va="center", ha="left", fontsize=9, fontweight="bold")
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
            red, green, blue = bytes.fromhex(colour_of(phase.name)[1:])
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 150 else INK
            middle = phase.start + phase.seconds / 2
            axes.text(middle, row, text, va="center", ha="center", fontsize=8.5, color=ink)
            return


def _draw_spans(axes: Axes, timeline: Timeline, row: float, total: float) -> None:
    """Draws thin bars below, in lanes; the end of the stream shows how long vLLM waited for it."""
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


def _hatch(name: str) -> str | None:
    return "////" if name == UNNAMED else None
