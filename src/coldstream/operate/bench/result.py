"""What came out: medians, ratios, shares of the floors, one sentence. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coldstream.operate.bench.contestant import OURS, Skipped
from coldstream.operate.bench.floors import Floors
from coldstream.operate.bench.runner import Run
from coldstream.units import GIB, format_rate

OK = "ok"
WRONG = "wrong"
FAILED = "failed"
STAGES = {
    "link": "the link",
    "bucket": "what the bucket gives",
    "connections": "what its connections give",
    "tls": "what the cores decrypt",
    "receiving": "what the cores receive",
    "disk": "what the disk gives",
    "pcie": "what PCI Express carries",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over all runs.

    Attributes:
        median: The middle one.
        least: The smallest.
        most: The largest.
    """

    median: float
    least: float
    most: float

    def document(self) -> dict[str, float]:
        """For JSON."""
        return {"median": self.median, "min": self.least, "max": self.most}


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A contestant's runs.

    Attributes:
        name: As `--only` takes it.
        label: For people.
        detail: How it was set.
        versions: Of what it is made of.
        bytes: Of the tensors that it loads.
        runs: Those that were timed and succeeded.
        failure: Why it stopped, or None.
        same: Whether it gave the bytes that the others gave (of starts: the tokens); None where nothing can be said.
        floors: Stage to bytes a second.
    """

    name: str
    label: str
    detail: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    bytes: int
    runs: tuple[Run, ...] = ()
    failure: str | None = None
    same: bool | None = None
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """`OK`, `WRONG` when its bytes were others, `FAILED` when no run succeeded or one did not."""
        if self.failure is not None or not self.runs:
            return FAILED
        return WRONG if self.same is False else OK

    @property
    def seconds(self) -> Spread | None:
        """Of the load."""
        return spread([run.seconds for run in self.runs]) if self.runs else None

    @property
    def cpu_seconds_per_gib(self) -> Spread | None:
        """Of all its processes."""
        return spread([run.cpu_seconds / self.bytes * GIB for run in self.runs]) if self.runs else None

    @property
    def cpu_seconds(self) -> Spread | None:
        """The same, in all."""
        return spread([run.cpu_seconds for run in self.runs]) if self.runs else None

    @property
    def memory_bytes(self) -> Spread | None:
        """Of all its processes, at most."""
        return spread([float(run.memory_bytes) for run in self.runs]) if self.runs else None

    @property
    def rate(self) -> float | None:
        """Bytes a second, of the median."""
        return self.bytes / self.seconds.median if self.seconds and self.seconds.median > 0 else None

    @property
    def nearest(self) -> tuple[str, float] | None:
        """The stage that limits it first, and how much of that it reached; None where no floor is known."""
        if not self.floors or self.rate is None:
            return None
        stage = min(self.floors, key=lambda name: self.floors[name])
        return stage, self.rate / self.floors[stage]

    def document(self, best: float | None) -> dict[str, Any]:
        """For JSON.

        Args:
            best: The least median of all rows.
        """
        return {
            "name": self.name,
            "label": self.label,
            "state": self.state,
            "detail": self.detail,
            "versions": dict(self.versions),
            "failure": self.failure,
            "same": self.same,
            "seconds": self.seconds.document() if self.seconds else None,
            "bytes_per_second": self.rate,
            "cpu_seconds": self.cpu_seconds.document() if self.cpu_seconds else None,
            "cpu_seconds_per_gib": self.cpu_seconds_per_gib.document() if self.cpu_seconds_per_gib else None,
            "memory_bytes": self.memory_bytes.document() if self.memory_bytes else None,
            "times_best": self.seconds.median / best if self.seconds and best else None,
            "floors": dict(self.floors),
            "nearest": None if self.nearest is None else {"stage": self.nearest[0], "share": self.nearest[1]},
            "runs": [
                {
                    "seconds": run.seconds,
                    "cpu_seconds": run.cpu_seconds,
                    "whole_seconds": run.whole_seconds,
                    "whole_cpu_seconds": run.whole_cpu_seconds,
                    "memory_bytes": run.memory_bytes,
                    "import_seconds": run.result.get("import_seconds"),
                    "start": run.result.get("start"),
                }
                for run in self.runs
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole comparison.

    Attributes:
        model: Its name.
        uri: Where it lies; no secret.
        bytes: Of its tensors.
        files: How many.
        device: Where they were loaded to.
        rounds: How many runs there were of each.
        seed: Of their order.
        loads: The bare loads.
        starts: The whole starts of vLLM; empty when none were asked for.
        skipped: What was not run, and why.
        skipped_starts: Likewise.
        floors: That were measured.
        dropped: "everything", "files" or "nothing": what left the page cache before runs.
        dropped_said: The same as a sentence.
        verified: Whether a manifest names the hash of every chunk, so that coldstream compares them.
        machine: For people.
        versions: Of what is compared.
        began: ISO 8601, UTC.
    """

    model: str
    uri: str
    bytes: int
    files: int
    device: str
    rounds: int
    seed: int
    loads: tuple[Row, ...]
    starts: tuple[Row, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    skipped_starts: tuple[Skipped, ...] = ()
    floors: Floors
    dropped: str
    dropped_said: str
    verified: bool
    machine: str
    versions: Mapping[str, str]
    began: str

    @property
    def sound(self) -> bool:
        """Whether all that ran succeeded, with the same bytes."""
        return all(row.state == OK for row in (*self.loads, *self.starts))

    @property
    def terms(self) -> list[str]:
        """What the comparison means, in sentences: the order of the runs, the page cache, and who checks what."""
        order = f"an untimed run of each, then {self.rounds} x all in turn, shuffled (seed {self.seed})"
        lines = [order, *self.dropped_said.split("; ")]
        if self.loads:
            lines.append("seconds and CPU of the loads only, without Python's start and imports")
        if not self.verified:
            lines.append("the model has no manifest: no loader checks what arrives")
        elif any(row.name in OURS for row in (*self.loads, *self.starts)):
            lines.append("coldstream compares every chunk with the upload's hashes, within its seconds and CPU:")
            lines.append("buckets, proxies and disks do give wrong bytes; Run:ai, boto3, s3fs, obstore check nothing")
        return lines

    def document(self) -> dict[str, Any]:
        """For JSON."""
        floors = self.floors
        return {
            "model": self.model,
            "uri": self.uri,
            "bytes": self.bytes,
            "files": self.files,
            "device": self.device,
            "rounds": self.rounds,
            "seed": self.seed,
            "loads": [row.document(best(self.loads)) for row in self.loads],
            "starts": [row.document(best(self.starts)) for row in self.starts],
            "skipped": [_skipped(one, "load") for one in self.skipped]
            + [_skipped(one, "start") for one in self.skipped_starts],
            "floors": {
                "link": floors.card,
                "bucket": floors.bucket,
                "bucket_connections": floors.connections,
                "connection": floors.connection,
                "core": floors.core,
                "cores": floors.cores,
                "tls": floors.tls,
                "disk": floors.disk,
                "disk_direct": floors.is_disk,
                "pcie": floors.pcie,
            },
            "page_cache": {"dropped": self.dropped, "said": self.dropped_said},
            "verified": self.verified,
            "terms": self.terms,
            "verdict": [*verdict(self.loads, "load"), *verdict(self.starts, "start")],
            "machine": self.machine,
            "versions": dict(self.versions),
            "began": self.began,
        }


def best(rows: Sequence[Row]) -> float | None:
    """The least median of those that gave the right bytes."""
    return min((row.seconds.median for row in rows if row.state == OK and row.seconds), default=None)


def seconds_text(seconds: float) -> str:
    """Seconds with as many digits as tell runs apart."""
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def verdict(rows: Sequence[Row], what: str) -> list[str]:
    """What came out, in sentences: ours against the best of the others, cold and warm, and against the floor.

    Args:
        rows: Of one kind.
        what: "load" or "start".
    """
    sound = {row.name: row for row in rows if row.state == OK}
    others = [row for row in sound.values() if row.name not in OURS]
    rival = min(others, key=_median, default=None)
    lines = []
    for name in OURS:
        row = sound.get(name)
        if row is None:
            continue
        words = f"{row.label}: {seconds_text(_median(row))}"
        if rival is not None:
            words += f", {rival.label}: {seconds_text(_median(rival))}, {_compared(_median(rival) / _median(row))}"
        if what == "load" and row.nearest is not None:
            stage, share = row.nearest
            words += f"; it took {share:.0%} of {STAGES[stage]} ({format_rate(row.floors[stage], 1)})"
        lines.append(words)
    return lines


def _compared(ratio: float) -> str:
    """`ratio` times as fast, so that nobody has to turn a fraction over."""
    if 0.97 < ratio < 1.03:
        return "as fast"
    return f"{ratio:.1f} x as fast" if ratio > 1 else f"{1 / ratio:.1f} x as slow"


def _median(row: Row) -> float:
    assert row.seconds is not None
    return max(row.seconds.median, 1e-9)


def _skipped(one: Skipped, of: str) -> dict[str, Any]:
    return {"name": one.name, "label": one.label, "of": of, "reason": one.reason, "hint": one.hint}
