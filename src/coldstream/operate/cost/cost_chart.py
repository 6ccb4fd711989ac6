"""The monthly cost over the number of launches, as a chart and as a page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coldstream.operate.charts import FAINT, Panel, style_axes, svgs
from coldstream.operate.cost.bill import PLACES, R2, Bill
from coldstream.operate.cost.break_even import BreakEven, CostPoint, cost_table, count_text
from coldstream.operate.page import PageSection, PageTable, TableRow, render_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    R2: "#e08a2c",
    "r2-infrequent-access": "#a8861c",
    "s3-same-region": "#2f6db3",
    "s3-other-cloud": "#2f6db3",
    "gcs-same-region": "#2f6f4a",
    "gcs-other-cloud": "#2f6f4a",
    "hub": "#b8446a",
}
_DASHED = {"s3-other-cloud", "gcs-other-cloud"}


def panels(points: Sequence[CostPoint], launches_per_day: float) -> list[Panel]:
    """The chart, with the planned number of launches marked."""
    return [Panel(4.8, lambda part: _draw(part.subplots(), points, launches_per_day))]


def html(
    points: Sequence[CostPoint],
    launches_per_day: float,
    title: str,
    bills: Sequence[Bill],
    evens: Sequence[BreakEven],
    notes: Sequence[str],
) -> str:
    """Renders the page.

    Args:
        points: The curve.
        launches_per_day: The number of launches to mark.
        title: What was planned, for people.
        bills: The plan's, at each place.
        evens: R2 against the other places.
        notes: Sentences below the table.

    Raises:
        UsageError: matplotlib is not installed.
    """
    (chart,) = svgs(panels(points, launches_per_day))
    heading, rows = cost_table(bills, evens)
    lines = [TableRow(name, cells, less, _COLOURS[bill.key])
             for bill, (name, *cells, less) in zip(bills, rows, strict=True)]  # fmt: skip
    sections = [PageSection(chart=chart), PageSection(table=PageTable(heading, lines)), PageSection(text=notes)]
    return render_page("Monthly cost", title, sections)


def _draw(axes: Axes, points: Sequence[CostPoint], launches_per_day: float) -> None:
    launches = [point.launches_per_day for point in points]
    axes.set_xscale("log")
    # Unlike a logarithmic axis it also has a place for $0.
    axes.set_yscale("symlog", linthresh=1, linscale=0.4)
    for place in sorted(PLACES, key=lambda place: points[-1].dollars[place.key], reverse=True):
        axes.plot(
            launches,
            [point.dollars[place.key] for point in points],
            color=_COLOURS[place.key],
            linestyle="--" if place.key in _DASHED else "-",
            linewidth=2.6 if place.key == R2 else 1.6,
            zorder=3 if place.key == R2 else 2,
            label=place.label,
        )
    axes.set_xlim(launches[0], launches[-1])
    axes.set_ylim(0, max(max(point.dollars.values()) for point in points) * 1.4 or 1.0)
    axes.axvline(launches_per_day, color=FAINT, linestyle="--", linewidth=1, zorder=1)
    axes.annotate(
        f"{count_text(launches_per_day)} per day", (launches_per_day, 1.0), xycoords=("data", "axes fraction"),
        xytext=(4, -4), textcoords="offset points", va="top", color=FAINT,
    )  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"${value:,.0f}")
    axes.set_xlabel("launches per day")
    axes.set_ylabel("US dollars per month")
    style_axes(axes, "y")
