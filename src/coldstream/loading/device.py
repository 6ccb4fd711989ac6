"""Copies from the arena to a device, on a separate stream, from memory that is pinned once.

An event tells when the copy of an extent is done and its memory can be reused; only the stream that uses the tensors
waits for it. Uses torch's public interface only. On a device without streams, copies are synchronous.
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

# Kernels read vectors of 16 bytes; a tensor with another alignment in its extent gets its own memory.
_ALIGNMENT = 16


class Event(Protocol):
    """Is reached when all work before it is done."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Lane:
    """Where copies run: here they are synchronous, on any device."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Starts a copy."""
        target.copy_(source)

    def mark(self) -> Event | None:
        """Makes the current stream wait for the copies so far; returns when they are done, None if they are."""
        return None

    def pin(self, address: int, size: int) -> bool:
        """Pins `[address, address + size)`; returns whether that worked."""
        return False

    def unpin(self, address: int) -> None:
        pass


class CudaLane(Lane):
    """Copies on a side stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._torch, self._device = torch, device
        self._stream: Any = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call,unused-ignore]

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        torch = self._torch
        # The target was allocated on the current stream: earlier uses of its memory come first.
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
    """Makes tensors on a device from extents. One per load; not thread-safe."""

    def __init__(self, device: torch.device, layout: Layout, lane: Lane | None = None) -> None:
        self._device, self._layout = device, layout
        if lane is None:
            lane = CudaLane(device) if device.type == "cuda" else Lane()
        self._lane = lane
        self._make = torch_maker()
        self._copying: deque[tuple[Event, Any]] = deque()
        self._unpin: Callable[[], None] | None = None

    def pin(self, memory: Any, size: int) -> None:
        """Pins, and touches, the first `size` bytes of the mapped arena; copies from beyond are slower."""
        self._unpin = pinned(self._lane, memory, size)

    def make(self, extent: Extent) -> Iterator[tuple[str, torch.Tensor]]:
        """An extent's tensors as (name, tensor on the device). Valid at once for the current stream."""
        import torch

        start = extent.start
        tensors = self._layout.tensors(extent.number)
        pairs: list[tuple[str, torch.Tensor]] = []
        if len(tensors) > 1 and all((tensor.start - start) % _ALIGNMENT == 0 for tensor in tensors):
            # One copy for all of them: thousands of small tensors would each cost a call.
            source = torch.frombuffer(extent.memory, dtype=torch.uint8)
            whole = torch.empty(source.shape, dtype=torch.uint8, device=self._device)
            self._lane.copy(whole, source)
            for tensor in tensors:
                like = self._make(tensor, extent.memory, tensor.start - start)
                piece = whole[tensor.start - start : tensor.stop - start]
                pairs.append((tensor.name, piece.view(like.dtype).view(like.shape)))
        else:
            for tensor in tensors:
                source = self._make(tensor, extent.memory, tensor.start - start)
                target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
                self._lane.copy(target, source)
                pairs.append((tensor.name, target))
        if (event := self._lane.mark()) is not None:
            self._copying.append((event, extent.memory))
        yield from pairs

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device, of a tensor that is in no extent."""
        return tensor.to(self._device)

    def settle(self, *, wait: bool = False) -> bool:
        """Releases the memory of finished copies, after the oldest one if `wait`; returns whether there were any."""
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
        if self._unpin is not None:
            self._unpin()
            self._unpin = None


def pinned(lane: Lane, memory: Any, size: int) -> Callable[[], None] | None:
    """Pins the first `size` bytes of a mapped arena; returns what unpins them, or None if that did not work."""
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))
    return partial(lane.unpin, address) if lane.pin(address, size) else None


def pinned_for_cuda(memory: Any, size: int) -> Callable[[], None] | None:
    """As `pinned`, for the current CUDA device; None without one."""
    import torch

    return pinned(CudaLane(checked_device("cuda")), memory, size) if torch.cuda.is_available() else None


def checked_device(name: str) -> torch.device:
    """The device of that name; a UsageError if torch does not know the name, or it does not exist."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as exc:
        raise UsageError(f"the device {name!r} is not available: {str(exc).splitlines()[0][:160]}") from exc
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
