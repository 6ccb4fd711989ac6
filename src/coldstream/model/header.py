"""Safetensors headers, checked before anything in them is believed.

The format: 8 bytes of little-endian length `n`, `n` bytes of JSON, then the data. The JSON maps each tensor's name to
`{"dtype", "shape", "data_offsets": [start, stop]}`, offsets counted from the first data byte, half-open; the key
`__metadata__` maps strings to strings. Tensors cover the data completely, without holes and without overlap.
Source: the format's specification in the safetensors repository. Pure.
"""

from __future__ import annotations

import json
import re
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

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
# Sizes and offsets stay below this: what a signed 64-bit integer holds.
_COUNT_MAX = 1 << 63

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
            f"{path} is no safetensors file: its header claims {length} bytes, {HEADER_BYTES_MAX} are allowed",
            hint="the file may be a pickle under a wrong name",
        )
    if LENGTH_BYTES + length > file_bytes:
        raise HeaderError(f"{path} is truncated: its header ends at byte {LENGTH_BYTES + length} of {file_bytes}")
    return LENGTH_BYTES + length


def _text(data: bytes) -> str:
    """How a file begins that is text; empty for any other."""
    begins = data[:32].decode("ascii", "replace")
    return first_words(data) if all((c.isprintable() and c != "\ufffd") or c.isspace() for c in begins) else ""


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
    raw = bytes(head[LENGTH_BYTES:data_start])
    if has_too_many_values(raw):
        raise HeaderError(f"{path}: the header's {len(raw)} bytes hold more values than any checkpoint has")
    header = _read_usual(raw, data_start) or _read_any(raw, data_start, path)
    position = data_start
    for tensor in header.tensors:
        if tensor.start != position:
            kind = "overlaps another tensor" if tensor.start < position else "leaves a hole before it"
            raise HeaderError(f"{path}: tensor {tensor.name[:80]!r} starts at {tensor.start}, {kind} at {position}")
        position = tensor.stop
    if position != file_bytes:
        raise HeaderError(f"{path}: the tensors end at byte {position}, the file has {file_bytes}")
    return header


def has_too_many_values(text: bytes) -> bool:
    """Whether JSON would take gigabytes of memory, whatever it says; no checkpoint's header or index does."""
    return len(text) > _MARKS_MAX < sum(map(text.count, (b",", b'"', b"{", b"[")))


def rank_of(path: str) -> str | None:
    """The rank whose part of a tensor-parallel model a file holds; None of a file for all ranks."""
    match = _RANK_PART.fullmatch(path)
    return match[1] if match else None


