"""Lists the models in a store, and the state of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from coldstream.errors import CredentialsError, ManifestError
from coldstream.mirror.manifest_records import read_record
from coldstream.mirror.segment_pool import ROOT
from coldstream.mirror.stored_files import StoredModel, layout_of, missing_objects
from coldstream.model.manifest import Journal, Manifest, upload_command
from coldstream.model.names import MANIFEST_NAME
from coldstream.model.selection import is_weights
from coldstream.places.model_records import group_by_model
from coldstream.places.place import ObjectInfo, Store


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


def list_models(store: Store) -> list[ModelInfo]:
    """Returns all models, sorted by name. Reads the whole listing, and each model's manifest."""
    listing = list(store.list(""))
    pool = {f"/{info.key}": info for info in listing if f"/{ROOT}" in f"/{info.key}"}
    return [_describe(store, name, objects, pool) for name, objects in sorted(group_by_model(listing).items())]


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
        return ModelInfo(
            name=name,
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
