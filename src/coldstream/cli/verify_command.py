"""`coldstream verify`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from coldstream.cli.groups import Verb
from coldstream.cli.live import progress_for
from coldstream.cli.output import coloured
from coldstream.cli.session import State
from coldstream.cli.shared_options import transfer_options
from coldstream.mirror.stored_files import stored_bytes
from coldstream.mirror.verify import VerifyReport, verify
from coldstream.units import format_bytes, format_seconds, plural


@click.command(cls=Verb)
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@click.option("--deep", is_flag=True, help="Read every byte and recompute all hashes.")
@transfer_options
def command(state: State, names: tuple[str, ...], deep: bool, connections: int, memory_bytes: int) -> int:
    """Check that the bucket holds what was uploaded.

    \b
    coldstream verify Qwen/Qwen3-8B          presence, size and ETag of each object
    coldstream verify Qwen/Qwen3-8B --deep   every byte, against chunk hashes and SHA-256

    For a model without a manifest, uploaded by another tool, verifies that the safetensors files are complete and that
    all files in the index are present. Exits with 13 if a check fails, or 3 if only some of several models fail.
    """
    reports = []
    for name in names:
        store = state.open_store(connections)
        total = stored_bytes(store, name, copies=True) if deep else 0
        with progress_for(state, total_bytes=total, verb="verify") as progress:
            reports.append(
                verify(store, name, deep=deep, progress=progress, connections=connections, memory_bytes=memory_bytes)
            )
    documents: list[dict[str, Any]] = [asdict(report) for report in reports]
    state.show(
        documents[0] if len(documents) == 1 else {"models": documents}, "\n".join(_text(report) for report in reports)
    )
    failed = sum(not report.ok for report in reports)
    return 0 if not failed else 13 if failed == len(reports) else 3


def _text(report: VerifyReport) -> str:
    how = "every byte read" if report.deep else "presence, size and ETag"
    if report.state == "foreign":
        how = "every byte read, no manifest to compare with" if report.deep else "structure only, no manifest"
    head = f"{report.name}   {plural(report.files, 'file')}   {format_bytes(report.bytes)}"
    if report.segments:
        head += f"   {plural(report.segments, 'object')} ({report.layout})"
    if report.ok:
        return f"{coloured('ok', 'green')}     {head}   {how}   {format_seconds(report.seconds)}"
    lines = [f"{coloured('bad', 'red')}    {head}   {plural(len(report.problems), 'problem')}"]
    lines += [f"  {problem.path} {problem.what}" for problem in report.problems]
    return "\n".join(lines)
