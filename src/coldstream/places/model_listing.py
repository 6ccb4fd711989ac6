"""Which models a listing holds, and which of their names a misspelt one may mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

from coldstream.errors import ColdstreamError, NotFoundError
from coldstream.model.names import MANIFEST_NAME
from coldstream.model.selection import is_weights
from coldstream.places.store import ObjectInfo, Store

# Ten pages of a listing: a hint must not take long.
_LISTED_MAX = 10_000
_NEAR_MAX = 3


def group_by_model(objects: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    """Objects by model. A model is the outermost folder with a manifest or, failing that, weights or a config.json."""
    every = [(info.key.rpartition("/")[0], info) for info in objects]
    with_manifest = {folder for folder, info in every if folder and info.key.endswith(f"/{MANIFEST_NAME}")}
    foreign = {
        folder for folder, info in every if folder and (is_weights(info.key) or info.key.endswith("/config.json"))
    }
    models: dict[str, list[ObjectInfo]] = {}
    for folder, info in every:
        segments = folder.split("/")
        around = ["/".join(segments[: depth + 1]) for depth in range(len(segments))]
        name = next((f for f in around if f in with_manifest), None) or next((f for f in around if f in foreign), None)
        if name and not info.key.endswith("/"):
            models.setdefault(name, []).append(info)
    return models


def missing_model(store: Store, name: str, listing: Iterable[str] = ()) -> NotFoundError:
    """The error for a model that is not in the store; its hint has the nearest names that are.

    Args:
        store: Where it is not; one that cannot be listed is described without them.
        name: The model's, relative to the store.
        listing: The paths of what lies below that name, which is not a model.
    """
    message = f"there is no model {name} in {store.uri}"
    if below := sorted({path.split("/")[0] for path in listing}):
        hint = f"below it: {name}/{below[0]}" + ("  …" if below[1:] else "")
        return NotFoundError(message, hint=hint, target=f"{store.uri}/{name}")
    try:
        names = group_by_model(islice(store.list(""), _LISTED_MAX))
    except ColdstreamError:
        names = {}
    near = nearest_names(name, names)
    hint = f"did you mean {' or '.join(near)}?   (all of them: coldstream list)" if near else "see: coldstream list"
    return NotFoundError(message, hint=hint, target=f"{store.uri}/{name}")


def nearest_names(name: str, names: Iterable[str]) -> list[str]:
    """Those names that are most like this one, the nearest first. Pure.

    Case does not matter, and a name without its organisation is like one with it.
    """
    lowered = name.lower()
    whole = {known.lower(): known for known in names}
    last = {known.rpartition("/")[2].lower(): known for known in names}
    near = [whole[match] for match in difflib.get_close_matches(lowered, whole, n=_NEAR_MAX, cutoff=0.75)]
    near += [last[match] for match in difflib.get_close_matches(lowered.rpartition("/")[2], last, n=1, cutoff=0.85)]
    return list(dict.fromkeys(near))[:_NEAR_MAX]
