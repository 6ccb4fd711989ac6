"""`coldstream list`, `verify`, `download` and `remove`: the commands for the models in the bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from coldstream.cli.live import progress_for
from coldstream.cli.output import attributes, coloured, table_text
from coldstream.cli.session import State, confirm
from coldstream.cli.verbs import Verb, dry_run_option, transfer_options, yes_option
from coldstream.errors import NotFoundError
from coldstream.mirror.download import download
from coldstream.mirror.listing import ModelInfo, bases_of, list_models, plan_removal, remove
from coldstream.mirror.stored_files import stored_bytes
from coldstream.mirror.verify import VerifyReport, verify
from coldstream.node.bundle.bundle_store import BundleStore
from coldstream.places.folder import Folder
from coldstream.units import format_age, format_bytes, format_rate, format_seconds, plural

_SHOWN_MAX = 5
_COLOURS = {"ready": "green", "incomplete": "yellow", "damaged": "red", "unreadable": "red"}


@click.command("list", cls=Verb)
def list_command(state: State) -> None:
    """List the models in the bucket, their adapters and their state.

    \b
    coldstream list
    coldstream list --json | jq '.models[] | select(.state == "ready").name'

    States: ready; incomplete (an upload is running or was interrupted); damaged (objects are missing or replaced);
    unreadable (the manifest cannot be trusted); foreign (stored by another tool: can be loaded, not verified).
    """
    store = state.open_store(8)
    models = list_models(store)
    if isinstance(store, Folder) and not store.root.is_dir():
        hint = "check --store; the first upload creates it"
        raise NotFoundError(f"the folder {store.root} does not exist", hint=hint, target=store.uri)
    document = {"store": store.uri, "models": [asdict(m) | {"modified": m.modified.isoformat()} for m in models]}
    state.show(document, _table(models) if models else f"no models in {store.uri}")
    if not models:
        state.say("next:  coldstream upload Qwen/Qwen3-8B")


def _table(models: Sequence[ModelInfo]) -> str:
    """The table, with each adapter below its base."""
    bases = bases_of(models)
    rows: list[tuple[str, ...]] = [("MODEL", "SIZE", "FILES", "REVISION", "STATE", "LAYOUT", "UPLOADED")]
    for model in (model for model in models if model.kind != "adapter"):
        rows.append(_row(model))
        rows += [_row(adapter, "  ") for adapter in models if bases.get(adapter.name) == model.name]
    left = [model for model in models if model.kind == "adapter" and bases[model.name] is None]
    for base in sorted({adapter.base or "" for adapter in left}):
        rows.append((base, *"-----", "base not in the bucket") if base else ("unknown base", *"------"))
        rows += [_row(adapter, "  ") for adapter in left if (adapter.base or "") == base]
    return table_text(rows, colours=_COLOURS, coloured_column=4)


def _row(model: ModelInfo, indent: str = "") -> tuple[str, ...]:
    detail = model.detail or format_age(model.modified)
    size, revision = format_bytes(model.bytes), (model.revision or "-")[:7]
    rank = f"   rank {model.rank}" if model.rank else ""
    name = f"{indent}{model.name}{rank}"
    return name, size, str(model.files), revision, model.state, model.layout, detail


@click.command("verify", cls=Verb)
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@click.option("--deep", is_flag=True, help="Read every byte and recompute all hashes.")
@transfer_options
def verify_command(state: State, names: tuple[str, ...], deep: bool, connections: int, memory_bytes: int) -> int:
    """Check that the bucket holds what was uploaded.

    \b
    coldstream verify Qwen/Qwen3-8B          presence, size and ETag of each object
    coldstream verify Qwen/Qwen3-8B --deep   every byte, against chunk hashes and SHA-256

    For a model without a manifest, uploaded by another tool, verifies that the safetensors files are complete and that
    all files in the index are present. Exits with 13 if a check fails, or 3 if only some of several models fail.
    """
    reports = []
    limits = {"connections": connections, "memory_bytes": memory_bytes}
    for name in names:
        store = state.open_store(connections)
        total = stored_bytes(store, name, copies=True) if deep else 0
        with progress_for(state, total_bytes=total, verb="verify") as progress:
            reports.append(verify(store, name, deep=deep, progress=progress, **limits))
    documents = [asdict(report) for report in reports]
    state.show(documents[0] if len(names) == 1 else {"models": documents}, "\n".join(map(_verify_text, reports)))
    failed = sum(not report.ok for report in reports)
    return 0 if not failed else 13 if failed == len(reports) else 3


def _verify_text(report: VerifyReport) -> str:
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


@click.command("download", cls=Verb)
@click.argument("name", metavar="MODEL")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@transfer_options
def download_command(state: State, name: str, folder: Path, connections: int, memory_bytes: int) -> None:
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
    rate = format_rate(report.received_bytes, report.seconds)
    size = f"{format_bytes(report.received_bytes)} in {format_seconds(report.seconds)} ({rate})"
    state.show(asdict(report), f"{size}{kept}   {checked}   → {report.folder}")


@click.command("remove", cls=Verb)
@click.argument("name", metavar="MODEL")
@yes_option
@dry_run_option
def remove_command(state: State, name: str, yes: bool, dry_run: bool) -> None:
    """Delete a model and its warm-start bundles from the bucket.

    \b
    coldstream remove Qwen/Qwen3-8B
    coldstream remove Qwen/Qwen3-8B --yes

    The manifest is deleted first, then everything under the model's name. Segments that another model in the bucket
    shares are kept, and so are adapters of the model.
    """
    store = state.open_store(4)
    removal = plan_removal(store, name)
    name = removal.name
    shelf = BundleStore(store, name)
    bundles = len(shelf.entries(None))
    what = f"{plural(len(removal.keys), 'object')}, {format_bytes(removal.bytes)}, under {store.uri}/{name}/"
    if removal.segments:
        what += f", {plural(removal.segments, 'segment')} of weights, {format_bytes(removal.segment_bytes)}"
    if bundles:
        what += f", and {plural(bundles, 'warm-start bundle')}"
    if removal.shared_segments:
        state.say(f"keeping {plural(removal.shared_segments, 'segment')} of weights that other models share")
    if removal.orphans:
        shown = ", ".join(removal.orphans[:_SHOWN_MAX]) + (", …" if removal.orphans[_SHOWN_MAX:] else "")
        state.warn(f"{plural(len(removal.orphans), 'adapter')} of it will stay, without a base: {shown}")
    if removal.withheld:
        state.say(f"keeping segments until a later upload or removal: {removal.withheld}")
    if not (dry_run or yes):
        confirm("delete", what)
    if not dry_run:
        remove(store, removal)
        shelf.remove()
    document = {
        "objects": len(removal.keys),
        "uploads": len(removal.uploads),
        **attributes(removal, "name", "bytes", "segments", "segment_bytes", "shared_segments", "withheld"),
        "bundles": bundles,
        "orphans": removal.orphans,
        "removed": not dry_run,
    }
    state.show(document, f"{'would remove' if dry_run else 'removed'}   {what}")
