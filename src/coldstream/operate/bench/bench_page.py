"""The result as one page of HTML, without scripts, fonts or network access."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from coldstream.operate.bench.bench_chart import colour_of, svgs
from coldstream.operate.bench.result import LOAD_COLUMNS, START_COLUMNS, BenchResult, BenchRow, table_cells
from coldstream.units import format_bytes, plural


def html(result: BenchResult) -> str:
    """Renders the page.

    Raises:
        UsageError: matplotlib is not installed.
    """
    plan, target = result.plan, result.plan.target
    size = f"{format_bytes(target.model.bytes)} in {plural(len(target.shards), 'file')}"
    runs = f"{plural(plan.runs, 'timed run')} of each, interleaved, after an untimed one"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    tables = [
        (title, columns[1:], list(zip(rows, (cells[1:] for cells in table_cells(rows, columns)), strict=True)))
        for title, rows, columns in (
            ("Loads", result.loads, LOAD_COLUMNS),
            ("Whole starts of vLLM, to the first token", result.starts, START_COLUMNS),
        )
        if rows
    ]
    environment = Environment(
        loader=PackageLoader("coldstream.operate.bench", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("bench_page.html.j2").render(
        model=target.name,
        subtitle=f"{size} from {target.label} to {plan.device}; {runs}",
        result=result,
        charts=svgs(result),
        tables=tables,
        skipped=dict.fromkeys(f"{one.label}: {one.reason}" for one in result.skipped),
        footer=f"{'. '.join(result.terms)}. {result.machine}. {versions}. {result.began}.",
        colour=colour_of,
        note=_note,
    )


def _note(row: BenchRow) -> str:
    contestant = row.contestant
    failed = f"failed: {row.failure}" if row.failure else ""
    wrong = "its output differed from the other loaders'" if row.same is False else ""
    versions = ", ".join(f"{name} {version}" for name, version in contestant.versions.items())
    return "; ".join(filter(None, (failed, wrong, contestant.detail, row.floor_text(), versions)))
