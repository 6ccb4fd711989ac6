"""Charts of a comparison, drawn by matplotlib, as SVG with its text as text, or as PNG.

Each loader has one colour in all charts. Names come from anywhere: none is interpreted as markup.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from coldstream.operate.bench.result import OK, BenchResult, BenchRow, Spread, best, seconds_text, spread
from coldstream.operate.charts import INK, figures
from coldstream.units import format_bytes, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def colour_of(name: str) -> str:
    """A loader's colour in all charts and tables."""
    return _COLOURS.get(name, _OTHER)


def png(result: BenchResult) -> bytes:
    """All charts in one picture.

    Raises:
        UsageError: matplotlib is not installed.
    """
    plan = result.plan
    name = plan.target.name if len(plan.target.name) <= 60 else f"{plan.target.name[:59]}…"
    title = f"Loading {name}, {format_bytes(plan.target.model.bytes)}: medians of {plural(plan.runs, 'run')}"
    with figures(_WIDTH_INCHES) as new_figure:
        charts = _charts(result)
        heights = [height for height, _ in charts]
        figure = new_figure(sum(heights) + 0.75)
        figure.suptitle(title, x=0.012, ha="left", fontsize=11, fontweight="bold")
        parts = figure.subfigures(len(charts), 1, height_ratios=heights, squeeze=False)
        for part, (_, draw) in zip(parts[:, 0], charts, strict=True):
            draw(part)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
        return out.getvalue()


def svgs(result: BenchResult) -> list[str]:
    """The charts for a page, in order, with ids that are unique across them.

    Raises:
        UsageError: matplotlib is not installed.
    """
    texts = []
    with figures(_WIDTH_INCHES) as new_figure:
        for prefix, (height, draw) in zip("abc", _charts(result), strict=False):
            figure, out = new_figure(height), io.StringIO()
            draw(figure)
            figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
            text = out.getvalue()
            texts.append(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text[text.index("<svg") :]))
    return texts


def _charts(result: BenchResult) -> list[tuple[float, Callable[[Any], None]]]:
    """The height in inches of each chart, and the function that draws it."""
    charts: list[tuple[float, Callable[[Any], None]]] = []
    device = result.plan.device
    place = "in host memory" if device == "cpu" else f"on {device}"
    if loads := _sorted(result.loads):
        charts += [
            (0.95 + 0.36 * len(loads), lambda part: _draw_times(part, loads, f"seconds until all is {place}")),
            (0.85 + 0.3 * len(loads), lambda part: _draw_costs(part, loads)),
        ]
    if starts := _sorted(result.starts):
        title = "seconds from the command to vLLM's first token"
        charts.append((0.95 + 0.36 * len(starts), lambda part: _draw_times(part, starts, title)))
    return charts


def _sorted(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The rows that have a figure, fastest first."""
    return sorted((row for row in rows if row.seconds), key=lambda row: row.seconds.median if row.seconds else 0.0)


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
    most = _draw_bars(axes, rows, lambda row: row.seconds, title, label, width=1.42)
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
    _draw_bars(left, rows, lambda row: row.cpu_seconds_per_gib, "CPU seconds per GiB", _two_digits)
    _draw_bars(right, rows, _gigabytes, "peak memory of all processes, GB", _two_digits)
    right.set_yticks([])


def _two_digits(_: BenchRow, value: Spread) -> str:
    return f"{value.median:.2f}"


def _gigabytes(row: BenchRow) -> Spread | None:
    return spread(run.memory_bytes / 1e9 for run in row.runs)


def _draw_bars(
    axes: Axes,
    rows: Sequence[BenchRow],
    figure: Callable[[BenchRow], Spread | None],
    title: str,
    label: Callable[[BenchRow, Spread], str],
    *,
    width: float = 1.25,
) -> float:
    """Draws one labelled bar with whiskers for each row; returns the largest value."""
    bars = [(place, row, value) for place, row in enumerate(rows) if (value := figure(row))]
    most = max((value.max for _, _, value in bars), default=1.0) or 1.0
    for place, row, value in bars:
        # Rows whose output was wrong are hatched.
        look: dict[str, Any] = {"color": colour_of(row.name), "hatch": None if row.state == OK else "////"}
        axes.barh(place, value.median, height=0.62, zorder=2, edgecolor="white", linewidth=0.5, **look)
        axes.plot([value.min, value.max], [place, place], color=INK, linewidth=1, zorder=3, solid_capstyle="butt")
        for end in (value.min, value.max):
            axes.plot([end, end], [place - 0.12, place + 0.12], color=INK, linewidth=1, zorder=3)
        text = label(row, value)
        axes.text(value.max + 0.013 * most, place, text, va="center", ha="left", fontsize=8.5, zorder=5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, width * most)
    axes.set_xlabel(title)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="x", color="#e8eaed", linewidth=0.7)
    axes.set_axisbelow(True)
    return most
