"""`coldstream remove`."""

from __future__ import annotations

import click

from coldstream.cli.session import EXIT_CODES, State, common_options, confirm


@click.command(epilog=EXIT_CODES)
@click.argument("name", metavar="NAME")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would go; remove nothing.")
@common_options
def command(state: State, name: str, yes: bool, dry_run: bool) -> None:
    """Delete a model from the bucket: its manifest first, then everything below its name, and its warm-start bundles.

    \b
    coldstream remove Qwen/Qwen3-8B
    coldstream remove Qwen/Qwen3-8B --yes

    Of weights stored in segments those stay that another model in the bucket has too.
    """
    from coldstream.mirror.remove import plan_removal, remove
    from coldstream.node.bundle.bundle_store import BundleStore
    from coldstream.units import format_bytes, plural

    store = state.open_store(4)
    removal = plan_removal(store, name)
    name = removal.name
    shelf = BundleStore(store, name)
    bundles = len(shelf.entries(None))
    what = f"{plural(len(removal.keys), 'object')}, {format_bytes(removal.bytes)}, below {store.uri}/{name}/"
    if removal.segments:
        what += f", {plural(removal.segments, 'segment')} of weights, {format_bytes(removal.segment_bytes)}"
    if bundles:
        what += f", and {plural(bundles, 'warm-start bundle')}"
    if removal.shared_segments:
        state.say(f"{plural(removal.shared_segments, 'segment')} of its weights stay: other models have them too")
    if removal.withheld:
        state.say(f"segments stay for now, and go with a later upload or removal: {removal.withheld}")
    if not (dry_run or yes):
        confirm("delete", what)
    if not dry_run:
        remove(store, removal)
        shelf.remove()
    document = {
        "name": name,
        "objects": len(removal.keys),
        "bytes": removal.bytes,
        "uploads": len(removal.uploads),
        "segments": removal.segments,
        "segment_bytes": removal.segment_bytes,
        "shared_segments": removal.shared_segments,
        "withheld": removal.withheld,
        "bundles": bundles,
        "removed": not dry_run,
    }
    state.show(document, f"{'would remove' if dry_run else 'removed'}   {what}")
