"""Prometheus' text format, read and written by its own client."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import prometheus_client as prometheus
from prometheus_client.metrics_core import Metric as Collected
from prometheus_client.parser import text_string_to_metric_families

from coldstream.errors import IntegrityError, UsageError
from coldstream.telemetry.metrics.families import Families, Family

# A whole line about a metric that is not ours.
_FOREIGN = re.compile(r"^(?:# (?:HELP|TYPE) )?(?!coldstream_)([A-Za-z_:][\w:]*)[^\n]*\n", re.ASCII | re.MULTILINE)


def parse(data: bytes, *, where: str) -> Families:
    """Reads the text format.

    Args:
        data: The file's bytes.
        where: Its path, for messages.

    Raises:
        IntegrityError: It is damaged.
        UsageError: It holds metrics of other programs.
    """
    if foreign := _FOREIGN.search(data.decode(errors="replace")):
        # Checked first: a file of another program may be damaged as well, and must not be replaced.
        raise UsageError(
            f"the metrics' file {where} holds {foreign[1][:80]}, which does not belong to coldstream",
            hint="give coldstream a file of its own",
        )
    families: Families = {}
    try:
        if not data.endswith(b"\n"):
            raise ValueError("it is cut short")
        for collected in text_string_to_metric_families(data.decode()):
            if collected.name in families:
                raise ValueError(f"{collected.name} is listed twice")
            families[collected.name] = _family(collected)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as exc:
        raise IntegrityError(f"the metrics' file {where} is damaged") from exc
    return families


def render(families: Families) -> bytes:
    """Writes the text format."""
    collected = []
    for name, family in families.items():
        metric = Collected(name, family.help, family.kind)
        for (sample, labels), value in family.samples.items():
            metric.add_sample(sample, dict(labels), value)
        if metric.samples:
            collected.append(metric)
    return prometheus.generate_latest(_Fixed(collected))


def _family(collected: Collected) -> Family:
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
        for sample in collected.samples
        # The time at which a counter was created.
        if not sample.name.endswith("_created")
    }
    family = Family(collected.type, collected.documentation, samples)
    if family.kind not in {"counter", "gauge", "histogram"}:
        raise ValueError(f"{collected.name} is a {family.kind}")
    if not all(math.isfinite(value) and (family.kind == "gauge" or value >= 0) for value in family.samples.values()):
        raise ValueError(f"{collected.name} has an impossible value")
    return family


class _Fixed:
    """The part of a registry that the client calls."""

    def __init__(self, collected: Sequence[Collected]) -> None:
        self._all = collected

    def collect(self) -> Sequence[Collected]:
        return self._all
