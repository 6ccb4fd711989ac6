"""`coldstream timeline`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from coldstream.cli.output import table_text
from coldstream.cli.session import State
from coldstream.cli.verbs import Verb, chart_options
from coldstream.errors import UsageError
from coldstream.operate.timeline_page import RUNS_MAX, timeline_page
from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.telemetry.timeline.timeline_store import timelines_of
from coldstream.telemetry.timeline.timeline_text import rows_text, summary_text

_LISTED = (
    *("run", "model", "began", "loader", "outcome", "ended"),
    *("ready_seconds", "first_token_seconds", "named_share", "compile_caches"),
)


@click.command(cls=Verb)
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="List the recorded starts, newest first.")
@chart_options
def command(state: State, runs: tuple[str, ...], listed: bool) -> None:
    """Show where start-up time went, for one start or several.

    \b
    coldstream timeline                                the newest start
    coldstream timeline --list
    coldstream timeline 20261124-1020 20261124-1031 --html starts.html
    coldstream timeline old/timeline.json new/timeline.json --png starts.png

    RUN is a name from --list, its beginning, or a file. `coldstream serve` records every start, also failed ones, and
    keeps the newest hundred in the cache directory. Charts compare successful starts and need matplotlib (coldstream's
    extra `charts`).
    """
    kept = timelines_of(state.settings())
    if listed:
        if runs or state.charts:
            raise UsageError("--list takes neither a run nor a chart file", hint="run: coldstream timeline --list")
        timelines = list(kept.all())
        documents = [_listed(timeline) for timeline in timelines]
        empty = f"no start is recorded in {kept.folder}; coldstream serve records them"
        state.show({"folder": str(kept.folder), "runs": documents}, _table(timelines) if timelines else empty)
        return
    timelines = [kept.find(run) for run in runs or (None,)]
    if state.charts:
        _check_charted(timelines)
        state.write_charts(timeline_page(timelines))
    if state.json or not state.charts:
        state.show({"timelines": [timeline.document() for timeline in timelines]}, _text(timelines))


def _check_charted(timelines: Sequence[Timeline]) -> None:
    if ended := next((timeline for timeline in timelines if timeline.ended is not None), None):
        raise UsageError(
            f"{ended.run} did not become ready ({ended.outcome}); charts compare successful starts",
            hint=f"leave it out, or show it without a chart: coldstream timeline {ended.run}",
        )
    if len(timelines) > RUNS_MAX:
        raise UsageError(f"{len(timelines)} starts are too many for a chart", hint=f"name at most {RUNS_MAX}")


def _listed(timeline: Timeline) -> dict[str, Any]:
    document = timeline.document()
    return {name: document[name] for name in _LISTED} | {"bundle": (timeline.bundle or {}).get("state")}


def _table(timelines: Sequence[Timeline]) -> str:
    rows = [("RUN", "MODEL", "LOADER", "READY", "FIRST TOKEN", "BUNDLE")]
    for timeline in timelines:
        ended, token = timeline.ended, timeline.first_token_seconds
        ready = f"{ended.outcome} in {ended.phase}" if ended else f"{timeline.ready_seconds:.1f} s"
        first_token = f"{token:.1f} s" if token is not None and ended is None else "-"
        bundle = str((timeline.bundle or {}).get("state") or "-")
        rows.append((timeline.run, timeline.model, timeline.loader, ready, first_token, bundle))
    return table_text(rows)


def _text(timelines: Sequence[Timeline]) -> str:
    bars, columns = sys.stdout.isatty(), shutil.get_terminal_size().columns
    parts = []
    for timeline in timelines:
        head = f"{timeline.run}   {timeline.model}   {timeline.software}   loader {timeline.loader}"
        rows = rows_text(timeline, bars=bars, columns=columns)
        parts.append("\n".join([head, *rows, *summary_text(timeline, columns=columns if bars else None)]))
    return "\n\n".join(parts)
