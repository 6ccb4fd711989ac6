"""Tensors over ready extents: on the CPU as views of them, on a device as copies.

A tensor on the CPU is a torch tensor or a typed buffer over its extent: as long as it, or any view of it, lives, the
extent's memory is not reused.

A device gets its copies on a separate stream, from memory that is pinned once. An event tells when the copy of an
extent is done and its memory can be reused; only the stream that uses the tensors waits for it. Uses torch's public
interface only. On a device without streams, copies are synchronous.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from coldstream.engine.attach import Extent
from coldstream.engine.mapping import Memory, PageMaker
from coldstream.errors import UsageError
from coldstream.loading.options import PINNED_BYTES_MAX, Options, has_torch
from coldstream.machine.closing import Closing
from coldstream.model.header import Header, Tensor

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

_PINNED_AT_ONCE = 8 << 20
_ALIGNMENT = 16  # kernels read vectors of 16 bytes; a tensor with another alignment in its extent gets its own memory
# Safetensors' names to torch's. F4 holds two elements in one of torch's; F6 has no torch dtype.
TORCH_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}


@dataclass(frozen=True, slots=True)
class TypedBuffer:
    """A tensor without torch."""

    name: str  # as in the checkpoint
    dtype: str  # safetensors' name for it: "BF16", "F8_E4M3", …
    shape: tuple[int, ...]  # elements per dimension
    data: memoryview  # its bytes, writable, little-endian, row-major, without padding


LoadedTensor = Any  # a torch.Tensor or a TypedBuffer, as the caller chooses
Maker = Callable[[Tensor, Any, int], LoadedTensor]


class Layout:
    """Which extent has which tensors; `empty` are those without bytes, which are in no extent."""

    def __init__(self, headers: Sequence[Header], extents: Sequence[tuple[int, int, int]]) -> None:
        """Assigns the tensors to extents: (file, first byte, one past the last), by file and in order.

        Leaves out tensors that lie in no extent.
        """
        self.empty: list[Tensor] = []
        self._by_extent: list[list[Tensor]] = [[] for _ in extents]
        number = 0
        for file, header in enumerate(headers):
            for tensor in header.tensors:
                if tensor.start == tensor.stop:
                    self.empty.append(tensor)
                    continue
                while number < len(extents) and (extents[number][0], extents[number][2]) <= (file, tensor.start):
                    number += 1
                if number < len(extents) and extents[number][:2] <= (file, tensor.start):
                    self._by_extent[number].append(tensor)

    def tensors(self, extent: int) -> list[Tensor]:
        return self._by_extent[extent]


def make_buffer(tensor: Tensor, memory: Any, offset: int) -> TypedBuffer:
    """A typed buffer over the memory itself."""
    data = memoryview(memory).cast("B")[offset : offset + tensor.stop - tensor.start]
    return TypedBuffer(tensor.name, tensor.dtype, tensor.shape, data)


def torch_maker() -> Maker:
    """Makes torch tensors on the CPU, over the memory itself."""
    import torch

    frombuffer, empty = torch.frombuffer, torch.empty
    dtypes: dict[str, tuple[torch.dtype, int]] = {}
    for name, attribute in TORCH_DTYPES.items():
        if (dtype := getattr(torch, attribute, None)) is not None:
            dtypes[name] = (dtype, dtype.itemsize)

    def make(tensor: Tensor, memory: Any, offset: int) -> torch.Tensor:
        known = dtypes.get(tensor.dtype)
        if known is None:
            raise UsageError(
                f"{tensor.name}: torch {torch.__version__} has no dtype for {tensor.dtype}",
                hint="use typed buffers instead: stream(uri, framework='buffer')",
            )
        dtype, itemsize = known
        shape = tensor.shape
        if tensor.dtype == "F4":
            shape = (*shape[:-1], shape[-1] // 2) if shape else shape
        size = tensor.stop - tensor.start
        if not size:
            return empty(shape, dtype=dtype)
        return frombuffer(memory, dtype=dtype, count=size // itemsize, offset=offset).view(shape)

    return make


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

    def pin(self, address: int, size: int) -> Callable[[], object] | None:
        """Pins `[address, address + size)`; returns what unpins it, or None if that did not work."""
        return None


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

    def pin(self, address: int, size: int) -> Callable[[], object] | None:
        # Pinned pages cannot become huge pages.
        pages = PageMaker((ctypes.c_ubyte * size).from_address(address))
        for start in range(0, size, _PINNED_AT_ONCE):
            pages.make(start, min(start + _PINNED_AT_ONCE, size))
        cudart: Any = self._torch.cuda.cudart()  # type: ignore[no-untyped-call,unused-ignore]
        if int(cudart.cudaHostRegister(address, size, 0)):
            return None
        return partial(cudart.cudaHostUnregister, address)


class TensorReader:
    """Makes the tensors of one consumer on the CPU. Not thread-safe."""

    def __init__(self, layout: Layout, maker: Maker) -> None:
        self._layout, self._maker = layout, maker
        self._unpin: Callable[[], object] | None = None

    def pin(self, lane: Lane, memory: Any, size: int) -> None:
        """Pins, and touches, the first `size` bytes of the mapped arena; copies from beyond are slower."""
        self._unpin = lane.pin(ctypes.addressof(ctypes.c_ubyte.from_buffer(memory)), size)

    def empty(self) -> Iterator[tuple[str, LoadedTensor]]:
        """The tensors without elements, which are in no extent."""
        for tensor in self._layout.empty:
            yield tensor.name, self._maker(tensor, bytearray(), 0)

    def make(self, extent: Extent) -> Iterator[tuple[str, LoadedTensor]]:
        """An extent's tensors as (name, tensor). Each keeps the extent."""
        memory, start = extent.memory, extent.start
        for tensor in self._layout.tensors(extent.number):
            yield tensor.name, self._maker(tensor, memory, tensor.start - start)

    def settle(self, *, wait: bool = False) -> bool:
        """Releases the memory of finished copies, after the oldest one if `wait`; returns whether there were any."""
        return False

    def finish(self) -> None:
        """Waits for every copy, and unpins. Idempotent."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None


class TensorStream(Closing):
    """Iterates over (name, tensor), once; a context manager."""

    _target: Any  # what is loaded, for messages
    _tensors: Generator[tuple[str, LoadedTensor], None, None]
    _ended = False
    _again_hint: str

    def __iter__(self) -> Self:
        if self._ended:
            message = f"{self._target}: this load has ended; its tensors can be iterated over only once"
            raise UsageError(message, hint=self._again_hint)
        return self

    def __next__(self) -> tuple[str, LoadedTensor]:
        return next(self._tensors)


class DeviceReader(TensorReader):
    """Makes them on a device."""

    def __init__(self, device: torch.device, layout: Layout, lane: Lane) -> None:
        super().__init__(layout, torch_maker())
        self._device, self._lane = device, lane
        self._copying: deque[tuple[Event, Any]] = deque()

    def empty(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, tensor.to(self._device)) for name, tensor in super().empty())

    def make(self, extent: Extent) -> Iterator[tuple[str, torch.Tensor]]:
        """As on the CPU; valid at once for the current stream."""
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
                like = self._maker(tensor, extent.memory, tensor.start - start)
                piece = whole[tensor.start - start : tensor.stop - start]
                pairs.append((tensor.name, piece.view(like.dtype).view(like.shape)))
        else:
            for tensor in tensors:
                source = self._maker(tensor, extent.memory, tensor.start - start)
                target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
                self._lane.copy(target, source)
                pairs.append((tensor.name, target))
        if (event := self._lane.mark()) is not None:
            self._copying.append((event, extent.memory))
        yield from pairs

    def settle(self, *, wait: bool = False) -> bool:
        before = len(self._copying)
        if wait and self._copying:
            self._copying[0][0].synchronize()
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        return len(self._copying) < before

    def finish(self) -> None:
        while self._copying:
            self.settle(wait=True)
        super().finish()


def tensor_reader(layout: Layout, options: Options, *, arena: Memory | None, pinned_bytes: int = 0) -> TensorReader:
    """Makes tensors as the options say; for copies to a device, the first `pinned_bytes` of an arena are pinned.

    `arena` is the memory of the extents, None if that is mapped files.
    """
    pinned_bytes = min(pinned_bytes, len(arena)) if arena is not None else 0
    if options.device != "cpu":
        device = checked_device(options.device)
        lane = CudaLane(device) if device.type == "cuda" else Lane()
        reader: TensorReader = DeviceReader(device, layout, lane)
        if arena is not None:
            reader.pin(lane, arena, pinned_bytes)
        return reader
    is_torch = options.pin or options.framework == "pt" or (options.framework is None and has_torch())
    reader = TensorReader(layout, torch_maker() if is_torch else make_buffer)
    if arena is not None and is_pinned(options):
        reader.pin(CudaLane(checked_device("cuda")), arena, min(pinned_bytes, PINNED_BYTES_MAX))
    return reader


def is_pinned(options: Options) -> bool:
    """Whether the memory of the extents is pinned, which mapped files cannot be."""
    if options.device != "cpu":
        return True
    if not options.pin:
        return False
    import torch

    return torch.cuda.is_available()


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
