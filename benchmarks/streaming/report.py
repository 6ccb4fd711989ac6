"""Figures from samples, targets, JSON and Markdown."""

# ruff: noqa: RUF001  # signs of the Markdown that is written

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coldstream.operate.bench.result import spread

GIB = 1 << 30
MIB = 1 << 20
Rows = Mapping[str, Sequence[Mapping[str, Any] | None]]
Figure = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Target:
    """One line of the table "must reach".

    Attributes:
        measure: What is measured.
        goal: The target as text.
        values: The figure of each round.
        limit: The number to compare the median with.
        most: Whether `limit` is the most, or else the least.
        unit: Shown behind figures.
    """

    measure: str
    goal: str
    values: Sequence[float]
    limit: float
    most: bool
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the median keeps the limit; None without a figure."""
        if (figure := spread(self.values)) is None:
            return None
        return figure.median <= self.limit if self.most else figure.median >= self.limit

    def line(self) -> str:
        """The Markdown row."""
        state = {True: "reached", False: "**missed**", None: "not measured"}[self.reached]
        return f"| {self.measure} | {self.goal} | {spread_text(self.values, self.unit)} | {state} |"


def spread_text(values: Sequence[float], unit: str = "") -> str:
    """The median with minimum and maximum, in three digits."""
    if (figure := spread(values)) is None:
        return "–"
    middle = f"{short(figure.median)}{unit}"
    return middle if len(values) == 1 else f"{middle} ({short(figure.min)} to {short(figure.max)})"


def short(value: float) -> str:
    """A number in about three digits."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def present(runs: Sequence[Mapping[str, Any] | None], figure: Figure) -> list[float]:
    """A figure of the rounds that succeeded."""
    return [figure(run) for run in runs if run is not None]


def ratios(rows: Rows, one: str, other: str, figure: Figure) -> list[float]:
    """`one` over `other`, round by round, where both succeeded."""
    pairs = zip(rows.get(one, ()), rows.get(other, ()), strict=False)
    return [figure(a) / figure(b) for a, b in pairs if a is not None and b is not None]


def cpu(run: Mapping[str, Any]) -> float:
    """CPU seconds."""
    return float(run["cpu_seconds"])


def seconds(run: Mapping[str, Any]) -> float:
    """Wall seconds."""
    return float(run["seconds"])


def speed(run: Mapping[str, Any]) -> float:
    """Runs per second: for ratios of throughput."""
    return 1 / float(run["seconds"])


