"""A comparison as charts and as a page of HTML. Each loader has one colour everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from coldstream.operate.bench.contestant import NAMES
from coldstream.operate.bench.result import (
    LOAD_COLUMNS,
    OK,
    START_COLUMNS,
    BenchResult,
    BenchRow,
    Spread,
    best,
    seconds_text,
    table_cells,
)
from coldstream.operate.charts import INK, Panel, label_rows, style_axes, svgs
from coldstream.operate.page import PageSection, PageTable, TableRow, render_page
from coldstream.units import format_bytes, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In the order of `NAMES`; related loaders have related colours.
_PALETTE = ("#2f6db3", "#7aa8db", "#e0a458", "#c9752d", "#7d8794", "#a9b1bb", "#c0b3d3", "#a7c4a0")
_COLOURS = dict(zip(NAMES, _PALETTE, strict=True))
_FLOOR = "#b8446a"


def chart_title(result: BenchResult) -> str:
    """The title above the charts in one image."""
    plan = result.plan
    name = plan.target.name if len(plan.target.name) <= 60 else f"{plan.target.name[:59]}…"
    return f"Loading {name}, {format_bytes(plan.target.model.bytes)}: medians of {plural(plan.runs, 'run')}"


def panels(result: BenchResult) -> list[Panel]:
    """The times and costs of the loads, and the times of the starts, as far as there are any."""
    charts = []
    device = result.plan.device
    place = "in host memory" if device == "cpu" else f"on {device}"
    if loads := _sorted(result.loads):
        charts += [
            Panel(0.95 + 0.36 * len(loads), lambda part: _draw_times(part, loads, f"seconds until all is {place}")),
            Panel(0.85 + 0.3 * len(loads), lambda part: _draw_costs(part, loads)),
        ]
    if starts := _sorted(result.starts):
        title = "seconds from the command to vLLM's first token"
        charts.append(Panel(0.95 + 0.36 * len(starts), lambda part: _draw_times(part, starts, title)))
    return charts


def html(result: BenchResult) -> str:
    """Renders the page; UsageError if matplotlib is not installed."""
    plan, target = result.plan, result.plan.target
    size = f"{format_bytes(target.model.bytes)} in {plural(len(target.shards), 'file')}"
    runs = f"{plural(plan.runs, 'timed run')} of each, interleaved, after an untimed one"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    sections = [PageSection(text=result.verdict), *(PageSection(chart=chart) for chart in svgs(panels(result)))]
    for title, rows, columns in (
        ("Loads", result.loads, LOAD_COLUMNS),
        ("Whole starts of vLLM, to the first token", result.starts, START_COLUMNS),
    ):
        if rows:
            lines = [
                TableRow(row.label, cells[1:], _note(row), _colour(row))
                for row, cells in zip(rows, table_cells(rows, columns), strict=True)
            ]
            heading = ("Loader", *columns[1:], "Configuration and closest floor")
            sections.append(PageSection(title=title, table=PageTable(heading, lines)))
    if skipped := list(dict.fromkeys(f"{one.label}: {one.reason}" for one in result.skipped)):
        sections.append(PageSection(title="Skipped", text=skipped))
    if floors := [TableRow(stage, (), text) for stage, text in result.floors.lines()]:
        sections.append(PageSection(title="Floors, measured before the loads", table=PageTable((), floors)))
    return render_page(
        f"Loading {target.name}",
        f"{size} from {target.label} to {plan.device}; {runs}",
        sections,
        footer=f"{'. '.join(result.terms)}. {result.machine}. {versions}. {result.began}.",
    )


def _note(row: BenchRow) -> str:
    contestant = row.contestant
    failed = f"failed: {row.failure}" if row.failure else ""
    wrong = "its output differed from the other loaders'" if row.same is False else ""
    versions = ", ".join(f"{name} {version}" for name, version in contestant.versions.items())
    return "; ".join(filter(None, (failed, wrong, contestant.detail, row.floor_text, versions)))


def _sorted(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The rows that have runs, fastest first."""
    return sorted((row for row in rows if row.runs), key=lambda row: row.spreads["seconds"])


def _draw_times(part: Any, rows: Sequence[BenchRow], title: str) -> None:
    axes = part.subplots()
    least = best(rows)

    def label(row: BenchRow, seconds: Spread) -> str:
        words = [seconds_text(seconds.median)]
        words += [f"{seconds.median / least:.1f} x"] if least else []
        words += [row.state] if row.state != OK else []
        words += [f"{row.nearest[1]:.0%} of {row.nearest[0]}"] if row.nearest else []
        return "   ".join(words)

    title += "; whiskers: minimum and maximum of all runs"
    most = _draw_bars(axes, rows, "seconds", title, label, width=1.42)
    legend = "the time that its lowest floor allows"
    for place, row in enumerate(rows):
        if row.nearest and (floor := row.bytes / row.floors[row.nearest[0]]) < 1.02 * most:
            ends = [place - 0.36, place + 0.36]
            axes.plot([floor, floor], ends, color=_FLOOR, linewidth=1.6, zorder=4, label=legend)
            legend = "_"
    if legend == "_":
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8.5, borderaxespad=0)


def _draw_costs(part: Any, rows: Sequence[BenchRow]) -> None:
    left, right = part.subplots(1, 2)
    _draw_bars(left, rows, "cpu_seconds_per_gib", "CPU seconds per GiB", _two_digits)
    _draw_bars(right, rows, "memory_bytes", "peak memory of all processes, GB", _two_digits, unit=1e9)
    right.set_yticks([])


def _colour(row: BenchRow) -> str:
    return _COLOURS.get(row.name, "#b5b5b5")


def _two_digits(_: BenchRow, value: Spread) -> str:
    return f"{value.median:.2f}"


def _draw_bars(
    axes: Axes,
    rows: Sequence[BenchRow],
    figure: str,
    title: str,
    label: Callable[[BenchRow, Spread], str],
    *,
    unit: float = 1,
    width: float = 1.25,
) -> float:
    """Draws one labelled bar with whiskers for each row; returns the largest value."""
    values = [Spread(*(number / unit for number in row.spreads[figure])) for row in rows]
    most = max(value.max for value in values) or 1.0
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        # Rows whose output was wrong are hatched.
        look: dict[str, Any] = {"color": _colour(row), "hatch": None if row.state == OK else "////"}
        axes.barh(place, value.median, height=0.62, zorder=2, edgecolor="white", linewidth=0.5, **look)
        whiskers = [[value.median - value.min], [value.max - value.median]]
        axes.errorbar(value.median, place, xerr=whiskers, ecolor=INK, fmt="none", elinewidth=1, capsize=3, zorder=3)
        text = label(row, value)
        axes.text(value.max + 0.013 * most, place, text, va="center", ha="left", fontsize=8.5, zorder=5)
    label_rows(axes, [row.label for row in rows])
    axes.set_xlim(0, width * most)
    axes.set_xlabel(title)
    style_axes(axes, "x")
    return most
