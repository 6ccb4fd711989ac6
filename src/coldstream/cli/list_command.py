"""`coldstream list`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from coldstream.cli.groups import Verb
from coldstream.cli.output import table_text
from coldstream.cli.session import State
from coldstream.errors import NotFoundError
from coldstream.mirror.listing import ModelInfo, list_models
from coldstream.places.folder import Folder
from coldstream.units import format_age, format_bytes

_COLOURS = {"ready": "green", "incomplete": "yellow", "damaged": "red", "unreadable": "red"}


@click.command(cls=Verb)
def command(state: State) -> None:
    """List the models in the bucket and their state.

    \b
    coldstream list
    coldstream list --json | jq '.models[] | select(.state == "ready").name'

    States: ready; incomplete (an upload is running or was interrupted); damaged (objects are missing or replaced);
    unreadable (the manifest cannot be trusted); foreign (stored by another tool: can be loaded, not verified).
    """
    store = state.open_store(8)
    models = list_models(store)
    if isinstance(store, Folder) and not store.root.is_dir():
        raise NotFoundError(
            f"the folder {store.root} does not exist",
            hint="check --store; the first upload creates it",
            target=store.uri,
        )
    document = {"store": store.uri, "models": [asdict(m) | {"modified": m.modified.isoformat()} for m in models]}
    state.show(document, _table(models) if models else f"no models in {store.uri}")
    if not models:
        state.say("next:  coldstream upload Qwen/Qwen3-8B")


def _table(models: Sequence[ModelInfo]) -> str:
    rows = [("MODEL", "SIZE", "FILES", "REVISION", "STATE", "LAYOUT", "UPLOADED")]
    for model in models:
        detail = model.detail or format_age(model.modified)
        size, revision = format_bytes(model.bytes), (model.revision or "-")[:7]
        rows.append((model.name, size, str(model.files), revision, model.state, model.layout, detail))
    return table_text(rows, colours=_COLOURS, coloured_column=4)
