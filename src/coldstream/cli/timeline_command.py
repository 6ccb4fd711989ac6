"""`coldstream timeline`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldstream.cli.session import EXIT_CODES, State, common_options
from coldstream.cli.table import table_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coldstream.telemetry.timeline.start_record import Ended, Timeline
    from coldstream.telemetry.timeline.timeline_store import Timelines

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(epilog=EXIT_CODES)
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="Show the starts that are kept, the newest first.")
@click.option("--html", "html_file", type=_FILE, help="Write a page with charts that needs no network.")
@click.option("--png", "png_file", type=_FILE, help="Write the charts as a picture.")
@common_options
def command(state: State, runs: tuple[str, ...], listed: bool, html_file: Path | None, png_file: Path | None) -> None:
    """Show what starts of vLLM spent their time on: one, or several side by side.

    \b
    coldstream timeline                                          the newest start of this machine
    coldstream timeline --list
    coldstream timeline 20261124-1020 20261124-1031 --html starts.html
    coldstream timeline old/timeline.json new/timeline.json --png starts.png

    RUN is a start's name as --list shows it, the beginning of one, or a file. `coldstream serve` records each start,
    one that fails too, and the newest hundred are kept in the cache's folder. Charts are of starts that answered, and
    need matplotlib, coldstream's extra `charts`.
    """
    from coldstream.errors import UsageError
    from coldstream.telemetry.timeline.timeline_store import timelines_of

    kept = timelines_of(state.settings())
    if listed:
        if runs or html_file or png_file:
            raise UsageError("--list goes with no run and no file", hint="see: coldstream timeline --help")
        _list(state, kept)
        return
    found = [kept.find(run) for run in runs or (None,)]
    if html_file or png_file:
        _write(state, found, html_file=html_file, png_file=png_file)
    if state.json or not (html_file or png_file):
        state.show({"timelines": [timeline.document() for timeline in found]}, _text(found))


def _write(state: State, found: Sequence[Timeline], *, html_file: Path | None, png_file: Path | None) -> None:
    from coldstream.errors import UsageError
    from coldstream.operate.timeline_chart import RUNS_MAX, png
    from coldstream.operate.timeline_page import html

    if ended := next((timeline for timeline in found if timeline.ended is not None), None):
        raise UsageError(
            f"{ended.run} did not answer ({ended.outcome}), and charts compare starts that did",
            hint=f"leave it out, or see it by itself: coldstream timeline {ended.run}",
        )
    if len(found) > RUNS_MAX:
        raise UsageError(f"{len(found)} starts are too many for a chart", hint=f"name at most {RUNS_MAX}")
    files = [(html_file, html(found).encode())] if html_file else []
    files += [(png_file, png(found))] if png_file else []
    for path, data in files:
        state.write(path, data)


def _list(state: State, kept: Timelines) -> None:
    found = list(kept.all())
    fields = (
        "run",
        "model",
        "began",
        "loader",
        "outcome",
        "ended",
        "ready_seconds",
        "first_token_seconds",
        "named_share",
    )
    documents = [{name: timeline.document()[name] for name in fields} | _bundle(timeline) for timeline in found]
    state.show({"folder": str(kept.folder), "runs": documents}, _table(found, kept))


def _bundle(timeline: Timeline) -> dict[str, Any]:
    return {"bundle": (timeline.bundle or {}).get("state"), "compile_caches": timeline.compile_caches}


def _table(found: Sequence[Timeline], kept: Timelines) -> str:
    if not found:
        return f"no start is recorded in {kept.folder}; coldstream serve records its own"
    rows = [("RUN", "MODEL", "LOADER", "READY", "FIRST TOKEN", "BUNDLE")]
    for timeline in found:
        token = timeline.first_token_seconds
        rows.append(
            (
                timeline.run,
                timeline.model,
                timeline.loader,
                f"{timeline.ready_seconds:.1f} s" if timeline.ended is None else _ended(timeline.ended),
                f"{token:.1f} s" if token is not None and timeline.ended is None else "-",
                str(_bundle(timeline)["bundle"] or "-"),
            )
        )
    return table_text(rows)


def _ended(ended: Ended) -> str:
    return f"{ended.outcome} in {ended.phase}"


def _text(found: Sequence[Timeline]) -> str:
    import shutil

    from coldstream.telemetry.timeline.timeline_text import rows_text, summary_text

    bars, columns = sys.stdout.isatty(), shutil.get_terminal_size().columns
    parts = []
    for timeline in found:
        head = f"{timeline.run}   {timeline.model}   vLLM {timeline.vllm or '?'}   loader {timeline.loader}"
        rows = rows_text(timeline, bars=bars, columns=columns)
        parts.append("\n".join([head, *rows, *summary_text(timeline, columns=columns if bars else None)]))
    return "\n\n".join(parts)
