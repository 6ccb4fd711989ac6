"""R2 compared with the other places: its break-even points, and the monthly cost over the launches as a chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from coldstream.operate.charts import FAINT, PageSection, Panel, TableRow, render_page, style_axes, svgs
from coldstream.operate.cost.bill import HUB, PLACES, R2, Bill, PricedPlace, bill
from coldstream.operate.cost.prices import Prices
from coldstream.operate.cost.workload import CostPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Launches per day between which a break-even point is searched, on a logarithmic grid and then by bisection.
_LAUNCHES_MIN, _LAUNCHES_MAX = 0.01, 100_000.0
_STEPS = 71
_BISECTIONS = 30
# A smaller difference does not count.
_DOLLARS_MIN = 1e-6
_POINTS = 60
_COLOURS = {
    R2.key: "#e08a2c",
    "r2-infrequent-access": "#a8861c",
    "s3-same-region": "#2f6db3",
    "s3-other-cloud": "#2f6db3",
    "gcs-same-region": "#2f6f4a",
    "gcs-other-cloud": "#2f6f4a",
    HUB.key: "#b8446a",
}
_DASHED = {"s3-other-cloud", "gcs-other-cloud"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """When R2 costs less than another place: "always", "never", or "from" or "until" a number of launches."""

    against: str
    label: str
    when: str
    launches_per_day: float | None = None

    @property
    def text(self) -> str:
        if self.launches_per_day is None:
            return self.when
        return f"{self.when} {count_text(self.launches_per_day)} per day"


@dataclass(frozen=True, slots=True)
class CostPoint:
    """The monthly cost at each place, by its key, for one number of launches."""

    launches_per_day: float
    dollars: dict[str, float]


def break_evens(plan: CostPlan, prices: Prices) -> tuple[BreakEven, ...]:
    """Compares R2 with each other place, varying only the launches of the plan."""

    def is_cheaper(other: PricedPlace, launches: float) -> bool:
        varied = replace(plan, launches_per_day=launches)
        return bill(varied, prices, other).dollars - bill(varied, prices, R2).dollars > _DOLLARS_MIN

    return tuple(_break_even(place, partial(is_cheaper, place)) for place in PLACES if place != R2)


def _break_even(place: PricedPlace, is_cheaper: Callable[[float], bool]) -> BreakEven:
    """Looks for the last change on the way up. Bills rise in steps: what holds from there on holds for more."""
    made = partial(BreakEven, against=place.key, label=place.label)
    grid = [_LAUNCHES_MIN * (_LAUNCHES_MAX / _LAUNCHES_MIN) ** (step / (_STEPS - 1)) for step in range(_STEPS)]
    cheaper = [is_cheaper(launches) for launches in grid]
    if len(set(cheaper)) == 1:
        return made(when="always" if cheaper[0] else "never")
    last = cheaper[-1]
    change = next(index for index in range(_STEPS - 1, 0, -1) if cheaper[index - 1] != last)
    low, high = grid[change - 1], grid[change]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_cheaper(middle) == last else (middle, high)
    return made(when="from" if last else "until", launches_per_day=high)


def curve(plan: CostPlan, prices: Prices) -> tuple[CostPoint, ...]:
    """The monthly cost from at most one launch in ten days to ten times the plan's launches."""
    first = min(0.1, plan.launches_per_day / 10)
    last = max(1000.0, plan.launches_per_day * 10)
    steps = {first * (last / first) ** (step / (_POINTS - 1)) for step in range(_POINTS)}
    return tuple(
        CostPoint(
            launches,
            {place.key: bill(replace(plan, launches_per_day=launches), prices, place).dollars for place in PLACES},
        )
        for launches in sorted({*steps, plan.launches_per_day})
    )


def cost_table(bills: Sequence[Bill], evens: Sequence[BreakEven]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the bills as text; the GPUs' column is left out if their time has no price."""
    has_gpus = any(bill.gpu_dollars is not None for bill in bills)
    gpus = ["GPUS"] if has_gpus else []
    heading = ["PER MONTH", "STORAGE", "CLASS A", "CLASS B", "RETRIEVAL", "EGRESS", *gpus, "TOTAL", "R2 COSTS LESS"]
    less = {even.against: even.text for even in evens}
    rows = []
    for month in bills:
        amounts = [charge.dollars for charge in month.charges] + ([month.gpu_dollars or 0.0] if has_gpus else [])
        rows.append([month.label, *map(dollars_text, [*amounts, month.dollars]), less.get(month.key, "-")])
    return heading, rows


def dollars_text(amount: float) -> str:
    """An amount in dollars and cents."""
    # A tenth of a cent must not look like nothing.
    return "<$0.01" if 0 < amount < 0.005 else f"${amount:,.2f}"


def count_text(count: float) -> str:
    """A number of launches: whole, or in two digits if it is small."""
    return f"{count:,.0f}" if count >= 99.5 else f"{count:.2g}"


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
    """Renders the page: the chart, the table, and the notes below it; UsageError if matplotlib is not installed."""
    heading, rows = cost_table(bills, evens)
    lines = [TableRow(name, cells, less, _COLOURS[bill.key])
             for bill, (name, *cells, less) in zip(bills, rows, strict=True)]  # fmt: skip
    (chart,) = svgs(panels(points, launches_per_day))
    sections = [PageSection(chart=chart, heading=heading, rows=lines), PageSection(text=notes)]
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
            linewidth=2.6 if place == R2 else 1.6,
            zorder=3 if place == R2 else 2,
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
