"""Models at a place: their manifests, the models of a listing, and suggestions for a misspelt name."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from coldstream.errors import ColdstreamError, CredentialsError, IntegrityError, NotFoundError
from coldstream.machine.parallel import in_parallel
from coldstream.model.names import MANIFEST_NAME
from coldstream.model.selection import ADAPTER_CONFIG_NAME, is_adapter, is_weights
from coldstream.places.place import ObjectInfo, Place, check_small

if TYPE_CHECKING:
    from coldstream.model.adapter import Adapter
    from coldstream.model.manifest import FileEntry, StoredObject

R = TypeVar("R")

# `serialize` writes the first ones at the start and the last at the end; no accident damages all of them.
_MARKS = (b'"format":1,', b'"state":"ready"', b'"state":"uploading"', b'"digest":"sha256:')
_START = b'{"format":'
_MARK_WITHIN_BYTES = 256
# Ten pages of a listing: a hint must not take long.
_LISTED_MAX = 10_000
_NEAR_MAX = 3


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A complete manifest; `version` is its digest, 64 hexadecimal digits.

    `is_whole`: whether the entries are all files of a model, as its upload checked them. `adapter`: what the upload
    recorded of an adapter; None of a model, and of an adapter that an earlier version uploaded.
    """

    version: str
    entries: Mapping[str, FileEntry]
    is_whole: bool = True
    adapter: Adapter | None = None

    def below(self, folder: str, *, model: str) -> ModelRecord | None:
        """The record of a folder inside the model, unless it is empty."""
        from coldstream.model.manifest import entries_below

        entries = {entry.path: entry for entry in entries_below(self.entries.values(), folder, model=model)}
        # The same files may be a part of several models.
        version = hashlib.sha256(f"{self.version}/{folder}".encode()).hexdigest()
        return ModelRecord(version, entries, is_whole=False) if entries else None


def looks_like_record(data: bytes) -> bool:
    """Whether this is a manifest, or one that was cut or altered; and not, say, a page that says "not found"."""
    ends = data[:_MARK_WITHIN_BYTES] + data[-_MARK_WITHIN_BYTES:]
    return _START.startswith(data[: len(_START)]) or any(mark in ends for mark in _MARKS)


def read_record(data: bytes, *, where: str, revision: str | None = None) -> ModelRecord:
    """Parses a manifest, or raises ManifestError.

    NotFoundError: it is the journal of an unfinished upload, or the model is of another revision.
    """
    # Imported here: models without a manifest need neither the schema nor what checks it.
    from coldstream.model.manifest import Journal, check_revision, digest_of, parse, upload_command

    record = parse(data, where=where)
    if isinstance(record, Journal):
        stored = sum(bool(entry.objects) for entry in record.files)
        raise NotFoundError(
            f"{where.removesuffix('/' + MANIFEST_NAME)} is not complete: {stored} of {record.planned_files} files; "
            "its upload is running or was broken off",
            hint=f"run: {upload_command(record)}",
            target=where,
        )
    check_revision(record.source, revision, where=where.removesuffix(f"/{MANIFEST_NAME}"))
    entries = {entry.path: entry for entry in record.files}
    return ModelRecord(digest_of(data).removeprefix("sha256:"), entries, adapter=record.adapter)


def nearest_record(folder: str, read: Callable[[str], R | None]) -> tuple[str, R] | None:
    """The record of a model, or of the model that a folder is a part of (one component of a pipeline); with its folder.

    `read` reads the record of a folder, None if it has none. Folders around this one that are not readable have none.
    """
    record = read(folder)
    return (folder, record) if record is not None else outer_record(folder, read)


def outer_record(folder: str, read: Callable[[str], R | None]) -> tuple[str, R] | None:
    """The record of the model around a folder without one; see `nearest_record`."""

    def read_outer(outer: str) -> R | None:
        try:
            return read(outer)
        except CredentialsError:
            return None

    segments = folder.split("/")
    around = ["/".join(segments[:depth]) for depth in range(len(segments) - 1, 0, -1)]
    records = zip(around, in_parallel(read_outer, around), strict=True)
    return next(((outer, record) for outer, record in records if record is not None), None)


def whole_content(entry: FileEntry, read: Callable[[StoredObject], bytes], *, bytes_max: int, where: str) -> bytes:
    """A small file out of its objects; IntegrityError if it is larger or not as the manifest says."""
    check_small(where, entry.size, bytes_max)
    data = b"".join(read(stored) for stored in entry.objects)
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise IntegrityError(
            f"{where} is not what the manifest says: its size or SHA-256 differs",
            hint="upload the model again",
            target=where,
        )
    return data


def read_adapter(
    recorded: Adapter | None, paths: Iterable[str], read: Callable[[str, int], bytes], *, where: str
) -> Adapter | None:
    """What is known of an adapter: from its manifest or, without a record there, from its files. None of a model.

    `read` reads at most so many bytes of one of its `paths`. Raises IntegrityError if its configuration is malformed,
    and UsageError if that names no base model.
    """
    if recorded is not None or not is_adapter(paths):
        return recorded
    # Imported here: models need no schema of adapters.
    from coldstream.model.adapter import CONFIG_BYTES_MAX, parse_config

    return parse_config(read(ADAPTER_CONFIG_NAME, CONFIG_BYTES_MAX), where=f"{where}/{ADAPTER_CONFIG_NAME}")


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


def missing_model(place: Place, name: str, listing: Iterable[str] = ()) -> NotFoundError:
    """The error for a model that is not in the store; its hint has the nearest names, if the place can be listed.

    `listing` has the paths below that name, which is not a model.
    """
    message = f"there is no model {name} in {place.uri}"
    if below := sorted({path.split("/")[0] for path in listing}):
        hint = f"below it: {name}/{below[0]}" + ("  …" if below[1:] else "")
        return NotFoundError(message, hint=hint, target=f"{place.uri}/{name}")
    try:
        names = group_by_model(islice(place.list(""), _LISTED_MAX))
    except ColdstreamError:
        names = {}
    near = nearest_names(name, names)
    hint = f"did you mean {' or '.join(near)}?   (all of them: coldstream list)" if near else "see: coldstream list"
    return NotFoundError(message, hint=hint, target=f"{place.uri}/{name}")


def nearest_names(name: str, names: Iterable[str]) -> list[str]:
    """The most similar names, the nearest first; case does not matter, and the organisation may be missing."""
    lowered = name.lower()
    whole = {known.lower(): known for known in names}
    last = {known.rpartition("/")[2].lower(): known for known in names}
    near = [whole[match] for match in difflib.get_close_matches(lowered, whole, n=_NEAR_MAX, cutoff=0.75)]
    near += [last[match] for match in difflib.get_close_matches(lowered.rpartition("/")[2], last, n=1, cutoff=0.85)]
    return list(dict.fromkeys(near))[:_NEAR_MAX]
