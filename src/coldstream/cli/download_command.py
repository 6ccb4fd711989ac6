"""`coldstream download`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from coldstream.cli.groups import Verb
from coldstream.cli.live import progress_for
from coldstream.cli.session import State
from coldstream.cli.shared_options import transfer_options
from coldstream.mirror.download import download
from coldstream.mirror.stored_files import stored_bytes
from coldstream.units import format_bytes, format_rate, format_seconds, plural


@click.command(cls=Verb)
@click.argument("name", metavar="MODEL")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@transfer_options
def command(state: State, name: str, folder: Path, connections: int, memory_bytes: int) -> None:
    """Download a model from the bucket into a folder, verified.

    \b
    coldstream download Qwen/Qwen3-8B ./qwen

    Each file appears complete or not at all. Files that already have the right content are kept, so running an
    interrupted download again continues it.
    """
    store = state.open_store(connections)
    state.resume = "complete files are kept"
    with progress_for(state, total_bytes=stored_bytes(store, name), verb="download") as progress:
        report = download(store, name, folder, progress=progress, connections=connections, memory_bytes=memory_bytes)
    kept = f"   kept {plural(report.kept_files, 'file')}" if report.kept_files else ""
    checked = "verified" if report.verified else "unverified: no manifest"
    state.show(
        asdict(report),
        f"{format_bytes(report.received_bytes)} in {format_seconds(report.seconds)} "
        f"({format_rate(report.received_bytes, report.seconds)}){kept}   {checked}   → {report.folder}",
    )
