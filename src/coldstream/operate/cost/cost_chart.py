"""What a month costs over the number of launches, as a picture, and as a page of HTML that needs nothing else."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from html import escape
from typing import Any

from coldstream.operate.charts import FAINT, SETTINGS, check
from coldstream.operate.cost.bill import PLACES, R2, Bill
from coldstream.operate.cost.break_even import BreakEven, Point
from coldstream.operate.cost.workload import Plan

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
# Labels at the lines' ends keep so much of the axis' height apart.
_APART = 0.052


def png(points: Sequence[Point], plan: Plan, title: str) -> bytes:
    """A picture.

    Args:
        points: The curve.
        plan: Whose number of launches is marked.
        title: For people; anybody may have written it.

    Raises:
        UsageError: matplotlib is not installed.
    """
    return _drawn(points, plan, title, "png")


def html(
    points: Sequence[Point],
    plan: Plan,
    title: str,
    bills: Sequence[Bill],
    evens: Sequence[BreakEven],
    said: Sequence[str],
) -> str:
    """A page, with the picture, the bills and what is to be said of them.

    Args:
        points: The curve.
        plan: Whose number of launches is marked.
        title: For people; anybody may have written it.
        bills: Of the plan.
        evens: R2 against the others.
        said: Sentences below.

    Raises:
        UsageError: matplotlib is not installed.
    """
    drawn = _drawn(points, plan, title, "svg").decode()
    waits = any(bill.gpu_dollars is not None for bill in bills)
    head = [
        "",
        "Storage",
        "Class A",
        "Class B",
        "Retrieval",
        "Egress",
        *(["GPUs waiting"] if waits else []),
        "A month",
        "R2 costs less",
    ]
    rows = []
    less = {even.against: when(even) for even in evens}
    for bill in bills:
        lines = (bill.storage, bill.class_a, bill.class_b, bill.retrieval, bill.egress)
        cells = [line.dollars for line in lines] + ([bill.gpu_dollars or 0.0] if waits else []) + [bill.dollars]
        numbers = "".join(f"<td>${cell:,.2f}</td>" for cell in cells)
        rows.append(f"<tr><th>{escape(bill.label)}</th>{numbers}<td>{less.get(bill.key, '')}</td></tr>")
    sentences = "".join(f"<p>{escape(line)}</p>" for line in said)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}: what a month costs</title>"
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1f2430}"
        "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .6rem;text-align:right;"
        "border-bottom:1px solid #e3e6ea;font-weight:normal;white-space:nowrap}tr>th:first-child{text-align:left}"
        "td:nth-last-child(2),thead th{font-weight:600}p{margin:.3rem 0}svg{max-width:100%;height:auto}"
        "</style></head><body>"
        f"<h1>What a month costs</h1>{drawn[drawn.index('<svg') :]}"
        f"<table><thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f"</table>{sentences}</body></html>\n"
    )


def when(even: BreakEven) -> str:
    """At how many launches R2 costs less than another place, in few words."""
    if even.launches_per_day is None:
        return even.when
    return f"{even.when} {_number(even.launches_per_day)} a day"


def _number(count: float) -> str:
    return f"{count:,.0f}" if count >= 99.5 else f"{count:.2g}"


def _drawn(points: Sequence[Point], plan: Plan, title: str, kind: str) -> bytes:
    check()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with mpl.rc_context(), warnings.catch_warnings():
        # A script without a font is drawn as boxes, and said nothing about.
        warnings.simplefilter("ignore")
        mpl.rcdefaults()
        mpl.rcParams.update({**SETTINGS, "ytick.color": FAINT})
        figure = Figure(figsize=(9.6, 5.0), layout="constrained", facecolor="white")
        _draw(figure.subplots(), points, plan, title)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


def _draw(axes: Any, points: Sequence[Point], plan: Plan, title: str) -> None:
    launches = [point.launches_per_day for point in points]
    top = max(max(point.dollars.values()) for point in points) * 1.4 or 1.0
    axes.set_xscale("log")
    # Nothing is on it as well: what costs nothing costs nothing here.
    axes.set_yscale("symlog", linthresh=1, linscale=0.4)
    for place in PLACES:
        axes.plot(
            launches,
            [point.dollars[place.key] for point in points],
            color=_COLOURS[place.key],
            linestyle="--" if place.key in _DASHED else "-",
            linewidth=2.6 if place.key == R2 else 1.6,
            zorder=3 if place.key == R2 else 2,
        )
    axes.set_xlim(launches[0], launches[-1])
    axes.set_ylim(0, top)
    axes.axvline(plan.launches_per_day, color=FAINT, linestyle="--", linewidth=1, zorder=1)
    axes.annotate(
        f"{_number(plan.launches_per_day)} a day", (plan.launches_per_day, 1.0), xycoords=("data", "axes fraction"),
        xytext=(4, -4), textcoords="offset points", va="top", color=FAINT,
    )  # fmt: skip
    _label(axes, points[-1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"${value:,.0f}")
    axes.set_xlabel("launches a day")
    axes.set_ylabel("US dollars a month")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="y", color="#e8eaed", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: Any, last: Point) -> None:
    """The places' names at the right ends of their lines, moved apart where lines end together."""
    to_axes = axes.transScale + axes.transLimits
    ends = sorted(
        ((float(to_axes.transform((last.launches_per_day, last.dollars[place.key]))[1]), place) for place in PLACES),
        key=lambda pair: pair[0],
    )
    heights: list[float] = []
    for end, _ in ends:
        heights.append(max(end, heights[-1] + _APART if heights else end))
    limit = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], limit)
        limit = heights[index] - _APART
    for height, (end, place) in zip(heights, ends, strict=True):
        axes.annotate(
            place.label,
            (1.0, end),
            xycoords="axes fraction",
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=_COLOURS[place.key],
            fontweight="bold" if place.key == R2 else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": _COLOURS[place.key],
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )
