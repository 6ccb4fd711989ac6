"""Tensors over memory: which extent has which, and how each becomes a torch tensor or a typed buffer.

A tensor is a view of its extent: as long as it, or any view of it, lives, the extent's memory is not reused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldstream.engine.attach import Extent
from coldstream.errors import UsageError
from coldstream.machine.extras import install_hint
from coldstream.model.header import Header, Tensor

if TYPE_CHECKING:
    import torch

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
        """Assigns the tensors to extents: (file, first byte, one past the last), by file and in order."""
        self.empty: list[Tensor] = []
        self._by_extent: list[list[Tensor]] = [[] for _ in extents]
        number = 0
        for file, header in enumerate(headers):
            while number < len(extents) and extents[number][0] < file:
                number += 1
            for tensor in header.tensors:
                if tensor.start == tensor.stop:
                    self.empty.append(tensor)
                    continue
                while extents[number][2] <= tensor.start:
                    number += 1
                self._by_extent[number].append(tensor)

    def tensors(self, extent: int) -> list[Tensor]:
        return self._by_extent[extent]

    def make(self, extent: Extent, maker: Maker) -> Iterator[tuple[str, LoadedTensor]]:
        """An extent's tensors as (name, tensor). Each keeps the extent."""
        memory, start = extent.memory, extent.start
        for tensor in self._by_extent[extent.number]:
            yield tensor.name, maker(tensor, memory, tensor.start - start)


def has_torch() -> bool:
    """Whether torch can be imported; does not import it."""
    return importlib.util.find_spec("torch") is not None


def require_torch(what: str) -> None:
    """Raises UsageError if torch, which `what` needs, is not installed."""
    if not has_torch():
        raise UsageError(f"{what} needs torch, which is not installed", hint=install_hint("torch"))


def buffer_maker() -> Maker:
    """Makes typed buffers."""

    def make(tensor: Tensor, memory: Any, offset: int) -> TypedBuffer:
        data = memoryview(memory).cast("B")[offset : offset + tensor.stop - tensor.start]
        return TypedBuffer(tensor.name, tensor.dtype, tensor.shape, data)

    return make


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
