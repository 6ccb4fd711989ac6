"""What is stored, and how often it is loaded. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coldstream.errors import UsageError
from coldstream.operate.cost.prices import Prices
from coldstream.operate.cost.requests import SHARD_BYTES, SMALL_FILES, chunks_of, shards_of, writes_of_upload
from coldstream.tune.gpus import Gpus
from coldstream.tune.predict import SETUP_SECONDS, NetworkPath, predict
from coldstream.units import format_bytes

MONTH_DAYS = 30
# Of our loader without a measurement of the bucket: as many as `coldstream tune` assumes.
_CONNECTIONS = 64
# What the Hub gives to one machine, and what its disk gives back: an assumption, replaced by
# `--hub-seconds` where it is known.
HUB_BYTES_PER_SECOND = 200e6
DISK_BYTES_PER_SECOND = 1e9
_LIMITS = {"launches a day": 1e7, "nodes": 1e6, "days": 31.0, "updates a month": 1e6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One model.

    Attributes:
        name: For people.
        stored_bytes: Of all its objects.
        loaded_bytes: Of the files that a start reads.
        chunks: See `reads_of_load`.
        shards: Likewise.
        small_files: Likewise.
        writes: See `writes_of_upload`.
        count: How many models like this there are.
    """

    name: str
    stored_bytes: int
    loaded_bytes: int
    chunks: int
    shards: int
    small_files: int
    writes: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a start waits for its weights, on one machine.

    Attributes:
        seconds: With our loader.
        hub_seconds: When the model is downloaded from the Hub and then read from the disk.
        gpus: Of the machine, that are idle while it waits.
        gpu: Their kind, or None.
        dollars_per_hour: Of one of them; None leaves their time out.
    """

    seconds: float
    hub_seconds: float
    gpus: int = 1
    gpu: str | None = None
    dollars_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPlan:
    """A month.

    Attributes:
        contents: The models; launches are spread evenly over them.
        stored_bytes: Of all that the bucket holds, other things than these models among it.
        objects: How many there are; None for a bucket that was not looked at.
        launches_per_day: Of all models together.
        nodes: That each launch brings up.
        days: On which there are launches.
        cached_share: Of the starts, how many find the model on the machine's disk.
        updates_per_month: How often each model is uploaded.
        start: What one waits for.
    """

    contents: tuple[Content, ...]
    stored_bytes: int
    objects: int | None
    launches_per_day: float
    nodes: int
    days: float
    cached_share: float
    updates_per_month: float
    start: Start

    @property
    def models(self) -> int:
        """How many there are."""
        return sum(content.count for content in self.contents)

    @property
    def loads(self) -> float:
        """Starts of one machine, in the month."""
        return self.launches_per_day * self.nodes * self.days

    @property
    def load_bytes(self) -> float:
        """Bytes that a start reads which finds nothing on the disk."""
        return _mean_bytes(self.contents)

    @property
    def dollars_of_a_second(self) -> float | None:
        """What a second of every start costs in the month."""
        if self.start.dollars_per_hour is None:
            return None
        return self.loads * self.start.gpus * self.start.dollars_per_hour / 3600


def alike(count: int, size: int) -> Content:
    """So many models of this size, none of which is looked at.

    Raises:
        UsageError: There is none, or there is nothing in it.
    """
    if count < 1 or count > 10**6:
        raise UsageError(f"{count} models are none to reckon with", hint="for example --models 10 --size 16GB")
    if size < 1 or size > 10**15:
        raise UsageError(f"a model of {format_bytes(size)} is none to reckon with", hint="for example --size 16GB")
    shards = shards_of(size)
    sizes = [min(SHARD_BYTES, size - SHARD_BYTES * number) for number in range(shards)]
    return Content(
        count=count,
        name="a model",
        stored_bytes=size,
        loaded_bytes=size,
        chunks=chunks_of(size),
        shards=shards,
        small_files=SMALL_FILES,
        writes=writes_of_upload([*sizes, *([0] * SMALL_FILES)]),
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
    """A plan, with what was not value filled in.

    Args:
        contents: One at least.
        prices: Of GPUs, when `gpu_dollars_per_hour` is None.
        stored_bytes: See `CostPlan`; None: of these models.
        objects: See `CostPlan`.
        launches_per_day: See `CostPlan`.
        nodes: See `CostPlan`.
        days: See `CostPlan`.
        cached_share: See `CostPlan`.
        updates_per_month: See `CostPlan`.
        gpus: Of each machine; or None.
        gpu_dollars_per_hour: Of one GPU; None: as the prices say.
        load_seconds_override: What a load takes; None: as `coldstream tune` would predict.
        hub_seconds_override: The same from the Hub.

    Raises:
        UsageError: A number makes no sense.
    """
    for name, value in (("launches a day", launches_per_day), ("nodes", nodes), ("days", days)):
        if not 0 < value <= _LIMITS[name]:
            raise UsageError(f"{value:g} {name} is not valid", hint=f"a number above 0, up to {_LIMITS[name]:,.0f}")
    if not 0 <= cached_share <= 1:
        raise UsageError(f"{cached_share:g} is not a share of the starts", hint="from 0 to 1")
    if not 0 <= updates_per_month <= _LIMITS["updates a month"]:
        raise UsageError(f"{updates_per_month:g} updates a month is not valid", hint="0 or more")
    for name, amount in (("an hour of a GPU", gpu_dollars_per_hour), ("a load", load_seconds_override),
                       ("a load from the Hub", hub_seconds_override)):  # fmt: skip
        if amount is not None and not 0 <= amount < 1e6:
            raise UsageError(f"{name} cannot be {amount:g}", hint="0 or more")
    size = _mean_bytes(contents)
    if gpu_dollars_per_hour is None and gpus is not None:
        gpu_dollars_per_hour = prices.gpus.dollars_per_hour.get(gpus.gpu.name)
    ours = load_seconds(size, gpus) if load_seconds_override is None else load_seconds_override
    disk = size / DISK_BYTES_PER_SECOND
    hub = SETUP_SECONDS + size / HUB_BYTES_PER_SECOND + disk if hub_seconds_override is None else hub_seconds_override
    return CostPlan(
        contents=tuple(contents),
        stored_bytes=sum(content.count * content.stored_bytes for content in contents)
        if stored_bytes is None
        else stored_bytes,
        objects=objects,
        launches_per_day=launches_per_day,
        nodes=nodes,
        days=days,
        cached_share=cached_share,
        updates_per_month=updates_per_month,
        start=Start(
            # A model on the disk is read from there, by either loader.
            seconds=(1 - cached_share) * ours + cached_share * min(ours, disk),
            hub_seconds=(1 - cached_share) * hub + cached_share * min(hub, disk),
            gpus=gpus.count if gpus else 1,
            gpu=gpus.gpu.name if gpus else None,
            dollars_per_hour=gpu_dollars_per_hour,
        ),
    )


def load_seconds(size: float, gpus: Gpus | None = None) -> float:
    """What a load of so many bytes from a bucket takes: 64 connections as they are usual, and the copy to the GPUs."""
    copies = gpus.gpu.copy_bytes_per_second * gpus.count if gpus else None
    return predict(int(size), NetworkPath(), connections=_CONNECTIONS, copies_bytes_per_second=copies).seconds


def _mean_bytes(contents: Sequence[Content]) -> float:
    return sum(content.count * content.loaded_bytes for content in contents) / sum(
        content.count for content in contents
    )
