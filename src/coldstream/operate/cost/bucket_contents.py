"""What is in the bucket: its models as their manifests describe them, and how much there is in all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.mirror.listing import list_models
from coldstream.mirror.stored_files import StoredModel, open_model
from coldstream.model.manifest import Journal
from coldstream.model.selection import small_files, weights
from coldstream.operate.cost.requests import chunks_of, writes_of_upload
from coldstream.operate.cost.workload import Content
from coldstream.places.place import Store

_LOADABLE = {"ready", "foreign"}


def read_contents(store: Store, names: Sequence[str] = ()) -> tuple[tuple[Content, ...], int, int]:
    """The models, the bytes that are stored and the number of objects.

    Args:
        store: The bucket.
        names: The models that count; none: all that can be loaded, and whatever else the bucket holds.

    Raises:
        NotFoundError: A model is not there or not complete, or there is none at all.
    """
    if names:
        models = [_complete(open_model(store, name)) for name in dict.fromkeys(names)]
        sizes = [info.size for model in models for info in model.listing.values()]
        return tuple(map(_content, models)), sum(sizes), len(sizes) + len(models)
    contents = tuple(_loadable(store))
    if not contents:
        raise NotFoundError(
            f"there is no model to load in {store.uri}",
            hint="upload one, or reckon without a bucket: coldstream cost --models 10 --size 16GB",
        )
    sizes = [info.size for info in store.list("")]
    return contents, sum(sizes), len(sizes)


def _loadable(store: Store) -> Iterator[Content]:
    for info in list_models(store):
        # The bucket may hold names and files that cannot be loaded, and a model may be removed at this moment.
        with suppress(UsageError, IntegrityError, NotFoundError):
            if info.state in _LOADABLE and _shards(model := open_model(store, info.name)):
                yield _content(model)


def _complete(model: StoredModel) -> StoredModel:
    if isinstance(model.record, Journal):
        raise NotFoundError(f"{model.name} is not complete: its upload is running or was broken off")
    if not _shards(model):
        raise NotFoundError(f"{model.name} has no safetensors weights, so nothing loads it")
    return model


def _shards(model: StoredModel) -> tuple[str, ...]:
    return weights(file.path for file in model.files)


def _content(model: StoredModel) -> Content:
    shards, files = set(_shards(model)), model.files
    beside = set(small_files({file.path: file.size for file in files}, stored=model.record is not None))
    of_weights = [file for file in files if file.path in shards]
    return Content(
        name=model.name,
        stored_bytes=sum(info.size for info in model.listing.values()),
        loaded_bytes=sum(file.size for file in files if file.path in shards | beside),
        # Without a manifest the headers say how it is cut, and they are not read for this.
        chunks=sum(len(file.entry.chunks.stops) if file.entry else chunks_of(file.size) for file in of_weights),
        shards=len(shards),
        small_files=len(beside),
        writes=writes_of_upload(file.size for file in files),
    )
