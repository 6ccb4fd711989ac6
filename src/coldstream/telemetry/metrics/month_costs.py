"""The month's dollars, in a file for node exporter's textfile collector."""

from __future__ import annotations

from pathlib import Path

_NAME = "coldstream_month_dollars"


def cost_file(path: Path, projected: float, budget: float | None = None) -> str | None:
    """Writes what the month will cost, and what it may; other metrics of the file stay.

    Args:
        path: It ends in `.prom`; its folder exists.
        projected: Dollars that the month will have cost at its end, as it goes.
        budget: Dollars that it may cost; None: nobody has said.

    Returns:
        What the user should know: that the file was damaged, and begins anew.

    Raises:
        UsageError: The file holds metrics of others.
        DiskError: It cannot be written.
    """
    from coldstream.telemetry.metrics.families import Family, Sample
    from coldstream.telemetry.metrics.metric_names import METRICS
    from coldstream.telemetry.metrics.textfile import TextFile

    metric = next(metric for metric in METRICS if metric.name == _NAME)
    dollars = {"projected": projected} | ({"budget": budget} if budget is not None else {})
    samples: dict[Sample, float] = {(_NAME, (("kind", kind),)): amount for kind, amount in dollars.items()}
    return TextFile(path).add({_NAME: Family(metric.kind, metric.help, samples)})
