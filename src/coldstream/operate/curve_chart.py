"""A bucket's throughput over the number of connections, as a chart and as a page of HTML."""

from __future__ import annotations

from coldstream.operate.charts import Axes, Page, PageSection, Panel, TableRow, style_axes
from coldstream.tune.connection_curve import STEPS, Curve
from coldstream.units import format_rate, plural


def curve_page(curve: Curve, name: str) -> Page:
    """The page for a model of this name."""
    rows = []
    for sample in curve.samples:
        rates = sample.bytes_per_second, curve.at(sample.connections)
        rows.append(TableRow(plural(sample.connections, "connection"), [format_rate(rate, 1) for rate in rates]))
    verdict = (
        f"{plural(curve.connections, 'connection')} are enough: one gives {format_rate(curve.each, 1)}, "
        f"all together {format_rate(curve.most, 1)}."
    )
    chart = Panel(4.4, lambda part: _draw(part.subplots(), curve))
    sections = [PageSection(chart=chart, text=[verdict], heading=("", "Measured", "Fitted", ""), rows=rows)]
    return Page(title="Throughput of the bucket", subtitle=name, sections=sections, caption=name)


def _draw(axes: Axes, curve: Curve) -> None:
    measured = [sample.connections for sample in curve.samples]
    steps = [step for step in STEPS if step <= max(measured)]
    axes.plot(steps, [curve.at(step) / 1e6 for step in steps], color="#9aa5b1", linewidth=2, label="fitted", zorder=1)
    rates = [sample.bytes_per_second / 1e6 for sample in curve.samples]
    axes.scatter(measured, rates, color="#2f6db3", label="measured", zorder=2)
    label = f"enough: {plural(curve.connections, 'connection')}"
    axes.axvline(curve.connections, color="#b84466", linestyle="--", linewidth=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("connections")
    axes.set_ylabel("MB/s")
    style_axes(axes, "y")
    axes.legend(frameon=False, loc="upper left")
