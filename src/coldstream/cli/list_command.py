"""`coldstream list`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from coldstream.cli.session import EXIT_CODES, State, common_options
from coldstream.cli.table import table_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coldstream.mirror.listing import ModelInfo


_COLOURS = {"ready": "green", "incomplete": "yellow", "damaged": "red", "unreadable": "red"}


@click.command(epilog=EXIT_CODES)
@common_options
def command(state: State) -> None:
    """Show the models in the bucket, and whether each is ready.

    \b
    coldstream list
    coldstream list --json | jq '.models[] | select(.state == "ready").name'

    States: ready; incomplete (an upload is running or was interrupted); damaged (objects are missing or replaced);
    unreadable (the manifest cannot be trusted); foreign (stored by another tool: can be loaded, not verified).
    """
    from coldstream.mirror.listing import list_models

    store = state.open_store(8)
    models = list_models(store)
    document = {"store": store.uri, "models": [asdict(m) | {"modified": m.modified.isoformat()} for m in models]}
    state.show(document, _table(models) if models else f"no models in {store.uri}")
    if not models:
        state.say("next:  coldstream upload Qwen/Qwen3-8B")


def _table(models: Sequence[ModelInfo]) -> str:
    from datetime import datetime, timezone

    from coldstream.units import format_age, format_bytes

    now = datetime.now(timezone.utc)
    rows = [("MODEL", "SIZE", "FILES", "REVISION", "STATE", "LAYOUT", "UPLOADED")]
    for model in models:
        age = format_age((now - model.modified).total_seconds())
        rows.append(
            (
                model.name,
                format_bytes(model.bytes),
                str(model.files),
                (model.revision or "-")[:7],
                model.state,
                model.layout,
                model.detail or age,
            )
        )
    return table_text(rows, colours=_COLOURS, coloured_column=4)
