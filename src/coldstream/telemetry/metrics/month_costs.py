"""The month's dollars, in a file for node exporter's textfile collector."""

from __future__ import annotations

from pathlib import Path

_NAME = "coldstream_month_dollars"


def cost_file(path: Path, projected: float, budget: float | None = None) -> str | None:
    """Writes the projected cost of the month and the budget; other metrics in the file stay.

    Args:
        path: Ends in `.prom`, in an existing directory.
        projected: The projected cost in dollars.
        budget: The budget in dollars, or None.

    Returns:
        A warning if the file was damaged and replaced.

    Raises:
        UsageError: The file holds metrics of other programs.
        DiskError: It cannot be written.
    """
    from coldstream.telemetry.metrics.families import Family, Sample
    from coldstream.telemetry.metrics.metric_names import METRICS
    from coldstream.telemetry.metrics.textfile import TextFile

    metric = next(metric for metric in METRICS if metric.name == _NAME)
    dollars = {"projected": projected} | ({"budget": budget} if budget is not None else {})
    samples: dict[Sample, float] = {(_NAME, (("kind", kind),)): amount for kind, amount in dollars.items()}
    return TextFile(path).add({_NAME: Family(metric.kind, metric.help, samples)})