def check_twins(headers: Mapping[str, Header], *, where: str) -> None:
    """No tensor is in two of a model's files: which of them would count is left to chance.

    Each rank has tensors of its own under the same names.

    Args:
        headers: By path.
        where: The model, for messages.

    Raises:
        IntegrityError: One is.
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


def _read_any(raw: bytes, data_start: int, path: str) -> Header:
    """Any JSON, each of its entries checked by itself."""
    try:
        # Decoded here: json.loads would take UTF-16 and a byte order mark too.
        entries = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as exc:
        raise HeaderError(f"{path}: the header is not valid JSON: {str(exc)[:120]}") from exc
    if not isinstance(entries, dict):
        raise HeaderError(f"{path}: the header is no JSON object")
    metadata = _metadata(entries.pop("__metadata__", None))
    if not _is_metadata(metadata):
        raise HeaderError(f"{path}: __metadata__ is no map of strings")
    tensors = [_tensor(name, entry, data_start, path) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    return Header(data_start=data_start, tensors=tuple(tensors), metadata=metadata)


def _tensor(name: str, entry: object, data_start: int, path: str) -> Tensor:
    where = f"{path}: tensor {name[:80]!r}"
    if not _is_unicode(name):
        raise HeaderError(f"{where}: the name is not valid Unicode")
    if not isinstance(entry, dict):
        raise HeaderError(f"{where} is no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"{where} has the unknown dtype {reprlib.repr(dtype)}")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise HeaderError(f"{where} has the shape {reprlib.repr(shape)}, which is no list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise HeaderError(f"{where} has the offsets {reprlib.repr(offsets)}, which are no [start, stop]")
    start, stop = offsets
    bits = _bits(dtype, shape)
    if bits != (stop - start) * 8:
        needs = "more than any file has" if bits is None else f"{bits / 8:g}"
        raise HeaderError(f"{where} spans {stop - start} bytes, its shape and dtype {dtype} need {needs}")
    return Tensor(name, dtype, tuple(shape), data_start + start, data_start + stop)


# An entry as the reference implementation writes it: no blanks, no escapes, the keys in this order; then a comma and
# the next one, or the brace at the end. Only single characters are repeated: the time is that of the text's length.
_ENTRY = re.compile(
    r'"([^"\\\x00-\x1f]*)":\{"dtype":"([A-Z0-9_]+)","shape":\[([0-9,]*)\],'
    r'"data_offsets":\[(0|[1-9][0-9]{0,18}),(0|[1-9][0-9]{0,18})\]\}(?:,(?=")|\}\Z)'
)
_ENTRY_FIXED = len('"":{"dtype":"","shape":[],"data_offsets":[,]},')
_METADATA_KEY = '{"__metadata__":'
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


def _read_usual(raw: bytes, data_start: int) -> Header | None:
    """The same as `_read_any` in a third of the time, for what the reference implementation writes.

    Models of many experts have tens of thousands of tensors. What is unusual or wrong in any way gives None, and then
    `_read_any` accepts it or says what is wrong.
    """
    try:
        text = raw.decode().rstrip(" ")
        metadata: Any = {}
        position = 1
        if text.startswith(_METADATA_KEY):
            value, stop = _DECODER.raw_decode(text, len(_METADATA_KEY))
            metadata = _metadata(value)
            position = stop + 1 if text.startswith(",", stop) else len(text)
    except (ValueError, RecursionError):
        return None
    if not text.startswith("{") or not _ENTRY.match(text, position) or not _is_metadata(metadata):
        return None
    rows = _ENTRY.findall(text, position)
    # Matches do not overlap: when their lengths add up to that of the text, nothing lies between them.
    if sum(map(len, chain.from_iterable(rows))) + _ENTRY_FIXED * len(rows) != len(text) - position:
        return None
    names = {row[0] for row in rows}
    if len(names) != len(rows) or "__metadata__" in names:
        return None
    forms = {form: _form(*form) for form in {row[1:3] for row in rows}}
    tensors = []
    position = 0
    for name, dtype, shape, first, last in rows:
        form, start, stop = forms[dtype, shape], int(first), int(last)
        if form is None or start != position or stop - start != form[2] or stop >= _COUNT_MAX:
            return None
        tensors.append(Tensor(name, form[0], form[1], data_start + start, data_start + stop))
        position = stop
    return Header(data_start=data_start, tensors=tuple(tensors), metadata=metadata)


def _form(dtype: str, sizes: str) -> tuple[str, tuple[int, ...], int] | None:
    """(dtype, shape, bytes) of the tensors with this text in their entries, or None when something is wrong with it."""
    texts = sizes.split(",") if sizes else []
    if dtype not in DTYPE_BITS or not all(_SIZE.fullmatch(text) for text in texts):
        return None
    shape = tuple(map(int, texts))
    bits = _bits(dtype, shape)
    return None if bits is None or bits % 8 or not all(map(_is_count, shape)) else (dtype, shape, bits // 8)


def _bits(dtype: str, shape: Sequence[int]) -> int | None:
    """What a tensor needs; None for more than any file has, before a hostile product grows."""
    count = 1
    for size in shape:
        count *= size
        if count >= _COUNT_MAX:
            return None
    return count * DTYPE_BITS[dtype]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice: two tensors of one name would hide one of them."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)


def _metadata(value: Any) -> Any:
    # The reference implementation takes null for an absent map.
    return {} if value is None else value


def _is_metadata(value: object) -> bool:
    texts = [*value, *value.values()] if isinstance(value, dict) else [None]
    return all(isinstance(text, str) and _is_unicode(text) for text in texts)


def _is_unicode(text: str) -> bool:
    """Whether it can be encoded: JSON escapes may name half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_count(value: object) -> bool:
    # bool is an int in Python; in a header `true` is no size.
    return type(value) is int and 0 <= value < _COUNT_MAX
