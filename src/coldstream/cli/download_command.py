"""`coldstream download`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from coldstream.cli.session import EXIT_CODES, State, common_options, transfer_options


@click.command(epilog=EXIT_CODES)
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@transfer_options
@common_options
def command(state: State, name: str, folder: Path, connections: int, memory_bytes: int) -> None:
    """Write a model from the bucket into a plain folder, verified.

    \b
    coldstream download Qwen/Qwen3-8B ./qwen

    Each file appears whole or not at all. Files that are there with the right content are kept, so an interrupted
    download goes on when it is run again.
    """
    from coldstream.cli.bars import progress_for
    from coldstream.mirror.download import download
    from coldstream.mirror.stored_files import stored_bytes
    from coldstream.units import format_bytes, format_rate, format_seconds

    store = state.open_store(connections)
    state.resume = "complete files are kept"
    with progress_for(state, total_bytes=stored_bytes(store, name), verb="download") as progress:
        report = download(store, name, folder, progress=progress, connections=connections, memory_bytes=memory_bytes)
    kept = f"   kept {report.kept_files} files" if report.kept_files else ""
    checked = "verified" if report.verified else "unverified: no manifest"
    state.show(
        asdict(report),
        f"{format_bytes(report.received_bytes)} in {format_seconds(report.seconds)} "
        f"({format_rate(report.received_bytes, report.seconds)}){kept}   {checked}   → {report.folder}",
    )
