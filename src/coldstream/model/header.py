"""Safetensors headers, validated before anything in them is used.

The format: 8 bytes of little-endian length `n`, `n` bytes of JSON, then the data. The JSON maps each tensor's name to
`{"dtype", "shape", "data_offsets": [start, stop]}`, offsets counted from the first data byte, half-open; the key
`__metadata__` maps strings to strings. Tensors cover the data completely, without gaps and without overlap.
Source: the format's specification in the safetensors repository. Pure.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from coldstream.errors import HeaderError, IntegrityError
from coldstream.model.lfs import HINT, is_pointer, pointer_message
from coldstream.net.reply import first_words

# The reference implementation refuses longer ones (safetensors, MAX_HEADER_SIZE).
HEADER_BYTES_MAX = 100_000_000
LENGTH_BYTES = 8
_TEXT_BYTES = 4096
# One part of what one rank of a tensor-parallel model holds (vLLM's sharded state).
_RANK_PART = re.compile(r"(?:.*/)?model-rank-(\d+)-part-\d+\.safetensors")
# Commas, quotes and opening brackets. The file with the most tensors known has a tenth; JSON of 100 MB of nothing else
# would take gigabytes of memory.
_MARKS_MAX = 8_000_000
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
    """One tensor's place in its file."""

    name: str  # as in the checkpoint
    dtype: str  # one of `DTYPE_BITS`
    shape: tuple[int, ...]  # elements per dimension; empty for a scalar
    start: int  # first byte, counted from the start of the file
    stop: int  # one past the last byte


@dataclass(frozen=True, slots=True)
class Header:
    """A validated header."""

    data_start: int  # first data byte of the file: 8 plus the JSON's length
    # In the order in which they lie in the file; they cover `[data_start, file size)` exactly.
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]  # the `__metadata__` map, empty when absent


def header_stop(first_bytes: bytes | bytearray | memoryview, *, file_bytes: int, path: str) -> int:
    """Where the header ends and the data starts, from at least the first 8 bytes of the file."""
    if file_bytes < LENGTH_BYTES or len(first_bytes) < LENGTH_BYTES:
        raise HeaderError(f"{path} is not a safetensors file: it has {file_bytes} bytes, a header needs at least 8")
    if is_pointer(first_bytes, file_bytes):
        raise HeaderError(pointer_message(path), hint=HINT)
    length = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        if words := _text(bytes(first_bytes[:_TEXT_BYTES])):
            raise HeaderError(
                f'{path} is not a safetensors file but text: it begins with "{words}"',
                hint="a web page, an error or a pointer was stored in its place; check the address or the file",
            )
        raise HeaderError(
            f"{path} is not a safetensors file: its header claims {length} bytes, and {HEADER_BYTES_MAX} are allowed",
            hint="the file may be a pickle under a wrong name",
        )
    if LENGTH_BYTES + length > file_bytes:
        raise HeaderError(f"{path} is truncated: its header ends at byte {LENGTH_BYTES + length} of {file_bytes}")
    return LENGTH_BYTES + length


def _text(data: bytes) -> str:
    """The first words of a file that is text; empty for any other."""
    start = data[:32].decode("ascii", "replace")
    return first_words(data) if all((c.isprintable() and c != "\ufffd") or c.isspace() for c in start) else ""


def parse_header(head: bytes | bytearray | memoryview, *, file_bytes: int, path: str) -> Header:
    """Reads and checks a header from the file's first bytes, at least `header_stop` of them; more are ignored.

    Raises:
        HeaderError: It is not valid. Permanent.
    """
    data_start = header_stop(head, file_bytes=file_bytes, path=path)
    raw = bytes(head[LENGTH_BYTES:data_start])
    if has_too_many_values(raw):
        raise HeaderError(f"{path}: the header's {len(raw)} bytes hold more values than any checkpoint has")
    header = _decode(raw, data_start, path)
    position = data_start
    for tensor in header.tensors:
        if tensor.start != position:
            kind = "overlaps another tensor" if tensor.start < position else "leaves a gap before it"
            raise HeaderError(f"{path}: tensor {tensor.name[:80]!r} starts at {tensor.start} and {kind}, at {position}")
        position = tensor.stop
    if position != file_bytes:
        raise HeaderError(f"{path}: the tensors end at byte {position}, the file has {file_bytes}")
    return header


def has_too_many_values(text: bytes) -> bool:
    """Whether decoding this JSON would take gigabytes of memory; no checkpoint's header or index does."""
    return len(text) > _MARKS_MAX < sum(map(text.count, (b",", b'"', b"{", b"[")))


def rank_of(path: str) -> str | None:
    """The rank whose part of a tensor-parallel model a file holds; None of a file for all ranks."""
    match = _RANK_PART.fullmatch(path)
    return match[1] if match else None


def check_duplicate_tensors(headers: Mapping[str, Header], *, where: str) -> None:
    """Refuses a model of which two files hold the same tensor: which of them would count is left to chance.

    Ranks of a tensor-parallel model each hold their own part of a tensor under the same name.
    """
    names = {path: [tensor.name for tensor in header.tensors] for path, header in headers.items()}
    if len(set().union(*names.values())) == sum(map(len, names.values())):
        return
    owners: dict[tuple[str | None, str], str] = {}
    for path, own in names.items():
        rank = rank_of(path)
        for name in own:
            if (other := owners.setdefault((rank, name), path)) != path:
                raise IntegrityError(
                    f"{where}: {other} and {path} both hold the tensor {name[:80]!r}",
                    hint=f"leave one of them out: coldstream upload … --exclude {shlex.quote(path)}",
                    target=where,
                )


def _decode(raw: bytes, data_start: int, path: str) -> Header:
    """Reads the JSON and checks each tensor by itself; how they fit together is for the caller."""
    # Imported here: msgspec takes 25 ms, and a process that reads no header has no use for it.
    from coldstream.model.header_json import HeaderJsonError, decode_header

    try:
        metadata, entries = decode_header(raw)
    except HeaderJsonError as exc:
        raise HeaderError(f"{path}: {exc}") from exc
    tensors = []
    for name, entry in entries:
        dtype, shape, (start, stop) = entry.dtype, entry.shape, entry.data_offsets
        bits = _bits(dtype, shape)
        if bits != (stop - start) * 8:
            where = f"{path}: tensor {name[:80]!r}"
            if dtype not in DTYPE_BITS:
                raise HeaderError(f"{where} has the unknown dtype {dtype[:20]!r}")
            needs = "more than any file has" if bits is None else f"{bits / 8:g}"
            raise HeaderError(f"{where} spans {stop - start} bytes, its shape and dtype {dtype} need {needs}")
        tensors.append(Tensor(name, dtype, shape, data_start + start, data_start + stop))
    tensors.sort(key=attrgetter("start", "stop"))
    return Header(data_start=data_start, tensors=tuple(tensors), metadata=metadata)


def _bits(dtype: str, shape: Sequence[int]) -> int | None:
    """What a tensor needs; None for an unknown dtype, and for more than any file has."""
    count = 1
    for size in shape:
        count *= size
        # Before a hostile product grows: no file has more than a signed 64-bit integer holds.
        if count >> 63:
            return None
    bits = DTYPE_BITS.get(dtype)
    return None if bits is None else count * bits
