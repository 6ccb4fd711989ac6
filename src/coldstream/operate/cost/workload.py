"""The planned workload: the models, as stored in a bucket or assumed, and how often they are loaded.

One chunk is one GET, and the first chunk of a shard is its header. tests/e2e/test_cost.py compares the numbers of
requests with those that a server counted; retries, renewed links and the warm-start bundle come on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.mirror.listing import list_models
from coldstream.mirror.stored_files import StoredModel, open_model
from coldstream.model.chunks import CHUNK_BYTES, part_bytes_for, part_count
from coldstream.model.manifest import Journal
from coldstream.model.selection import small_files, weights
from coldstream.operate.cost.prices import Prices, upload_operations
from coldstream.places.place import Store
from coldstream.tune.gpus import Gpus
from coldstream.tune.predict import SETUP_SECONDS, NetworkPath, predict
from coldstream.units import format_bytes

MONTH_DAYS = 30
# The connections that `coldstream tune` assumes for a bucket that was not measured.
_CONNECTIONS = 64
# Assumed throughput of the Hub to one machine, which `--hub-seconds` replaces, and of its disk.
_HUB_BYTES_PER_SECOND = 200e6
_DISK_BYTES_PER_SECOND = 1e9
# Of an assumed model: config, tokenizer and the like, and the usual size of shards.
_SMALL_FILES = 8
_SHARD_BYTES = 5_000_000_000
_LOADABLE = {"ready", "foreign"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A model, or `count` equal ones."""

    name: str
    stored_bytes: int
    loaded_bytes: int  # the size of the files that a start reads
    chunks: int  # of all shards, including the chunk of each header
    shards: int
    small_files: int  # the files that a start reads besides the weights
    writes: int  # class A requests to upload it
    count: int = 1
    copied_headers: int = 0  # shards whose header is in the manifest too

    def reads(self, fetched_share: Fraction = Fraction(1)) -> Fraction:
        """GETs (class B) of an average start of vLLM on one machine, if this share of starts has no local copy."""
        # The manifest and the headers are read twice, for vLLM's model folder and for the load, even with a local copy.
        headers = self.shards - self.copied_headers
        return 2 + 2 * headers + fetched_share * (self.chunks - self.shards + self.small_files)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCost:
    """How long a start waits for its weights, and the GPUs that wait with it."""

    seconds: float
    hub_seconds: float  # with a download from the Hub, read from the disk afterwards
    gpus: int = 1
    gpu: str | None = None
    dollars_per_hour: float | None = None  # the price of one GPU; None leaves their time out


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPlan:
    """A month."""

    contents: tuple[Content, ...]
    stored_bytes: int  # the size of everything in the bucket, including objects of no model
    objects: int | None  # the number of objects in the bucket; None for assumed models
    launches_per_day: float  # of all models together, over which they are spread evenly
    nodes: int  # machines per launch
    days: float
    cached_share: float  # the share of starts with the model on the local disk
    updates_per_month: float  # uploads of each model
    start: StartCost

    @property
    def models(self) -> int:
        return sum(content.count for content in self.contents)

    @property
    def loads(self) -> float:
        return self.launches_per_day * self.nodes * self.days

    @property
    def load_bytes(self) -> float:
        return _mean_bytes(self.contents)

    @property
    def dollars_of_a_second(self) -> float | None:
        """The monthly price of one second in every start; None if the GPU has no price."""
        if self.start.dollars_per_hour is None:
            return None
        return self.loads * self.start.gpus * self.start.dollars_per_hour / 3600


def alike(count: int, size: int) -> Content:
    """Assumes so many models of this size; UsageError if one of the numbers is out of range."""
    if count < 1 or count > 10**6:
        raise UsageError(f"{count} is not a valid number of models", hint="for example --models 10 --size 16GB")
    if size < 1 or size > 10**15:
        raise UsageError(f"{format_bytes(size)} is not a valid size of a model", hint="for example --size 16GB")
    sizes = [min(_SHARD_BYTES, size - start) for start in range(0, size, _SHARD_BYTES)]
    return Content(
        count=count,
        name="a model",
        stored_bytes=size,
        loaded_bytes=size,
        chunks=chunks_of(size),
        shards=len(sizes),
        small_files=_SMALL_FILES,
        writes=writes_of_upload([*sizes, *([0] * _SMALL_FILES)]),
    )


