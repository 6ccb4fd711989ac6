"""Makes tensors from ready extents: on the CPU as views of them, on a device as copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from coldstream.engine.attach import Consumer, Extent
from coldstream.loading.options import PINNED_BYTES_MAX, Options
from coldstream.loading.tensors import Layout, LoadedTensor, Maker, buffer_maker, has_torch, torch_maker
from coldstream.model.header import Header

if TYPE_CHECKING:
    from coldstream.loading.device import DeviceMaker


class TensorReader:
    """Makes the tensors of one consumer. Not thread-safe."""

    def __init__(
        self, consumer: Consumer, headers: Sequence[Header], options: Options, *, pinned_bytes: int = 0
    ) -> None:
        """For a device, pins the first `pinned_bytes` of the arena."""
        self.layout = Layout(headers, consumer.catalog.extents)
        self._device: DeviceMaker | None = None
        self._unpin: Callable[[], None] | None = None
        self._maker: Maker
        if options.device != "cpu" or options.pin:
            from coldstream.loading import device

        if options.device != "cpu":
            self._device = device.DeviceMaker(device.checked_device(options.device), self.layout)
            self._device.pin(consumer.arena, min(pinned_bytes, len(consumer.arena)))
            self._maker = torch_maker()
        elif options.pin:
            self._unpin = device.pinned_for_cuda(
                consumer.arena, min(pinned_bytes, len(consumer.arena), PINNED_BYTES_MAX)
            )
            self._maker = torch_maker()
        elif options.framework == "pt" or (options.framework is None and has_torch()):
            self._maker = torch_maker()
        else:
            self._maker = buffer_maker()

    def empty(self) -> Iterator[tuple[str, LoadedTensor]]:
        """The tensors without elements, which are in no extent."""
        for tensor in self.layout.empty:
            value = self._maker(tensor, bytearray(), 0)
            yield tensor.name, value if self._device is None else self._device.moved(value)

    def make(self, extent: Extent) -> Iterator[tuple[str, LoadedTensor]]:
        """An extent's tensors, as (name, tensor)."""
        if self._device is not None:
            return self._device.make(extent)
        return self.layout.make(extent, self._maker)

    def settle(self, *, wait: bool = False) -> bool:
        """Releases the memory of finished copies to the device; returns whether there were any."""
        return self._device is not None and self._device.settle(wait=wait)

    def finish(self) -> None:
        """Waits for all copies to the device. Idempotent."""
        if self._device is not None:
            self._device.finish()
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
