"""Lists the models and adapters in a store, with the state of each, and removes one.

A removal begins with the manifest, so that no reader starts while the objects are deleted, and ends with the segments
that no other model uses: see `segment_pool`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from coldstream.errors import CredentialsError, IntegrityError, ManifestError, NotFoundError, UsageError
from coldstream.machine.parallel import in_parallel
from coldstream.mirror.manifest_records import read_record, record_key
from coldstream.mirror.segment_pool import ROOT, plan_sweep, root_of, segment_keys, sweep
from coldstream.mirror.stored_files import StoredModel, component_record, layout_of, missing_objects, open_model
from coldstream.model.manifest import Journal, Manifest, upload_command
from coldstream.model.names import MANIFEST_NAME, checked_name, split_revision
from coldstream.model.selection import is_adapter, is_weights
from coldstream.places.model_reader import ModelReader
from coldstream.places.model_records import group_by_model
from coldstream.places.place import ObjectInfo, PendingUpload, Store

# Of the reads of manifests.
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One model in a store. For an incomplete one, `bytes` and `files` are the final numbers."""

    name: str
    # "ready"; "incomplete": an upload is running or was interrupted; "damaged": objects of the manifest are missing or
    # were replaced; "unreadable": the manifest cannot be trusted, or is newer than this program; "foreign": stored by
    # another tool, without a manifest.
    state: str
    bytes: int
    files: int
    repo: str | None  # the repository on the Hub that it was copied from
    revision: str | None  # its commit
    modified: datetime  # when it became ready, or was last written to
    layout: str
    detail: str  # the reason for the state and what to do about it; empty when ready
    kind: str = "model"  # or "adapter"
    base: str | None = None  # of an adapter; None if that is not known
    rank: int | None = None  # of an adapter; 0 for another type than LoRA, None if it is not known


def list_models(store: Store) -> list[ModelInfo]:
    """Returns all models and adapters, sorted by name. Reads the whole listing, and each model's manifest."""
    listing = list(store.list(""))
    pool = {f"/{info.key}": info for info in listing if f"/{ROOT}" in f"/{info.key}"}
    groups = sorted(group_by_model(listing).items())
    return in_parallel(lambda group: _describe(store, *group, pool), groups, threads=_CONNECTIONS)


def bases_of(models: Iterable[ModelInfo]) -> dict[str, str | None]:
    """The base of each adapter among these models: its name in the store, or None if it is not there.

    An adapter names its base by the name in the bucket, or by the repository that the base was copied from.
    """
    models = list(models)
    repos = {model.repo: model.name for model in reversed(models) if model.repo and model.kind == "model"}
    names = repos | {model.name: model.name for model in models if model.kind == "model"}
    return {model.name: names.get(model.base or "") for model in models if model.kind == "adapter"}


def _describe(store: Store, name: str, objects: list[ObjectInfo], pool: Mapping[str, ObjectInfo]) -> ModelInfo:
    listing = {info.key.removeprefix(f"{name}/"): info for info in objects}
    listing.pop(MANIFEST_NAME, None)

    def as_model(state: str, detail: str, record: Manifest | Journal | None = None) -> ModelInfo:
        if record is None:
            files, total = len(listing), sum(info.size for info in listing.values())
        elif isinstance(record, Journal):
            files, total = record.planned_files, record.planned_bytes
        else:
            files, total = len(record.files), record.size
        kind, adapter = record.kind if record else "model", record.adapter if record else None
        if adapter is None and state != "incomplete" and is_adapter(listing):
            kind = "adapter"
            try:
                adapter = ModelReader(store, name, label=f"{store.uri}/{name}", name=name).adapter()
            except (UsageError, IntegrityError, NotFoundError, CredentialsError) as exc:
                detail = detail or exc.message
        return ModelInfo(
            name=name,
            kind=kind,
            base=adapter.base if adapter else None,
            rank=adapter.rank if adapter else None,
            state=state,
            bytes=total,
            files=files,
            repo=record.source.repo if record else None,
            revision=record.source.commit if record else None,
            modified=record.created if record else max(info.modified for info in objects),
            layout=layout_of(record),
            detail=detail,
        )

    try:
        record, _ = read_record(store, name) or (None, "")
    except (ManifestError, CredentialsError) as exc:
        return as_model("unreadable", f"{exc.message}; {exc.hint}" if exc.hint else exc.message)
    if record is None:
        return as_model("foreign", "no manifest: can be loaded, but not verified")
    if isinstance(record, Journal):
        stored = [entry.path for entry in record.files if entry.objects]
        shards = f"{sum(map(is_weights, stored))}/{record.planned_shards} shards"
        progress = shards if record.planned_shards else f"{len(stored)}/{record.planned_files} files"
        return as_model("incomplete", f"{progress}; run: {upload_command(record)}", record)
    problems = missing_objects(store, StoredModel(name=name, record=record, listing=listing, pool=pool))
    if problems:
        path, what = problems[0]
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        return as_model("damaged", f"{path} {what}{more}; run: {upload_command(record)}", record)
    return as_model("ready", "", record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a removal deletes."""

    name: str
    keys: tuple[str, ...]  # the model's objects, the manifest first
    bytes: int
    uploads: tuple[PendingUpload, ...]  # unfinished multipart uploads below it
    segments: int  # the model's own, and any others that no model uses
    segment_bytes: int
    shared_segments: int  # those of its segments that other models use
    withheld: str | None  # why no segment may be deleted now: a later upload or removal deletes them
    orphans: tuple[str, ...]  # the adapters that will have no base in the store


def plan_removal(store: Store, name: str) -> Removal:
    """Decides what to delete; deletes nothing. Raises UsageError if the model is part of another one."""
    full, (name, revision) = name, split_revision(name)
    checked_name(name)
    own_segments: set[str] = set()
    # A model with a broken manifest can be removed, but not if a revision was given: it cannot be compared.
    with suppress(*(() if revision else (ManifestError,))):
        record = open_model(store, full).record
        own_segments = segment_keys(record.files, root=root_of(name, record)) if record else set()
    swept = plan_sweep(store, without=name)
    own = record_key(name)
    objects = list(store.list(f"{name}/"))
    keys = sorted((info.key for info in objects), key=lambda key: (key != own, key))
    if own not in keys and (outer := component_record(store, name)):
        raise UsageError(
            f"{name} is part of the model {outer.name}, which would be damaged",
            hint=f"remove the whole model: coldstream remove {shlex.quote(outer.name)}",
        )
    return Removal(
        name=name,
        keys=tuple(keys),
        bytes=sum(info.size for info in objects),
        uploads=tuple(store.uploads(f"{name}/")),
        segments=0 if swept.withheld else len(swept.keys),
        segment_bytes=0 if swept.withheld else swept.bytes,
        shared_segments=len(own_segments & swept.used),
        withheld=swept.withheld if swept.keys or own_segments else None,
        orphans=_orphans(store, name),
    )


def _orphans(store: Store, name: str) -> tuple[str, ...]:
    try:
        models = list_models(store)
    except CredentialsError:
        return ()  # keys for one model cannot see the others
    rest = bases_of(model for model in models if model.name != name)
    return tuple(adapter for adapter, base in bases_of(models).items() if base == name and rest[adapter] is None)


def remove(store: Store, removal: Removal) -> None:
    """Carries out the removal. If it is interrupted, run it again; a later upload or removal deletes left segments."""
    store.delete(removal.keys[:1])
    store.delete(removal.keys[1:])
    for pending in removal.uploads:
        store.abort_upload(pending.key, pending.upload_id)
    # Planned again: other models may have changed since the plan was shown.
    sweep(store)
