"""A comparison drawn by matplotlib: SVG with its text as text, or PNG.

Each loader has one colour in all charts. Names come from anywhere: none is read as markup.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from coldstream.operate.bench.result import OK, STAGES, Result, Row, Spread, best, seconds_text
from coldstream.operate.charts import INK, figures
from coldstream.units import format_bytes, format_rate, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "coldstream": "#2f6db3",
    "coldstream-warm": "#7aa8db",
    "runai": "#e0a458",
    "runai-tuned": "#c9752d",
    "vllm-default": "#7d8794",
    "boto3": "#a9b1bb",
    "s3fs": "#c0b3d3",
    "obstore": "#a7c4a0",
}
_OTHER = "#b5b5b5"
_FLOOR = "#b8446a"
_WIDTH_INCHES = 10.4
_DPI = 144


def png(result: Result) -> bytes:
    """All charts in one picture.

    Raises:
        UsageError: matplotlib is not installed.
    """
    with figures(_WIDTH_INCHES) as new_figure:
        charts = _charts(result)
        heights = [height for height, _ in charts]
        figure = new_figure(sum(heights) + 0.75)
        figure.suptitle(_title(result), x=0.012, ha="left", fontsize=11, fontweight="bold")
        parts = figure.subfigures(len(charts), 1, height_ratios=heights, squeeze=False)
        for part, (_, draw) in zip(parts[:, 0], charts, strict=True):
            draw(part)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
        return out.getvalue()


def svgs(result: Result) -> list[str]:
    """The charts for a page, in their order. No two ids in them are equal.

    Raises:
        UsageError: matplotlib is not installed.
    """
    with figures(_WIDTH_INCHES) as new_figure:
        found = []
        for number, (height, draw) in enumerate(_charts(result)):
            figure = new_figure(height)
            draw(figure)
            found.append(_svg(figure, "abc"[number]))
        return found


def _charts(result: Result) -> list[tuple[float, Callable[[Any], None]]]:
    """Height in inches, and what draws it."""
    charts: list[tuple[float, Callable[[Any], None]]] = []
    where = "in host memory" if result.device == "cpu" else f"on {result.device}"
    if loads := _drawn(result.loads):
        charts += [
            (0.95 + 0.36 * len(loads), lambda part: _draw_times(part, loads, f"seconds until all is {where}")),
            (0.85 + 0.3 * len(loads), lambda part: _draw_costs(part, loads)),
        ]
    if starts := _drawn(result.starts):
        what = "seconds from the command to vLLM's first token"
        charts.append((0.95 + 0.36 * len(starts), lambda part: _draw_times(part, starts, what)))
    return charts


def _drawn(rows: Sequence[Row]) -> list[Row]:
    """Those with a figure to show, the fastest first."""
    return sorted((row for row in rows if row.seconds), key=lambda row: row.seconds.median if row.seconds else 0.0)


def _draw_times(part: Any, rows: Sequence[Row], what: str) -> None:
    axes = part.subplots()
    least = best(rows)
    most = max(row.seconds.most for row in rows if row.seconds)
    floors = False
    for place, row in enumerate(rows):
        seconds = row.seconds
        assert seconds is not None
        _bar(axes, place, row, seconds)
        said = f"{seconds_text(seconds.median)}"
        if least:
            said += f"   {seconds.median / least:.1f} x"
        if row.state != OK:
            said += f"   {row.state}"
        if row.nearest:
            said += f"   {row.nearest[1]:.0%} of {row.nearest[0]}"
        _label(axes, seconds.most + 0.012 * most, place, said)
        if row.nearest and (floor := row.bytes / row.floors[row.nearest[0]]) < 1.02 * most:
            axes.plot([floor, floor], [place - 0.36, place + 0.36], color=_FLOOR, linewidth=1.6, zorder=4)
            floors = True
    _rows_axis(axes, rows, 1.42 * most, f"{what}; whiskers: least and most of all runs")
    if floors:
        axes.plot([], [], color=_FLOOR, linewidth=1.6, label="the least that its nearest floor allows")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8.5, borderaxespad=0)


def _draw_costs(part: Any, rows: Sequence[Row]) -> None:
    left, right = part.subplots(1, 2)
    _draw_figure(left, rows, lambda row: row.cpu_seconds_per_gib, "CPU seconds for each GiB", lambda v: f"{v:.2f}")
    _draw_figure(
        right,
        rows,
        lambda row: row.memory_bytes and _scaled(row.memory_bytes, 1e9),
        "peak memory of all processes, GB",
        lambda value: format_bytes(value * 1e9),
    )
    right.set_yticks([])


def _draw_figure(
    axes: Axes, rows: Sequence[Row], of: Callable[[Row], Spread | None], what: str, text: Callable[[float], str]
) -> None:
    found = [of(row) for row in rows]
    most = max((one.most for one in found if one), default=1.0) or 1.0
    for place, (row, one) in enumerate(zip(rows, found, strict=True)):
        if one is not None:
            _bar(axes, place, row, one)
            _label(axes, one.most + 0.015 * most, place, text(one.median))
    _rows_axis(axes, rows, 1.25 * most, what)


def _scaled(one: Spread, unit: float) -> Spread:
    return Spread(one.median / unit, one.least / unit, one.most / unit)


def _bar(axes: Axes, place: int, row: Row, one: Spread) -> None:
    # What cannot be trusted is hatched.
    hatch = None if row.state == OK else "////"
    look: dict[str, Any] = {"color": colour_of(row.name), "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
    axes.barh(place, one.median, height=0.62, zorder=2, **look)
    axes.plot([one.least, one.most], [place, place], color=INK, linewidth=1, zorder=3, solid_capstyle="butt")
    for end in (one.least, one.most):
        axes.plot([end, end], [place - 0.12, place + 0.12], color=INK, linewidth=1, zorder=3)


def _label(axes: Axes, at: float, place: int, text: str) -> None:
    axes.text(at, place, text, va="center", ha="left", fontsize=8.5, zorder=5)


def _rows_axis(axes: Axes, rows: Sequence[Row], most: float, what: str) -> None:
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, most)
    axes.set_xlabel(what)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="x", color="#e8eaed", linewidth=0.7)
    axes.set_axisbelow(True)


def _title(result: Result) -> str:
    model = result.model if len(result.model) <= 60 else f"{result.model[:59]}…"
    return f"Loading {model}, {format_bytes(result.bytes)}: medians of {plural(result.rounds, 'run')}"


def colour_of(name: str) -> str:
    """A loader's, in all charts and tables."""
    return _COLOURS.get(name, _OTHER)


def floor_sentence(row: Row) -> str:
    """How close a loader came, for people; empty where no floor is known."""
    if row.nearest is None:
        return ""
    stage, share = row.nearest
    return f"{share:.0%} of {STAGES[stage]} ({format_rate(row.floors[stage], 1)})"


def _svg(figure: Figure, prefix: str) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text[text.index("<svg") :])
