"""The way to a device, with a lane that keeps its copies back until it is asked: what a CUDA stream may do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from coldstream.errors import UsageError
from coldstream.loading.tensors import DeviceReader, Lane, Layout, checked_device
from tests.checkpoints import checkpoint_bytes, layered, raw_bytes
from tests.unit.loading.test_tensors import extent_of, planned


class LazyEvent:
    def __init__(self, lane: LazyLane, count: int) -> None:
        self.lane, self.count = lane, count

    def query(self) -> bool:
        return self.lane.done >= self.count

    def synchronize(self) -> None:
        self.lane.work(self.count)


class LazyLane(Lane):
    """Copies happen when somebody waits for them."""

    def __init__(self) -> None:
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.done = 0
        self.pinned: dict[int, int] = {}

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.copies.append((target, source))

    def mark(self) -> LazyEvent:
        return LazyEvent(self, len(self.copies))

    def work(self, count: int) -> None:
        for target, source in self.copies[self.done : count]:
            target.copy_(source)
        self.copies[self.done : count] = [(torch.empty(0), torch.empty(0))] * (count - self.done)
        self.done = max(self.done, count)

    def pin(self, address: int, size: int) -> Callable[[], object]:
        self.pinned[address] = size
        return lambda: self.pinned.pop(address)


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("lane_class", [Lane, LazyLane])
def test_tensors_arrive_whole(pad: int, lane_class: type[Lane]) -> None:
    content = checkpoint_bytes(layered(layers=3, rows=64, columns=128), pad=pad)
    header, runs = planned(content)
    maker = DeviceReader(torch.device("cpu"), Layout([header], runs), lane_class())
    found = {}
    for number, (_, start, stop) in enumerate(runs):
        found |= dict(maker.make(extent_of(number, start, content[start:stop])))
    maker.finish()
    for tensor in header.tensors:
        if tensor.start < tensor.stop:
            assert raw_bytes(found[tensor.name]) == content[tensor.start : tensor.stop]
            assert found[tensor.name].shape == tensor.shape


def test_an_extent_is_kept_until_its_copy_is_done() -> None:
    import weakref

    content = checkpoint_bytes({"a": ("F32", (256,)), "b": ("F32", (256,))})
    header, runs = planned(content)
    lane = LazyLane()
    maker = DeviceReader(torch.device("cpu"), Layout([header], runs), lane)
    (_, start, stop) = runs[0]
    extent = extent_of(0, start, content[start:stop])
    gone: list[int] = []
    watch = weakref.ref(extent.memory, lambda _: gone.append(1))
    made = dict(maker.make(extent))
    del extent
    assert not maker.settle()
    assert watch() is not None
    assert maker.settle(wait=True)
    assert gone == [1]
    assert raw_bytes(made["b"]) == content[start + 1024 : stop]
    assert not maker.settle(wait=True)


def test_what_is_pinned_is_unpinned() -> None:
    lane = LazyLane()
    maker = DeviceReader(torch.device("cpu"), Layout([], []), lane)
    memory = bytearray(1 << 20)
    maker.pin(lane, memory, 4096)
    assert list(lane.pinned.values()) == [4096]
    maker.finish()
    maker.finish()
    assert not lane.pinned


@pytest.mark.parametrize("name", ["warp", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="is not available") as caught:
        checked_device(name)
    assert "\n" not in caught.value.message
