"""Chooses the adapters of a start, and tells the engine of them: from `--adapters`, and from the engine's own flags."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial

from coldstream.errors import (
    ColdstreamError,
    CredentialsError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from coldstream.loading.load_plan import OFFLINE_SECONDS
from coldstream.machine.parallel import in_parallel
from coldstream.model.adapter_fit import modules_of
from coldstream.model.names import model_name, split_revision
from coldstream.node.adapter_service import AdapterService
from coldstream.node.adapter_source import AdapterSource, StoredAdapter
from coldstream.node.inference_engine import ALL, ON_DEMAND, InferenceEngine, Say, ServeRequest
from coldstream.places.checkpoint import Checkpoint
from coldstream.settings import Settings
from coldstream.telemetry.metrics.meter import Meter

# Adapters that are uploaded later may have a larger rank than those in the bucket; few have one above this.
_RANK_ON_DEMAND = 64
# Of vLLM, and a usual one.
_RANK_DEFAULT = 16


def serve_adapters(
    request: ServeRequest,
    settings: Settings,
    engine: InferenceEngine,
    base: Checkpoint | None,
    *,
    say: Say,
    meter: Meter | None = None,
    dry: bool = False,
) -> AdapterService | None:
    """The service of a start's adapters, which the engine then has the flags for; None without adapters.

    Copies them while the engine starts, except with `dry`. `base` is the model's checkpoint, if it is known. Raises
    what `AdapterSource` raises for an adapter that was named.
    """
    if not engine.streams:
        if request.adapters:
            raise UsageError("--adapters needs the loader coldstream", hint="leave --loader out")
        return None
    if not request.adapters and not engine.has_adapters:
        return None
    cache, on_demand = request.options.cache, ON_DEMAND in request.adapters
    source = AdapterSource(settings, base=_base(request), store=request.store_uri(settings), cache=cache)
    source.engine = engine.name
    source.modules = modules_of(base.whole_tensors) if base is not None else {}
    named = adapters = _named(source, request.adapters, engine.adapter_paths, seconds=settings.retry_seconds)
    # Those in the engine's flags that are not in the bucket may have any rank that it accepts by default.
    ranks = [_RANK_DEFAULT] if engine.has_adapters else []
    ranks += [_RANK_ON_DEMAND] if on_demand else []
    ranks += [stored.adapter.rank for stored in adapters.values()] if request.adapters else []
    if {ALL, ON_DEMAND} & {*request.adapters}:
        every = _of_base(source, settings, say, is_needed=ALL in request.adapters)
        ranks += [stored.adapter.rank for stored in every]
        if ALL in request.adapters:
            adapters = {stored.name: stored for stored in every} | adapters
    source.rank_max = engine.adapter_rank_max(max(ranks, default=1))
    for stored in adapters.values():
        source.check(stored)
    check_tensors = partial(source.check_tensors, seconds=settings.retry_seconds)
    in_parallel(check_tensors, [*{stored.name: stored for stored in named.values()}.values()])
    accepts_paths = engine.accepts_adapter_paths
    service = AdapterService(source, on_demand=on_demand, accepts_paths=accepts_paths, say=say, meter=meter)
    if not dry:
        service.begin(adapters.values())
    paths = {name: stored.name for name, stored in adapters.items()}
    if engine.needs_adapter_folders and not dry:
        paths = {name: service.folder(path, on_demand=False) for name, path in paths.items()}
    engine.add_adapters(
        {**engine.adapter_paths, **paths},
        rank_max=source.rank_max if request.adapters else None,
        on_demand=on_demand,
        update_seconds=settings.adapter_seconds,
    )
    return service


def _named(
    source: AdapterSource, named: Iterable[str], in_flags: Mapping[str, str], *, seconds: float
) -> dict[str, StoredAdapter]:
    """The adapters in the bucket that the user named, by their names in the API."""
    names = {name: name for name in named if name not in {ALL, ON_DEMAND}}
    # What is neither here nor in the bucket is for the engine, which knows other places.
    others = {name for name, path in in_flags.items() if source.name_of(path) == path}
    for name, path in in_flags.items():
        if not os.path.exists(path) and (stored_name := source.name_of(path)):
            names[name] = stored_name

    def find(name: str) -> StoredAdapter | None:
        try:
            return source.find_or_latest(names[name], seconds=seconds)
        except NotFoundError:
            if name not in others:
                raise
            return None

    return {name: stored for name, stored in zip(names, in_parallel(find, [*names]), strict=True) if stored}


def _of_base(source: AdapterSource, settings: Settings, say: Say, *, is_needed: bool) -> list[StoredAdapter]:
    """The adapters of the model in the bucket that can be served; a warning for each of them that cannot."""

    def find(name: str) -> StoredAdapter | None:
        try:
            stored = source.find_or_latest(name, seconds=settings.retry_seconds)
            if not source.is_of_base(stored):
                return None
            source.check(stored)
            if is_needed:
                source.check_tensors(stored, seconds=settings.retry_seconds)
        except ColdstreamError as exc:
            say(f"warning: adapter {name} is left out: {exc.message}")
            return None
        return stored

    try:
        names = source.names(seconds=settings.retry_seconds if is_needed else OFFLINE_SECONDS)
    except (UnavailableError, CredentialsError) as exc:
        if is_needed:
            raise
        say(f"warning: the adapters in the bucket cannot be listed: {exc.message}")
        return []
    return [stored for stored in in_parallel(find, names) if stored is not None]


def _base(request: ServeRequest) -> str | None:
    """The model's name, as adapters name their base; None for a model without one, such as a folder."""
    scheme = request.uri.full.partition("://")[0]
    return model_name(split_revision(str(request.uri))[0]) if request.is_name or scheme in {"hf", "s3"} else None