def table(rows: Rows, size: int) -> list[str]:
    """Medians of each row, with minimum and maximum."""
    lines = [
        "| Row | CPU-s/GiB | GiB/s | s | imports and start, CPU-s | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        if not any(runs):
            lines.append(f"| {name} | failed | | | | |")
            continue
        cells = (
            present(runs, lambda run: cpu(run) / size * GIB),
            present(runs, lambda run: size / seconds(run) / GIB),
            present(runs, seconds),
            present(runs, lambda run: run["whole_cpu_seconds"] - run["cpu_seconds"]),
            present(runs, lambda run: run["memory_bytes"] / MIB),
        )
        shown = [spread_text(cell) for cell in cells]
        if not any(cells[3]):
            shown[3] = "counted"
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def throughput_targets(label: str, found: Mapping[str, Any]) -> list[Target]:
    """The targets of the HTTP or TLS scenario."""
    rows: Rows = found["rows"]
    tls = label == "TLS"
    best_cpu = _best(rows, cpu)
    best_wall = _best(rows, seconds)
    floor_limit, cpu_limit, wall_limit, default_limit = (1.0, 0.55, 1.15, 2.2) if tls else (1.3, 0.35, 2.5, 4.0)
    default = "Run:ai, default"
    return [
        Target(
            f"CPU, {label}, over the C floor",
            f"≤ {floor_limit} ×",
            ratios(rows, "coldstream", "C floor", cpu),
            floor_limit,
            most=True,
            unit=" ×",
        ),
        Target(
            f"CPU, {label}, over Run:ai's best ({best_cpu})",
            f"≤ {cpu_limit} ×",
            ratios(rows, "coldstream", best_cpu, cpu),
            cpu_limit,
            most=True,
            unit=" ×",
        ),
        Target(
            f"throughput, {label}, over Run:ai's best ({best_wall})",
            f"≥ {wall_limit} ×",
            ratios(rows, "coldstream", best_wall, speed),
            wall_limit,
            most=False,
            unit=" ×",
        ),
        Target(
            f"throughput, {label}, over Run:ai's default",
            f"≥ {default_limit} ×",
            ratios(rows, "coldstream", default, speed),
            default_limit,
            most=False,
            unit=" ×",
        ),
    ]


def _best(rows: Rows, figure: Figure) -> str:
    """The Run:ai row with the lowest median."""
    spreads = {name: spread(present(runs, figure)) for name, runs in rows.items() if name.startswith("Run:ai")}
    medians = {name: one.median for name, one in spreads.items() if one}
    return min(medians, key=lambda name: medians[name]) if medians else "Run:ai"


def other_targets(found: Mapping[str, Mapping[str, Any]]) -> list[Target]:
    """The targets of all scenarios but HTTP and TLS, for those that were run."""
    targets: list[Target] = []
    for name, label in (("link", "link of 5 Gbit/s"), ("connections", "16 connections of 30 MB/s")):
        if scenario := found.get(name):
            allowed = scenario["allowed_bytes_per_second"]
            shares = _shares(scenario, "coldstream", allowed)
            targets.append(Target(f"{label}: share of what it allows", "≥ 95 %", shares, 95, most=False, unit=" %"))
    targets += far_targets(found.get("r2", {}).get("links", {}))
    if scenario := found.get("faults"):
        for kind, label in (
            ("slow", "1 % of ranges at 300 KB/s"),
            ("busy", "5 % answered 503"),
            ("reset", "3 % reset"),
        ):
            values = ratios(scenario["rows"], f"coldstream, {kind}", "coldstream, clean", seconds)
            targets.append(Target(f"{label}, over the clean run", "≤ 1.3 ×", values, 1.3, most=True, unit=" ×"))
        right = [float(value is True) for value in scenario["right_bytes"].values()]
        targets.append(Target("runs with faults and only right bytes, of all", "1", [min(right)], 1, most=False))
    targets += start_targets(found)
    if scenario := found.get("memory"):
        for label, values in scenario["peak_bytes"].items():
            over = [(value - scenario["limit_bytes"]) / 1e6 for value in values]
            targets.append(Target(f"memory over `memory_limit`, {label}", "≤ 150 MB", over, 150, most=True, unit=" MB"))
    if scenario := found.get("warm"):
        values = ratios(scenario["rows"], "coldstream, drain", "safetensors mmap + copy to reused memory", _load_speed)
        targets.append(Target("warm load, over mmap + copy", "≥ 1 ×", values, 1, most=False, unit=" ×"))
    if scenario := found.get("tiny"):
        many, few = (scenario["rows"].get(f"coldstream, {kind} tensors", ()) for kind in ("60,000", "few"))
        size, other = scenario["bytes"], scenario["few_bytes"]
        micros = [
            (cpu(a) - cpu(b) * size / other) / scenario["tensors"] * 1e6
            for a, b in zip(many, few, strict=False)
            if a and b
        ]
        targets.append(Target("CPU per tensor of 16 KiB", "≤ 10 µs", micros, 10, most=True, unit=" µs"))
    if scenario := found.get("leave"):
        values = scenario["gone_seconds"]
        targets.append(Target("leaving early, until all is gone", "≤ 1 s", values, 1, most=True, unit=" s"))
    return targets


def start_targets(found: Mapping[str, Mapping[str, Any]]) -> list[Target]:
    """The targets of loads in a process that has imported everything."""
    targets: list[Target] = []
    if scenario := found.get("first"):
        for label, values in scenario["seconds"].items():
            millis = [1000 * value for value in values]
            targets.append(Target(f"first tensor, {label}", "≤ 150 ms", millis, 150, most=True, unit=" ms"))
    if scenario := found.get("small"):
        for row, values in scenario["seconds"].items():
            millis = [1000 * value for value in values]
            label = f"{scenario['bytes'] / 1e6:.0f} MB in a warm process, {row}"
            targets.append(Target(label, "≤ 150 ms", millis, 150, most=True, unit=" ms"))
    return targets


def far_targets(links: Mapping[str, Mapping[str, Any]]) -> list[Target]:
    """The targets of the links to a bucket as R2 is reported to be."""
    targets: list[Target] = []
    for (name, link), least in zip(links.items(), (94, 88, 88), strict=False):
        shares = _shares(link, "coldstream", link["allowed_bytes_per_second"])
        targets.append(
            Target(f"R2-like, {name}: share of the link", f"≥ {least} %", shares, least, most=False, unit=" %")
        )
        rises = [run["rise_seconds"] for run in link["rows"].get("coldstream", ()) if run and run["rise_seconds"]]
        label = f"R2-like, {name}: from the first request to 90 % of the rate"
        targets.append(Target(label, "≤ 0.5 s", rises, 0.5, most=True, unit=" s"))
        if sum(link["answers"].values()):
            busy = 100 * link["answers"]["busy"] / sum(link["answers"].values())
            targets.append(
                Target(f"R2-like, {name}: 503s above 100 requests", "≤ 2 %", [busy], 2, most=True, unit=" %")
            )
    return targets


def far_section(links: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The share of each link that each row used."""
    names = list(dict.fromkeys(row for link in links.values() for row in link["rows"]))
    lines = [f"| Share of the link | {' | '.join(links)} |", f"|---|{'---|' * len(links)}"]
    for name in names:
        cells = [spread_text(_shares(link, name, link["allowed_bytes_per_second"]), " %") for link in links.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| CPU-s/GiB | {' | '.join(links)} |", f"|---|{'---|' * len(links)}"]
    for name in names:
        costs = [
            [GIB * cpu(run) / link["bytes"] for run in link["rows"].get(name, ()) if run] for link in links.values()
        ]
        lines.append(f"| {name} | {' | '.join(map(spread_text, costs))} |")
    return lines


def markdown(results: Mapping[str, Any]) -> str:
    """The section for docs/benchmarks.md."""
    found = results["scenarios"]
    size = results["bytes"]
    lines = [
        "## Streaming a model into memory",
        "",
        f"`{results['command']}`, {results['date']}: {results['machine']}.",
        f"{', '.join(f'{name} {text}' for name, text in results['versions'].items())}.",
        "",
        f"A Llama-like bf16 model of {size / GIB:.2f} GiB in 4 shards on tmpfs, served by nginx with two workers on",
        "the same machine, over TLS with AES-128-GCM. Every row is a process of its own, measured from spawn to exit",
        "with everything that it started; what the others spend on starting Python and importing packages (torch) is",
        "*not* charged to them, what coldstream spends is. coldstream checks the hash of every chunk, the others",
        "check nothing. Bytecode is compiled beforehand, as pip does. The C floor has one thread and one reused buffer",
        "for each of four connections.",
        f"Medians of {results['rounds']} interleaved rounds, with minimum and maximum.",
        "",
        "| Measure | Target | Measured | |",
        "|---|---|---|---|",
    ]
    targets = [t for name in ("http", "tls") if name in found for t in throughput_targets(name.upper(), found[name])]
    lines += [target.line() for target in [*targets, *other_targets(found)]]
    titles = {
        "http": "HTTP",
        "tls": "TLS, certificates verified",
        "processors": "TLS with the instructions of older processors (`OPENSSL_ia32cap`)",
        "link": "A link of 5 Gbit/s (token bucket between two network namespaces)",
        "connections": "16 connections of 30 MB/s (nginx `limit_rate`)",
        "faults": "Faults, from the benchmark's own sendfile server",
        "warm": "Warm: the local cache and safetensors, pages in memory",
        "tiny": "60,000 tensors of 16 KiB",
    }
    for name, title in titles.items():
        if scenario := found.get(name):
            lines += ["", f"### {title}", "", *table(scenario["rows"], scenario["bytes"])]
            lines += _remarks(name, scenario)
    if scenario := found.get("r2"):
        lines += ["", "### A bucket as R2 is reported to be", "", *far_section(scenario["links"])]
    return "\n".join(lines) + "\n"


def _remarks(name: str, scenario: Mapping[str, Any]) -> list[str]:
    if name in {"link", "connections"}:
        allowed = scenario["allowed_bytes_per_second"]
        shares = ((row, _shares(scenario, row, allowed)) for row in scenario["rows"])
        said = ", ".join(f"{row} {spread_text(values, ' %')}" for row, values in shares)
        return ["", f"The cap allows {allowed / 1e6:.0f} MB/s of payload; of that: {said}."]
    if name == "faults":
        return ["", f"Answers in all: {scenario['answers']}."]
    return []


def _shares(scenario: Mapping[str, Any], row: str, allowed: float) -> list[float]:
    """Percent of what a cap allows, round by round."""
    return [100 * scenario["bytes"] / seconds(run) / allowed for run in scenario["rows"].get(row, ()) if run]


def _load_speed(run: Mapping[str, Any]) -> float:
    return 1 / float(run["result"]["load_seconds"])
