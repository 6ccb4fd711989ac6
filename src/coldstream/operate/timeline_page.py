"""One start or several as a page of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coldstream.operate.charts import svgs
from coldstream.operate.page import PageSection, PageTable, TableRow, render_page
from coldstream.operate.timeline_chart import colour_of, labels_of, panels
from coldstream.telemetry.timeline.phases import Phase, Span
from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.telemetry.timeline.timeline_text import coverage_text, phase_names, stream_text
from coldstream.units import format_bytes, format_seconds, plural


def html(timelines: Sequence[Timeline]) -> str:
    """Renders the page of at least one start.

    Raises:
        UsageError: matplotlib is not installed.
    """
    bars, phases = svgs(panels(timelines))
    labels = labels_of(timelines)
    heading = ("Phase", *(f"{label} seconds" for label in labels), "What happened")
    sections = [
        PageSection(chart=bars),
        PageSection(title="Bottlenecks"),
        *(_run(timeline, label) for timeline, label in zip(timelines, labels, strict=True)),
        PageSection(title="Each phase", chart=phases),
        PageSection(title="Figures", table=PageTable(heading, list(_rows(timelines)))),
    ]
    return render_page(
        f"How {', '.join(dict.fromkeys(timeline.model for timeline in timelines))} started",
        f"{plural(len(timelines), 'start')} of vLLM, from the command to the first token",
        sections,
        footer=f"coldstream {timelines[0].coldstream}. Phases follow each other without a gap; what is listed under "
        "“In parallel” runs at the same time. Times are when coldstream read the lines of vLLM's log.",
    )


def _run(timeline: Timeline, label: str) -> PageSection:
    machine = timeline.machine
    facts = [
        timeline.run,
        f"vLLM {timeline.vllm}" if timeline.vllm else "vLLM",
        f"loader {timeline.loader}",
        f"{machine.gpus} x {machine.device}" if machine.gpus else f"{machine.device}, {plural(machine.cores, 'core')}",
        f"compile caches: {timeline.compile_caches}",
    ]
    if timeline.bundle is not None:
        state, size = timeline.bundle.get("state"), timeline.bundle.get("bytes")
        size_text = f", {format_bytes(size)}" if isinstance(size, (int, float)) and size else ""
        facts.append(f"bundle: {state}{size_text}")
    times = [f"ready in {timeline.ready_seconds:.1f} s"]
    if timeline.first_token_seconds is not None:
        times.append(f"first token after {timeline.first_token_seconds:.1f} s")
    times.append(coverage_text(timeline))
    return PageSection(
        title=" ".join(filter(None, (label, timeline.model))),
        text=[line[:1].upper() + line[1:] for line in (", ".join(times), *timeline.verdict)],
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
        yield TableRow("Reported by vLLM", kind="group")
    for name in figures:
        yield TableRow(name.replace("_", " "), [_figure(timeline.figures.get(name)) for timeline in timelines])


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


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 and value == int(value) else f"{value:.2f}"
