"""The outcome of a comparison: medians, ratios, shares of the floors, a verdict; its charts and its page of HTML."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from coldstream.operate.bench.contestant import NAMES, OURS, BenchPlan, Contestant, Skipped
from coldstream.operate.bench.floors import STAGES, Floors, page_cache_text
from coldstream.operate.bench.runner import Run
from coldstream.operate.charts import INK, Axes, Page, PageSection, Panel, TableRow, label_rows, style_axes
from coldstream.units import GIB, format_bytes, format_rate, plural

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
        if self.failure is not None or not self.runs:
            return FAILED
        return WRONG if self.same is False else OK

    @property
    def spreads(self) -> dict[str, Spread]:
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
        return self.bytes / self.seconds.median if self.seconds and self.seconds.median > 0 else None

    @property
    def nearest(self) -> tuple[str, float] | None:
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
            lines.append("Run:ai, boto3, s3fs, obstore and mounts verify nothing")
        return lines

    @property
    def _page_cache(self) -> str:
        return page_cache_text(self.dropped, requested=self.plan.drop_caches)

    @property
    def verdict(self) -> list[str]:
        return [*verdict(self.loads, "load"), *verdict(self.starts, "start")]

    def document(self) -> dict[str, Any]:
        plan, target = self.plan, self.plan.target
        return {
            "model": target.name, "uri": target.label, "bytes": target.model.bytes, "files": len(target.shards),
            "verified": target.verified, "device": plan.device, "rounds": plan.runs, "seed": plan.seed,
            "loads": [row.document(best(self.loads)) for row in self.loads],
            "starts": [row.document(best(self.starts)) for row in self.starts],
            "skipped": [asdict(one) for one in self.skipped],
            "floors": asdict(self.floors),
            "page_cache": {"dropped": self.dropped, "said": self._page_cache},
            **{name: getattr(self, name) for name in ("terms", "verdict", "machine", "versions", "began")},
        }  # fmt: skip


def best(rows: Sequence[BenchRow]) -> float | None:
    """The lowest median of the rows with the right bytes."""
    return min((row.seconds.median for row in rows if row.state == OK and row.seconds), default=None)


COLUMNS = {
    "load": ("NAME", "MEDIAN", "MIN-MAX", "RATE", "CPU-S/GIB", "MEMORY", "VS BEST", "OF FLOOR"),
    "start": ("NAME", "MEDIAN", "MIN-MAX", "CPU-S", "MEMORY", "VS BEST"),
}


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
            "NAME": row.label, "MEDIAN": seconds_text(seconds.median),
            "MIN-MAX": f"{seconds_text(seconds.min)[:-2]}-{seconds_text(seconds.max)}",
            "RATE": format_rate(row.bytes, seconds.median), "MEMORY": format_bytes(memory.median),
            "CPU-S/GIB": f"{cpu_per_gib.median:.2f}", "CPU-S": f"{cpu.median:.1f}",
            "VS BEST": f"{seconds.median / least:.1f} x" if least else "-",
            "OF FLOOR": f"{row.nearest[1]:.0%} {row.nearest[0]}" if row.nearest else "-",
        }  # fmt: skip
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


# In the order of `NAMES`; related loaders have related colours.
_PALETTE = "#2f6db3 #7aa8db #e0a458 #c9752d #7d8794 #a9b1bb #c0b3d3 #a7c4a0 #8fb3ae #5e8c87"
_COLOURS = dict(zip(NAMES, _PALETTE.split(), strict=True))
_FLOOR = "#b8446a"


def _panels(result: BenchResult) -> list[Panel]:
    charts = []
    device = result.plan.device
    place = "in host memory" if device == "cpu" else f"on {device}"
    if loads := _sorted(result.loads):
        times = f"seconds until all is {place}"
        charts.append(Panel(0.95 + 0.36 * len(loads), lambda part: _draw_times(part, loads, times)))
        charts.append(Panel(0.85 + 0.3 * len(loads), lambda part: _draw_costs(part, loads)))
    if starts := _sorted(result.starts):
        title = "seconds from the command to vLLM's first token"
        charts.append(Panel(0.95 + 0.36 * len(starts), lambda part: _draw_times(part, starts, title)))
    return charts


def bench_page(result: BenchResult) -> Page:
    """The page, with the times and costs of the loads, and the times of the starts, as far as there are any."""
    plan, target = result.plan, result.plan.target
    size = f"{format_bytes(target.model.bytes)} in {plural(len(target.shards), 'file')}"
    runs = f"{plural(plan.runs, 'timed run')} of each, interleaved, after an untimed one"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    sections = [PageSection(text=result.verdict), *(PageSection(chart=panel) for panel in _panels(result))]
    for title, rows, columns in (
        ("Loads", result.loads, COLUMNS["load"]),
        ("Whole starts of vLLM, to the first token", result.starts, COLUMNS["start"]),
    ):
        if rows:
            lines = [
                TableRow(row.label, cells[1:], _note(row), _colour(row))
                for row, cells in zip(rows, table_cells(rows, columns), strict=True)
            ]
            heading = ("Loader", *columns[1:], "Configuration and closest floor")
            sections.append(PageSection(title=title, heading=heading, rows=lines))
    if skipped := list(dict.fromkeys(f"{one.label}: {one.reason}" for one in result.skipped)):
        sections.append(PageSection(title="Skipped", text=skipped))
    if floors := [TableRow(stage, (), text) for stage, text in result.floors.lines()]:
        sections.append(PageSection(title="Floors, measured before the loads", rows=floors))
    name = target.name if len(target.name) <= 60 else f"{target.name[:59]}…"
    return Page(
        title=f"Loading {target.name}",
        subtitle=f"{size} from {target.label} to {plan.device}; {runs}",
        sections=sections,
        footer=f"{'. '.join(result.terms)}. {result.machine}. {versions}. {result.began}.",
        caption=f"Loading {name}, {format_bytes(target.model.bytes)}: medians of {plural(plan.runs, 'run')}",
    )


def _note(row: BenchRow) -> str:
    contestant = row.contestant
    failed = f"failed: {row.failure}" if row.failure else ""
    wrong = "its output differed from the other loaders'" if row.same is False else ""
    versions = ", ".join(f"{name} {version}" for name, version in contestant.versions.items())
    return "; ".join(filter(None, (failed, wrong, contestant.detail, row.floor_text, versions)))


def _sorted(rows: Sequence[BenchRow]) -> list[BenchRow]:
    return sorted((row for row in rows if row.runs), key=lambda row: row.spreads["seconds"])


def _draw_times(part: Any, rows: Sequence[BenchRow], title: str) -> None:
    axes = part.subplots()
    least = best(rows)

    def label(row: BenchRow, seconds: Spread) -> str:
        words = [seconds_text(seconds.median)]
        words += [f"{seconds.median / least:.1f} x"] if least else []
        words += [row.state] if row.state != OK else []
        words += [f"{row.nearest[1]:.0%} of {row.nearest[0]}"] if row.nearest else []
        return "   ".join(words)

    title += "; whiskers: minimum and maximum of all runs"
    most = _draw_bars(axes, rows, "seconds", title, label, width=1.42)
    legend = "the time that its lowest floor allows"
    for place, row in enumerate(rows):
        if row.nearest and (floor := row.bytes / row.floors[row.nearest[0]]) < 1.02 * most:
            ends = [place - 0.36, place + 0.36]
            axes.plot([floor, floor], ends, color=_FLOOR, linewidth=1.6, zorder=4, label=legend)
            legend = "_"
    if legend == "_":
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8.5, borderaxespad=0)


def _draw_costs(part: Any, rows: Sequence[BenchRow]) -> None:
    left, right = part.subplots(1, 2)
    _draw_bars(left, rows, "cpu_seconds_per_gib", "CPU seconds per GiB")
    _draw_bars(right, rows, "memory_bytes", "peak memory of all processes, GB", unit=1e9)
    right.set_yticks([])


def _colour(row: BenchRow) -> str:
    return _COLOURS.get(row.name, "#b5b5b5")


def _draw_bars(
    axes: Axes,
    rows: Sequence[BenchRow],
    figure: str,
    title: str,
    label: Callable[[BenchRow, Spread], str] = lambda _, value: f"{value.median:.2f}",
    *,
    unit: float = 1,
    width: float = 1.25,
) -> float:
    """Draws one labelled bar with whiskers for each row; returns the largest value."""
    values = [Spread(*(number / unit for number in row.spreads[figure])) for row in rows]
    most = max(value.max for value in values) or 1.0
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        # Rows whose output was wrong are hatched.
        look: dict[str, Any] = {"color": _colour(row), "hatch": None if row.state == OK else "////"}
        axes.barh(place, value.median, height=0.62, zorder=2, edgecolor="white", linewidth=0.5, **look)
        whiskers = [[value.median - value.min], [value.max - value.median]]
        axes.errorbar(value.median, place, xerr=whiskers, ecolor=INK, fmt="none", elinewidth=1, capsize=3, zorder=3)
        text = label(row, value)
        axes.text(value.max + 0.013 * most, place, text, va="center", ha="left", fontsize=8.5, zorder=5)
    label_rows(axes, [row.label for row in rows])
    axes.set_xlim(0, width * most)
    axes.set_xlabel(title)
    style_axes(axes, "x")
    return most
