"""From the arena to a device: copies on a stream of their own, out of memory that is pinned once.

An extent stays the engine's until its copy is done, which an event tells; nothing waits for a copy but the stream that
uses the tensors. Written against torch's public interface. Where a device has no streams, copies are plain.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from coldstream.engine.attach import Extent
from coldstream.errors import UsageError
from coldstream.loading.tensors import Layout, torch_maker

if TYPE_CHECKING:
    import torch

# Kernels read vectors of 16 bytes; a tensor that starts elsewhere in its extent gets memory of its own.
_ALIGNMENT = 16


class Event(Protocol):
    """Something that is reached when all work before it is done."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Lane(Protocol):
    """Where copies run."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begins to copy."""

    def mark(self) -> Event | None:
        """Makes the present work wait for the copies begun so far, and tells when they are done; None: they are."""

    def pin(self, address: int, size: int) -> bool:
        """Pins `[address, address + size)`; whether that worked."""

    def unpin(self, address: int) -> None:
        """Ends it."""


class PlainLane:
    """Copies that are done when they return: any device."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def mark(self) -> Event | None:
        return None

    def pin(self, address: int, size: int) -> bool:
        return False

    def unpin(self, address: int) -> None:
        pass


class CudaLane:
    """Copies on a side stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._torch, self._device = torch, device
        self._stream: Any = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call,unused-ignore]

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        torch = self._torch
        # The target was allocated on the present stream: what used its memory before comes first.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Event | None:
        event: torch.cuda.Event = self._torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        event.record(self._stream)
        self._torch.cuda.current_stream(self._device).wait_event(event)
        return event

    def pin(self, address: int, size: int) -> bool:
        cudart: Any = self._torch.cuda.cudart
        return int(cudart().cudaHostRegister(address, size, 0)) == 0

    def unpin(self, address: int) -> None:
        cudart: Any = self._torch.cuda.cudart
        cudart().cudaHostUnregister(address)


class DeviceMaker:
    """Makes tensors on a device out of extents. One per load; not thread-safe."""

    def __init__(self, device: torch.device, layout: Layout, lane: Lane | None = None) -> None:
        self._device, self._layout = device, layout
        if lane is None:
            lane = CudaLane(device) if device.type == "cuda" else PlainLane()
        self._lane = lane
        self._make = torch_maker()
        self._copying: deque[tuple[Event, Any]] = deque()
        self._pinned = 0
        self._pinned_bytes = 0

    def pin(self, memory: Any, size: int) -> None:
        """Pins the first `size` bytes of the arena. Touches all of them.

        Args:
            memory: The mapped arena.
            size: At most its length; where it ends, copies are as slow as from ordinary memory.
        """
        address = ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))
        if self._lane.pin(address, size):
            self._pinned, self._pinned_bytes = address, size

    def make(self, extent: Extent) -> Iterator[tuple[str, torch.Tensor]]:
        """An extent's tensors as (name, tensor on the device). Valid at once for the present stream."""
        import torch

        start = extent.start
        tensors = self._layout.tensors(extent.number)
        made: list[tuple[str, torch.Tensor]] = []
        if len(tensors) > 1 and all((tensor.start - start) % _ALIGNMENT == 0 for tensor in tensors):
            # One copy for all of them: thousands of small ones would each cost a call.
            source = torch.frombuffer(extent.memory, dtype=torch.uint8)
            whole = torch.empty(source.shape, dtype=torch.uint8, device=self._device)
            self._lane.copy(whole, source)
            for tensor in tensors:
                like = self._make(tensor, extent.memory, tensor.start - start)
                piece = whole[tensor.start - start : tensor.stop - start]
                made.append((tensor.name, piece.view(like.dtype).view(like.shape)))
        else:
            for tensor in tensors:
                source = self._make(tensor, extent.memory, tensor.start - start)
                target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
                self._lane.copy(target, source)
                made.append((tensor.name, target))
        event = self._lane.mark()
        if event is not None:
            self._copying.append((event, extent.memory))
        yield from made

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that lies in no extent, on the device."""
        return tensor.to(self._device)

    def settle(self, *, wait: bool = False) -> bool:
        """Gives back the memory of copies that are done.

        Args:
            wait: Whether to wait for the oldest one.

        Returns:
            Whether any was given back.
        """
        before = len(self._copying)
        if wait and self._copying:
            self._copying[0][0].synchronize()
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        return len(self._copying) < before

    def finish(self) -> None:
        """Waits for every copy, and unpins."""
        while self._copying:
            self.settle(wait=True)
        if self._pinned:
            self._lane.unpin(self._pinned)
            self._pinned = 0


def pinned(memory: Any, size: int) -> Callable[[], None] | None:
    """Pins the first `size` bytes of a mapped arena for the present CUDA device.

    Returns:
        What ends it; None where there is no such device, or it refuses.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    lane = CudaLane(torch.device("cuda", torch.cuda.current_device()))
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))
    return partial(lane.unpin, address) if lane.pin(address, size) else None


def checked_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: torch does not know it, or it is not there.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as exc:
        raise UsageError(f"there is no device {name!r}: {str(exc).splitlines()[0][:160]}") from exc
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
