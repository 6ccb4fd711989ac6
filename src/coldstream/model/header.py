"""Safetensors headers, validated before anything in them is used.

The format: 8 bytes of little-endian length `n`, `n` bytes of JSON, then the data. The JSON maps each tensor's name to
`{"dtype", "shape", "data_offsets": [start, stop]}`, offsets counted from the first data byte, half-open; the key
`__metadata__` maps strings to strings. Tensors cover the data completely, without gaps and without overlap.
Source: the format's specification in the safetensors repository. Pure.
"""

from __future__ import annotations

import json
import re
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from coldstream.errors import HeaderError, IntegrityError
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
# A pointer of Git LFS, in place of a large file in a clone that was made without LFS, has 127 bytes and a few; with an
# extension, some 80 more.
POINTER_BYTES = range(110, 256)
POINTER_HINT = "fetch the files that the pointers name: git lfs pull; or download the model with: hf download"
_POINTER_START = b"version https://git-lfs.github.com/spec/v1\n"
_METADATA_KEY = "__metadata__"
_ENTRY_QUOTES = 10  # an entry has five strings: its name, three keys and the dtype
# Bits per element. Source: safetensors 0.8, `Dtype::bitsize`.
_DTYPES_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E4M3 F8_E4M3FNUZ F8_E5M2 F8_E5M2FNUZ F8_E8M0",
    16: "U16 I16 F16 BF16",
    32: "U32 I32 F32",
    64: "U64 I64 F64 C64",
}
DTYPE_BITS: Mapping[str, int] = {name: bits for bits, names in _DTYPES_BY_BITS.items() for name in names.split()}


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


def is_pointer(head: bytes | bytearray | memoryview, size: int) -> bool:
    """Whether a file of `size` bytes is a pointer of Git LFS, from at least its first 8 bytes."""
    return size in POINTER_BYTES and bytes(head[: len(_POINTER_START)]) == _POINTER_START[: len(head)]


def pointer_message(path: str) -> str:
    """What an error says of such a file."""
    return f"{path} is a Git LFS pointer, not the file that it names"


def header_stop(first_bytes: bytes | bytearray | memoryview, *, file_bytes: int, path: str) -> int:
    """Where the header ends and the data starts, from at least the first 8 bytes of the file."""
    if file_bytes < LENGTH_BYTES or len(first_bytes) < LENGTH_BYTES:
        raise HeaderError(f"{path} is not a safetensors file: it has {file_bytes} bytes, a header needs at least 8")
    if is_pointer(first_bytes, file_bytes):
        raise HeaderError(pointer_message(path), hint=POINTER_HINT)
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
    """Reads and checks a header from the file's first bytes, at least `header_stop` of them; more are ignored."""
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
    """Refuses a model of which two files of one rank hold the same tensor: one of them would count, by chance."""
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
    try:
        entries = _DECODER.decode(raw.decode())
        if type(entries) is not dict:
            raise HeaderError(f"{path}: the header is not a JSON object")
        # The reference implementation takes null for an absent map.
        stored = entries.pop(_METADATA_KEY, None)
        metadata = {} if stored is None else stored
        if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
            raise HeaderError(f"{path}: {_METADATA_KEY} must map strings to strings, got {reprlib.repr(metadata)}")
        # Of duplicate keys the last would count: one tensor would hide another. Duplicates make more quotes than an
        # entry's five strings and a pair for each string of the metadata; so do escapes and unknown keys, and only
        # then is the text read again.
        metadata_quotes = 2 + 4 * len(metadata) if _METADATA_KEY.encode() in raw else 0
        if raw.count(b'"') != _ENTRY_QUOTES * len(entries) + metadata_quotes:
            _check_keys(raw)
        "".join((*entries, *metadata, *metadata.values())).encode()  # refuses halves of surrogate pairs
    except (ValueError, RecursionError) as exc:
        raise HeaderError(f"{path}: the header is not valid JSON: {str(exc)[:120]}") from exc
    tensors = [_tensor(name, entry, data_start, path) for name, entry in entries.items()]
    tensors.sort(key=attrgetter("start", "stop"))
    return Header(data_start=data_start, tensors=tuple(tensors), metadata=metadata)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _check_keys(text: bytes) -> None:

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("duplicate key")

    json.loads(text, object_pairs_hook=check)


def _tensor(name: str, entry: Any, data_start: int, path: str) -> Tensor:
    """Checks one entry. Other keys are ignored, as the reference implementation does."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        is_valid = type(dtype) is str
        for count in (*shape, start, stop):
            # True and 1.0 are equal to 1; no file has more than a signed 64-bit integer holds.
            is_valid = is_valid and type(count) is int and 0 <= count < 1 << 63
    except (TypeError, KeyError, ValueError):
        is_valid = False
    if not is_valid:
        raise HeaderError(
            f"{path}: tensor {name[:80]!r} must have a dtype, a shape of sizes and two data_offsets, "
            f"got {reprlib.repr(entry)}"
        )
    bits = _bits(dtype, shape)
    if bits != (stop - start) * 8:
        where = f"{path}: tensor {name[:80]!r}"
        if dtype not in DTYPE_BITS:
            raise HeaderError(f"{where} has the unknown dtype {dtype[:20]!r}")
        needs = "more than any file has" if bits is None else f"{bits / 8:g}"
        raise HeaderError(f"{where} spans {stop - start} bytes, its shape and dtype {dtype} need {needs}")
    return Tensor(name, dtype, shape, data_start + start, data_start + stop)


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
