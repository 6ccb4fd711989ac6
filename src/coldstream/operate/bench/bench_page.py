"""The result of a comparison as a page of HTML."""

from __future__ import annotations

from coldstream.operate.bench.bench_chart import colour_of, panels
from coldstream.operate.bench.result import LOAD_COLUMNS, START_COLUMNS, BenchResult, BenchRow, table_cells
from coldstream.operate.charts import svgs
from coldstream.operate.page import PageSection, PageTable, TableRow, render_page
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
    sections = [PageSection(text=result.verdict), *(PageSection(chart=chart) for chart in svgs(panels(result)))]
    for title, rows, columns in (
        ("Loads", result.loads, LOAD_COLUMNS),
        ("Whole starts of vLLM, to the first token", result.starts, START_COLUMNS),
    ):
        if rows:
            lines = [
                TableRow(row.label, cells[1:], _note(row), colour_of(row.name))
                for row, cells in zip(rows, table_cells(rows, columns), strict=True)
            ]
            heading = ("Loader", *columns[1:], "Configuration and closest floor")
            sections.append(PageSection(title=title, table=PageTable(heading, lines)))
    if skipped := list(dict.fromkeys(f"{one.label}: {one.reason}" for one in result.skipped)):
        sections.append(PageSection(title="Skipped", text=skipped))
    if floors := [TableRow(stage, (), text) for stage, text in result.floors.lines()]:
        sections.append(PageSection(title="Floors, measured before the loads", table=PageTable((), floors)))
    return render_page(
        f"Loading {target.name}",
        f"{size} from {target.label} to {plan.device}; {runs}",
        sections,
        footer=f"{'. '.join(result.terms)}. {result.machine}. {versions}. {result.began}.",
    )


def _note(row: BenchRow) -> str:
    contestant = row.contestant
    failed = f"failed: {row.failure}" if row.failure else ""
    wrong = "its output differed from the other loaders'" if row.same is False else ""
    versions = ", ".join(f"{name} {version}" for name, version in contestant.versions.items())
    return "; ".join(filter(None, (failed, wrong, contestant.detail, row.floor_text(), versions)))