def chunks_of(size: int) -> int:
    """The chunks of weights of this size with usual shards; cuts on the edges of tensors add a few more."""
    return -(-size // CHUNK_BYTES) + max(1, -(-size // _SHARD_BYTES))


def writes_of_upload(sizes: Iterable[int]) -> int:
    """Class A requests for storing files of these sizes."""
    sizes = list(sizes)
    return upload_operations(sum(part_count(size, part_bytes_for(size)) for size in sizes), len(sizes))


def read_contents(store: Store, names: Sequence[str] = ()) -> tuple[tuple[Content, ...], int, int]:
    """Reads the models, the stored bytes and the number of objects: of these models, or of the whole bucket."""
    if names:
        models = [open_model(store, name) for name in dict.fromkeys(names)]
        for model in models:
            if isinstance(model.record, Journal):
                raise NotFoundError(f"{model.name} is not complete: its upload is running or was interrupted")
            if not _shards(model):
                raise NotFoundError(f"{model.name} has no safetensors weights, so nothing loads it")
        sizes = [info.size for model in models for info in model.listing.values()]
        return tuple(map(_content, models)), sum(sizes), len(sizes) + len(models)
    contents = []
    for info in list_models(store):
        # The bucket may hold names and files that cannot be loaded, and a model may be removed while this runs.
        with suppress(UsageError, IntegrityError, NotFoundError):
            if info.state in _LOADABLE and _shards(model := open_model(store, info.name)):
                contents.append(_content(model))
    if not contents:
        hint = "upload one, or estimate without a bucket: coldstream cost --models 10 --size 16GB"
        raise NotFoundError(f"there is no model to load in {store.uri}", hint=hint)
    sizes = [info.size for info in store.list("")]
    return tuple(contents), sum(sizes), len(sizes)


def _shards(model: StoredModel) -> set[str]:
    return set(weights(file.path for file in model.files))


def _content(model: StoredModel) -> Content:
    shards, files = _shards(model), model.files
    beside = set(small_files({file.path: file.size for file in files}, stored=model.record is not None))
    return Content(
        name=model.name,
        stored_bytes=sum(info.size for info in model.listing.values()),
        loaded_bytes=sum(file.size for file in files if file.path in shards | beside),
        # Without a manifest only the headers, which are not read here, tell the exact number.
        chunks=sum(
            len(file.entry.chunks.stops) if file.entry else chunks_of(file.size)
            for file in files
            if file.path in shards
        ),
        shards=len(shards),
        small_files=len(beside),
        writes=writes_of_upload(file.size for file in files),
        copied_headers=sum(bool(file.entry and file.entry.chunks.header) for file in files if file.path in shards),
    )


def make_plan(
    contents: Sequence[Content],
    prices: Prices,
    *,
    stored_bytes: int | None = None,
    objects: int | None = None,
    launches_per_day: float,
    nodes: int = 1,
    days: float = MONTH_DAYS,
    cached_share: float = 0.0,
    updates_per_month: float = 1.0,
    gpus: Gpus | None = None,
    gpu_dollars_per_hour: float | None = None,
    load_seconds_override: float | None = None,
    hub_seconds_override: float | None = None,
) -> CostPlan:
    """Completes a plan with sizes of `contents`, prices of GPUs, and durations as `coldstream tune` predicts them."""
    for name, value, most in (("launches a day", launches_per_day, 1e7), ("nodes", nodes, 1e6), ("days", days, 31.0)):
        if not 0 < value <= most:
            raise UsageError(f"{value:g} {name} is not valid", hint=f"a number above 0, up to {most:,.0f}")
    if not 0 <= cached_share <= 1:
        raise UsageError(f"{cached_share:g} is not a share of the starts", hint="from 0 to 1")
    if not 0 <= updates_per_month <= 1e6:
        raise UsageError(f"{updates_per_month:g} updates a month is not valid", hint="0 or more")
    amounts = {"an hour of a GPU": gpu_dollars_per_hour, "a load": load_seconds_override}
    for name, amount in (amounts | {"a load from the Hub": hub_seconds_override}).items():
        if amount is not None and not 0 <= amount < 1e6:
            raise UsageError(f"{name} cannot be {amount:g}", hint="0 or more")
    if stored_bytes is None:
        stored_bytes = sum(content.count * content.stored_bytes for content in contents)
    if gpu_dollars_per_hour is None and gpus is not None:
        gpu_dollars_per_hour = prices.gpus.dollars_per_hour.get(gpus.gpu.name)
    size = _mean_bytes(contents)
    disk = size / _DISK_BYTES_PER_SECOND
    ours = load_seconds(size, gpus) if load_seconds_override is None else load_seconds_override
    hub = SETUP_SECONDS + size / _HUB_BYTES_PER_SECOND + disk if hub_seconds_override is None else hub_seconds_override
    return CostPlan(
        contents=tuple(contents),
        stored_bytes=stored_bytes,
        objects=objects,
        launches_per_day=launches_per_day,
        nodes=nodes,
        days=days,
        cached_share=cached_share,
        updates_per_month=updates_per_month,
        start=StartCost(
            # Either loader reads a local copy from the disk.
            seconds=(1 - cached_share) * ours + cached_share * min(ours, disk),
            hub_seconds=(1 - cached_share) * hub + cached_share * min(hub, disk),
            gpus=gpus.count if gpus else 1,
            gpu=gpus.gpu.name if gpus else None,
            dollars_per_hour=gpu_dollars_per_hour,
        ),
    )


def load_seconds(size: float, gpus: Gpus | None = None) -> float:
    """Predicts a load from a bucket over 64 usual connections, including the copy to the GPUs."""
    copies = gpus.gpu.copy_bytes_per_second * gpus.count if gpus else None
    return predict(int(size), NetworkPath(), connections=_CONNECTIONS, copies_bytes_per_second=copies).seconds


def _mean_bytes(contents: Sequence[Content]) -> float:
    return sum(each.count * each.loaded_bytes for each in contents) / sum(each.count for each in contents)
