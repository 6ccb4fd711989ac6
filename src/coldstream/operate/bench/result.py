"""The outcome of a comparison: medians, ratios, shares of the floors, a verdict. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from coldstream.operate.bench.contestant import OURS, BenchPlan, Contestant, Skipped
from coldstream.operate.bench.floors import STAGES, Floors, page_cache_text
from coldstream.operate.bench.runner import Run
from coldstream.units import GIB, format_bytes, format_rate

OK, WRONG, FAILED = "ok", "wrong", "failed"


class Spread(NamedTuple):
    """Of several runs."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def spread(values: Sequence[float]) -> Spread | None:
    """None without any value."""
    return Spread.of(values) if values else None


@dataclass(slots=True, kw_only=True)
class BenchRow:
    """A contestant and its runs."""

    contestant: Contestant
    bytes: int
    runs: Sequence[Run] = ()  # the timed runs that succeeded
    failure: str | None = None  # why the last failed run failed
    digest: str | None = None  # of the tensors, or of a completion, in the first run
    same: bool | None = None  # whether the digest equals the others'; None where they cannot be compared
    floors: Mapping[str, float] = field(default_factory=dict)  # stage to bytes per second

    @property
    def name(self) -> str:
        return self.contestant.name

    @property
    def label(self) -> str:
        return self.contestant.label

    @property
    def state(self) -> str:
        """`FAILED` if any run failed, `WRONG` if the bytes were wrong, else `OK`."""
        if self.failure is not None or not self.runs:
            return FAILED
        return WRONG if self.same is False else OK

    @property
    def spreads(self) -> dict[str, Spread]:
        """Of each figure over the runs; empty without any."""
        if not self.runs:
            return {}
        cpu_seconds = [run.cpu_seconds for run in self.runs]
        return {
            "seconds": Spread.of([run.seconds for run in self.runs]),
            "cpu_seconds": Spread.of(cpu_seconds),
            "cpu_seconds_per_gib": Spread.of([seconds / self.bytes * GIB for seconds in cpu_seconds]),
            "memory_bytes": Spread.of([run.memory_bytes for run in self.runs]),
        }

    @property
    def seconds(self) -> Spread | None:
        return self.spreads.get("seconds")

    @property
    def rate(self) -> float | None:
        """Bytes per second of the median run."""
        return self.bytes / self.seconds.median if self.seconds and self.seconds.median > 0 else None

    @property
    def nearest(self) -> tuple[str, float] | None:
        """The lowest floor and the share of it that was reached; None if no floor is known."""
        if not self.floors or self.rate is None:
            return None
        stage = min(self.floors, key=lambda name: self.floors[name])
        return stage, self.rate / self.floors[stage]

    @property
    def floor_text(self) -> str:
        """How close it came to its lowest floor, for people; empty if no floor is known."""
        if self.nearest is None:
            return ""
        stage, share = self.nearest
        return f"{share:.0%} of {STAGES[stage]} ({format_rate(self.floors[stage], 1)})"

    def document(self, best: float | None) -> dict[str, Any]:
        """For JSON; `best` is the lowest median of all rows."""
        figures = ("seconds", "cpu_seconds", "cpu_seconds_per_gib", "memory_bytes")
        return {
            **{name: getattr(self, name) for name in ("name", "label", "state", "failure", "same")},
            "detail": self.contestant.detail,
            "versions": dict(self.contestant.versions),
            **{name: self.spreads[name]._asdict() if self.runs else None for name in figures},
            "bytes_per_second": self.rate,
            "times_best": self.seconds.median / best if self.seconds and best else None,
            "floors": dict(self.floors),
            "nearest": self.nearest and {"stage": self.nearest[0], "share": self.nearest[1]},
            "runs": [run.document() for run in self.runs],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """A whole comparison; `dropped` is what `drop_page_cache` returned, `began` ISO 8601 in UTC."""

    plan: BenchPlan
    loads: Sequence[BenchRow]
    starts: Sequence[BenchRow] = ()
    skipped: Sequence[Skipped] = ()
    floors: Floors
    dropped: str
    machine: str
    versions: Mapping[str, str]
    began: str

    @property
    def rows(self) -> list[BenchRow]:
        return [*self.loads, *self.starts]

    @property
    def is_sound(self) -> bool:
        return all(row.state == OK for row in self.rows)

    @property
    def terms(self) -> list[str]:
        """How the comparison was made: the order of the runs, the page cache, and which loaders verify."""
        plan = self.plan
        lines = [
            f"an untimed run of each, then {plan.runs} rounds of all in shuffled order (seed {plan.seed})",
            *self._page_cache.split("; "),
        ]
        if self.loads:
            lines.append("seconds and CPU are of the loads only, without Python's start and imports")
        if not plan.target.verified:
            lines.append("the model has no manifest, so no loader verifies what it receives")
        elif any(row.name in OURS for row in self.rows):
            lines.append("coldstream verifies every chunk against the upload's hashes, within its seconds and CPU;")
            lines.append("Run:ai, boto3, s3fs and obstore verify nothing")
        return lines

    @property
    def _page_cache(self) -> str:
        return page_cache_text(self.dropped, requested=self.plan.drop_caches)

    @property
    def verdict(self) -> list[str]:
        return [*verdict(self.loads, "load"), *verdict(self.starts, "start")]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        plan, target = self.plan, self.plan.target
        return {
            "model": target.name,
            "uri": target.label,
            "bytes": target.model.bytes,
            "files": len(target.shards),
            "verified": target.verified,
            "device": plan.device,
            "rounds": plan.runs,
            "seed": plan.seed,
            "loads": [row.document(best(self.loads)) for row in self.loads],
            "starts": [row.document(best(self.starts)) for row in self.starts],
            "skipped": [asdict(one) for one in self.skipped],
            "floors": asdict(self.floors),
            "page_cache": {"dropped": self.dropped, "said": self._page_cache},
            **{name: getattr(self, name) for name in ("terms", "verdict", "machine", "versions", "began")},
        }


def best(rows: Sequence[BenchRow]) -> float | None:
    """The lowest median of the rows with the right bytes."""
    return min((row.seconds.median for row in rows if row.state == OK and row.seconds), default=None)


LOAD_COLUMNS = ("NAME", "MEDIAN", "MIN-MAX", "RATE", "CPU-S/GIB", "MEMORY", "VS BEST", "OF FLOOR")
START_COLUMNS = ("NAME", "MEDIAN", "MIN-MAX", "CPU-S", "MEMORY", "VS BEST")


def table_cells(rows: Sequence[BenchRow], columns: Sequence[str]) -> list[list[str]]:
    """The cells of each row, for these columns."""
    least = best(rows)
    table = []
    for row in rows:
        if not row.runs:
            table.append([row.label, "failed", *["-"] * (len(columns) - 2)])
            continue
        seconds, cpu, cpu_per_gib, memory = row.spreads.values()
        cells = {
            "NAME": row.label,
            "MEDIAN": seconds_text(seconds.median),
            "MIN-MAX": f"{seconds_text(seconds.min)[:-2]}-{seconds_text(seconds.max)}",
            "RATE": format_rate(row.bytes, seconds.median),
            "CPU-S/GIB": f"{cpu_per_gib.median:.2f}",
            "CPU-S": f"{cpu.median:.1f}",
            "MEMORY": format_bytes(memory.median),
            "VS BEST": f"{seconds.median / least:.1f} x" if least else "-",
            "OF FLOOR": f"{row.nearest[1]:.0%} {row.nearest[0]}" if row.nearest else "-",
        }
        table.append([cells[name] for name in columns])
    return table


def seconds_text(seconds: float) -> str:
    """Seconds with enough digits to tell runs apart."""
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def verdict(rows: Sequence[BenchRow], kind: str) -> list[str]:
    """Sentences that compare coldstream, cold and warm, with the fastest other loader and, for loads, the floor."""
    medians = {row.name: max(row.seconds.median, 1e-9) for row in rows if row.state == OK and row.seconds}
    sound = {row.name: row for row in rows if row.name in medians}
    rival = min((name for name in medians if name not in OURS), key=lambda name: medians[name], default=None)
    lines = []
    for name in (name for name in OURS if name in sound):
        line = f"{sound[name].label}: {seconds_text(medians[name])}"
        if rival is not None:
            ratio = medians[rival] / medians[name]
            compared = f"{ratio:.1f} x as fast" if ratio > 1 else f"{1 / ratio:.1f} x as slow"
            compared = "equally fast" if 0.97 < ratio < 1.03 else compared
            line += f", {sound[rival].label}: {seconds_text(medians[rival])}, {compared}"
        if kind == "load" and sound[name].nearest is not None:
            line += f"; it reached {sound[name].floor_text}"
        lines.append(line)
    return lines
