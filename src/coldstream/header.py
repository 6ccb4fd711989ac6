"""Safetensors headers, checked before anything in them is believed.

The format: 8 bytes of little-endian length `n`, `n` bytes of JSON, then the data. The JSON maps each tensor's name to
`{"dtype", "shape", "data_offsets": [start, stop]}`, offsets counted from the first data byte, half-open; the key
`__metadata__` maps strings to strings. Tensors cover the data completely, without holes and without overlap.
Source: the format's specification in the safetensors repository. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from coldstream.errors import HeaderError

# The reference implementation refuses longer ones (safetensors, MAX_HEADER_SIZE).
HEADER_BYTES_MAX = 100_000_000
LENGTH_BYTES = 8

# Bits per element. Source: safetensors 0.8, `Dtype::bitsize`.
DTYPE_BITS: Mapping[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's place in its file.

    Attributes:
        name: As in the checkpoint.
        dtype: One of `DTYPE_BITS`.
        shape: Elements per dimension; empty for a scalar.
        start: First byte, counted from the start of the file.
        stop: One past the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes:
        data_start: First data byte of the file: 8 plus the JSON's length.
        tensors: In the order in which they lie in the file; they cover `[data_start, file size)` exactly.
        metadata: The `__metadata__` map, empty when absent.
    """

    data_start: int
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]


def header_stop(first_bytes: bytes | bytearray | memoryview, *, file_bytes: int, path: str) -> int:
    """Where the header ends and the data starts, from at least the first 8 bytes of the file.

    Raises:
        HeaderError: The file is too short, or the length is larger than the file or the limit.
    """
    if file_bytes < LENGTH_BYTES or len(first_bytes) < LENGTH_BYTES:
        raise HeaderError(f"{path} is no safetensors file: it has {file_bytes} bytes, a header needs at least 8")
    length = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        raise HeaderError(
            f"{path} is no safetensors file: its header claims {length} bytes, {HEADER_BYTES_MAX} are allowed",
            hint="the file may be a pickle or a git-lfs pointer under a wrong name",
        )
    if LENGTH_BYTES + length > file_bytes:
        raise HeaderError(f"{path} is truncated: its header ends at byte {LENGTH_BYTES + length} of {file_bytes}")
    return LENGTH_BYTES + length


def parse_header(head: bytes | bytearray | memoryview, *, file_bytes: int, path: str) -> Header:
    """Reads and checks a header.

    Args:
        head: The file's first bytes, at least `header_stop` of them; more are ignored.
        file_bytes: The size of the whole file.
        path: The file's name, for messages.

    Raises:
        HeaderError: Anything about it is wrong. Permanent.
    """
    data_start = header_stop(head, file_bytes=file_bytes, path=path)
    try:
        entries = json.loads(bytes(head[LENGTH_BYTES:data_start]), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise HeaderError(f"{path}: the header is not valid JSON: {str(exc)[:120]}") from exc
    if not isinstance(entries, dict):
        raise HeaderError(f"{path}: the header is no JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError(f"{path}: __metadata__ is no map of strings")
    tensors = sorted(
        (_tensor(name, entry, data_start, path) for name, entry in entries.items()),
        key=lambda tensor: (tensor.start, tensor.stop),
    )
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps another tensor" if tensor.start < position else "leaves a hole before it"
            raise HeaderError(f"{path}: tensor {tensor.name[:80]!r} starts at {tensor.start}, {kind} at {position}")
        position = tensor.stop
    if position != file_bytes:
        raise HeaderError(f"{path}: the tensors end at byte {position}, the file has {file_bytes}")
    return Header(data_start=data_start, tensors=tuple(tensors), metadata=metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice: two tensors of one name would hide one of them."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _tensor(name: str, entry: object, data_start: int, path: str) -> Tensor:
    where = f"{path}: tensor {name[:80]!r}"
    if not isinstance(entry, dict):
        raise HeaderError(f"{where} is no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"{where} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise HeaderError(f"{where} has the shape {str(shape)[:60]}, which is no list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise HeaderError(f"{where} has the offsets {str(offsets)[:60]}, which are no [start, stop]")
    start, stop = offsets
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != (stop - start) * 8:
        raise HeaderError(f"{where} spans {stop - start} bytes, its shape and dtype {dtype} need {bits / 8:g}")
    return Tensor(name, dtype, tuple(shape), data_start + start, data_start + stop)


def _is_count(value: object) -> bool:
    # bool is an int in Python; in a header `true` is no size. The bound keeps hostile products small.
    return type(value) is int and 0 <= value < 1 << 63
