"""`coldstream remove`."""

from __future__ import annotations

import click

from coldstream.cli.groups import Verb
from coldstream.cli.session import State, confirm
from coldstream.cli.shared_options import dry_run_option, yes_option
from coldstream.mirror.remove import plan_removal, remove
from coldstream.node.bundle.bundle_store import BundleStore
from coldstream.units import format_bytes, plural


@click.command(cls=Verb)
@click.argument("name", metavar="MODEL")
@yes_option
@dry_run_option
def command(state: State, name: str, yes: bool, dry_run: bool) -> None:
    """Delete a model and its warm-start bundles from the bucket.

    \b
    coldstream remove Qwen/Qwen3-8B
    coldstream remove Qwen/Qwen3-8B --yes

    The manifest is deleted first, then everything under the model's name. Segments that another model in the bucket
    shares are kept.
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
    if removal.withheld:
        state.say(f"keeping segments until a later upload or removal: {removal.withheld}")
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
