"""The curve of a bucket as a picture, and as a page of HTML that needs nothing else."""

from __future__ import annotations

import io
from html import escape
from typing import Any

from coldstream.operate.charts import check
from coldstream.tune.connection_curve import STEPS, Curve
from coldstream.units import format_rate, plural


def png(curve: Curve, name: str) -> bytes:
    """A picture.

    Args:
        curve: What was measured.
        name: Of what, for people.

    Raises:
        UsageError: matplotlib is not installed.
    """
    return _drawn(curve, name, "png")


def html(curve: Curve, name: str) -> str:
    """A page, with the picture and the figures.

    Args:
        curve: What was measured.
        name: Of what, for people; anybody may have written it.

    Raises:
        UsageError: matplotlib is not installed.
    """
    drawn = _drawn(curve, name, "svg").decode()
    rows = "".join(
        f"<tr><td>{sample.connections}</td><td>{format_rate(sample.bytes_per_second, 1)}</td>"
        f"<td>{format_rate(curve.at(sample.connections), 1)}</td></tr>"
        for sample in curve.samples
    )
    each, most = format_rate(curve.each, 1), format_rate(curve.most, 1)
    said = f"{plural(curve.connections, 'connection')} will do: each gives {each}, all together {most}."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(name)}: what the bucket gives</title>"
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2430}"
        "table{border-collapse:collapse}td,th{padding:.2rem 1rem;text-align:right;border-bottom:1px solid #e3e6ea}"
        "svg{max-width:100%;height:auto}</style></head><body>"
        f"<h1>What the bucket gives</h1><p>{escape(name)}</p>{drawn[drawn.index('<svg') :]}<p>{escape(said)}</p>"
        f"<table><tr><th>Connections</th><th>Measured</th><th>Fitted</th></tr>{rows}</table></body></html>\n"
    )


def _drawn(curve: Curve, name: str, kind: str) -> bytes:
    figure = _figure(curve, name)
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _figure(curve: Curve, name: str) -> Any:
    check()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    steps = [step for step in STEPS if step <= max(sample.connections for sample in curve.samples)]
    axes.plot(steps, [curve.at(step) / 1e6 for step in steps], color="#9aa5b1", linewidth=2, label="fitted", zorder=1)
    axes.scatter(
        [sample.connections for sample in curve.samples],
        [sample.bytes_per_second / 1e6 for sample in curve.samples],
        color="#2f6db3",
        label="measured",
        zorder=2,
    )
    axes.axvline(curve.connections, color="#b84466", linestyle="--", linewidth=1, label=f"{curve.connections} will do")
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("connections")
    axes.set_ylabel("MB/s")
    axes.set_title(name, loc="left", fontsize=10, parse_math=False)
    axes.grid(axis="y", color="#e3e6ea")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure
