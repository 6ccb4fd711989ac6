"""Safetensors headers: what is refused, and that the real library agrees on what is not."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from safetensors.numpy import save_file

from coldstream.errors import HeaderError
from coldstream.model.header import DTYPE_BITS, HEADER_BYTES_MAX, Header, parse_header


def framed(content: object, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(start: int, stop: int, *, dtype: str = "U8", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def usual(*tensors: tuple[str, int, int]) -> bytes:
    """A header as the reference implementation writes it, of any tensors."""
    entries = (
        f'"{name}":{{"dtype":"U8","shape":[{stop - start}],"data_offsets":[{start},{stop}]}}'
        for name, start, stop in tensors
    )
    return ("{" + ",".join(entries) + "}").encode()


HOSTILE = {
    "empty file": (b"", "not a safetensors"),
    "seven bytes": (b"1234567", "not a safetensors"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", 'but text: it begins with "version'),
    "a web page": (b"<!DOCTYPE html><title>Sign in</title>", 'but text: it begins with "Sign in"'),
    "header past the end": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
    "not JSON": (framed(b"{nope"), "not valid JSON"),
    "a list": (framed([]), "not a JSON object"),
    "deep nesting": (framed(b"[" * 100_000), "not valid JSON"),
    "a name twice": (framed(b'{"a":' + json.dumps(tensor(0, 1)).encode() + b',"a":1}', b"x"), "duplicate key"),
    "metadata of numbers": (framed({"__metadata__": {"a": 1}}), "__metadata__"),
    "unknown dtype": (framed({"a": tensor(0, 1, dtype="F7")}, b"x"), "unknown dtype"),
    "negative size": (framed({"a": tensor(0, 1, shape=[-1])}, b"x"), "a shape .*, got .*shape': \\[-1\\]"),
    "true as a size": (
        framed({"a": tensor(0, 1, shape=[True])}, b"x"),
        "a shape .*, got .*shape': \\[True\\]",
    ),
    "one offset": (
        framed({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"x"),
        "data_offsets, got .*offsets': \\[0\\]",
    ),
    "reversed offsets": (framed({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}, b"x"), "spans -1"),
    "shape too large": (framed({"a": tensor(0, 1, shape=[2**40, 2**40])}, b"x"), "spans 1 bytes"),
    "a gap": (framed({"a": tensor(0, 1), "b": tensor(2, 3)}, b"xxx"), "leaves a gap"),
    "an overlap": (framed({"a": tensor(0, 2), "b": tensor(1, 3)}, b"xxx"), "overlaps"),
    "bytes after the last tensor": (framed({"a": tensor(0, 1)}, b"xx"), "the file has"),
    "deep nesting in a shape": (
        framed(b'{"a":{"dtype":"U8","shape":' + b"[" * 900 + b"]" * 900 + b',"data_offsets":[0,1]}}', b"x"),
        "a shape .*, got .*shape': \\[\\[",
    ),
    "a duplicate of the same bytes": (framed(usual(("a", 0, 1), ("a", 0, 1)), b"x"), "duplicate key"),
    "a duplicate without bytes": (framed(usual(("a", 0, 1), ("a", 1, 1)), b"x"), "duplicate key"),
    "a key of an entry twice": (
        framed(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "duplicate key",
    ),
    "metadata twice": (
        framed(b'{"__metadata__":{},"__metadata__":{},"a":' + json.dumps(tensor(0, 1)).encode() + b"}", b"x"),
        "duplicate key",
    ),
    "a tensor called __metadata__": (framed(usual(("__metadata__", 0, 1)), b"x"), "__metadata__"),
    "an overlap in the usual form": (framed(usual(("a", 0, 2), ("b", 1, 3)), b"xxx"), "overlaps"),
    "a gap in the usual form": (framed(usual(("a", 0, 1), ("b", 2, 3)), b"xxx"), "leaves a gap"),
    "floats as offsets": (
        framed({"a": tensor(0, 1) | {"data_offsets": [0.0, 1.0]}}, b"x"),
        "data_offsets, got .*offsets': \\[0.0, 1.0\\]",
    ),
    "floats as sizes": (
        framed({"a": tensor(0, 1, shape=[1.0])}, b"x"),
        "a shape .*, got .*shape': \\[1.0\\]",
    ),
    "negative offsets": (
        framed({"a": tensor(0, 1) | {"data_offsets": [-1, 0]}}, b"x"),
        "data_offsets, got .*offsets': \\[-1, 0\\]",
    ),
    "NaN": (framed(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"x"), "not valid JSON"),
    "infinity in the metadata": (framed(b'{"__metadata__":{"a":Infinity}}'), "not valid JSON"),
    "an offset of 64 bits": (
        framed({"a": tensor(0, 1) | {"data_offsets": [2**64, 2**64 + 1]}}, b"x"),
        "data_offsets, got .*offsets': \\[18446744073709551616,",
    ),
    "an offset of 63 bits": (
        framed(usual(("a", 0, 2**63))),
        "data_offsets, got .*offsets': \\[0, 9223372036854775808\\]",
    ),
    "a size of 64 bits": (
        framed({"a": tensor(0, 1, shape=[2**64])}, b"x"),
        "a shape .*, got .*shape': \\[18446744073709551616\\]",
    ),
    "an integer of 5000 digits": (
        framed(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"x"),
        "not valid JSON: Exceeds the limit|a shape of sizes",
    ),
    "a number with a leading zero": (
        framed(b'{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}', b"x"),
        "not valid JSON",
    ),
    "a product of 60,000 bits": (framed({"a": tensor(0, 1, shape=[2**60] * 1000)}, b"x"), "spans 1 bytes"),
    "a product that overflows before a zero": (framed({"a": tensor(0, 0, shape=[2**60, 2**60, 0])}), "spans 0 bytes"),
    "half a byte": (framed({"a": tensor(0, 1, dtype="F4", shape=[3])}, b"x"), "need 1.5"),
    "no comma": (framed(usual(("a", 0, 1), ("b", 1, 2)).replace(b'},"b', b'}"b'), b"xx"), "not valid JSON"),
    "two commas": (framed(usual(("a", 0, 1), ("b", 1, 2)).replace(b'},"b', b'},,"b'), b"xx"), "not valid JSON"),
    "a comma at the end": (framed(usual(("a", 0, 1))[:-1] + b",}", b"x"), "not valid JSON"),
    "text behind the header": (framed(usual(("a", 0, 1)) + b"x", b"x"), "not valid JSON"),
    "text between the tensors": (
        framed(usual(("a", 0, 1), ("b", 1, 2)).replace(b'},"b', b'},"x":1,"b'), b"xx"),
        "tensor 'x' must have a dtype, a shape of sizes and two data_offsets, got 1$",
    ),
    "a control character in a name": (framed(usual(("a\n", 0, 1)), b"x"), "not valid JSON"),
    "no UTF-8": (framed(usual(("a", 0, 1)).replace(b'"a"', b'"\xff"'), b"x"), "not valid JSON"),
    "a byte order mark": (framed(b"\xef\xbb\xbf" + usual(("a", 0, 1)), b"x"), "not valid JSON"),
    "UTF-16": (framed(usual(("a", 0, 1)).decode().encode("utf-16"), b"x"), "not valid JSON"),
    "UTF-16 without a mark": (framed(usual(("a", 0, 1)).decode().encode("utf-16-le"), b"x"), "not valid JSON"),
    "UTF-32": (framed(usual(("a", 0, 1)).decode().encode("utf-32-be"), b"x"), "not valid JSON"),
    "half a surrogate pair": (framed(usual((r"\ud800", 0, 1)), b"x"), "surrogates not allowed"),
    "half a surrogate pair in UTF-8": (
        framed(usual(("a", 0, 1)).replace(b"a", b"\xed\xa0\x80"), b"x"),
        "not valid JSON",
    ),
    "half a surrogate pair in the metadata": (framed({"__metadata__": {"a": "\udc00"}}), "surrogates not allowed"),
    "a length above the limit": ((HEADER_BYTES_MAX + 1).to_bytes(8, "little") + b"{}", "header claims"),
    "a tensor past the end": (framed({"a": tensor(0, 5)}, b"x"), "the file has"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(name: str) -> None:
    data, said = HOSTILE[name]
    with pytest.raises(HeaderError, match=said) as caught:
        parse_header(data, file_bytes=len(data), path="x.safetensors")
    assert caught.value.exit_code == 13


def test_what_the_real_library_writes_is_read_alike(tmp_path: Path) -> None:
    arrays = {
        "scalar": np.array(3, dtype=np.float32),
        "empty": np.zeros((0, 4), np.int16),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "bytes": np.arange(7, dtype=np.uint8),
        "wide": np.arange(5, dtype=np.int64),
    }
    path = tmp_path / "m.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    data = path.read_bytes()
    header = parse_header(data, file_bytes=len(data), path="m.safetensors")
    assert header.metadata == {"format": "np"}
    with safe_open(path, "np") as opened:
        assert {t.name for t in header.tensors} == set(opened.keys())
        for found in header.tensors:
            expected = opened.get_tensor(found.name)
            assert found.shape == expected.shape
            assert data[found.start : found.stop] == expected.tobytes()


@pytest.mark.parametrize(("note", "readings"), [("plain", 1), ('with "quotes"', 2)])
def test_what_the_real_library_writes_is_decoded_once(
    note: str, readings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {"ü.weight": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.int8), "c": np.array(1.0)}
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "pt", "note": note})
    data = (tmp_path / "m.safetensors").read_bytes()
    again: list[bytes] = []
    monkeypatch.setattr("coldstream.model.header._check_keys", again.append)
    header = parse_header(data, file_bytes=len(data), path="x")
    assert len(again) == readings - 1
    assert header.metadata == {"format": "pt", "note": note}
    assert {t.name: t.shape for t in header.tensors} == {name: array.shape for name, array in arrays.items()}


@pytest.mark.parametrize("entries", [b'"a":%s', b'"a":%s,"b":%s', b""])
def test_null_as_metadata_is_read_like_the_real_library_does(entries: bytes) -> None:
    count = entries.count(b"%s")
    tensors = tuple(json.dumps(tensor(index, index + 1)).encode() for index in range(count))
    comma = b"," if count else b""
    for text in (
        b'{"__metadata__":null' + comma + entries % tensors + b"}",
        b"{" + entries % tensors + comma + b'"__metadata__":null}',
    ):
        data = framed(text, b"x" * count)
        header = parse_header(data, file_bytes=len(data), path="x")
        assert header.metadata == {}
        assert [t.name for t in header.tensors] == sorted(name for name, _ in deserialize(data))
        packed = framed(text.replace(b" ", b""), b"x" * count)
        assert [t.shape for t in parse_header(packed, file_bytes=len(packed), path="x").tensors] == [(1,)] * count


@pytest.mark.parametrize("filler", [b"{},", b"[],", b"1,", b'"",', b'"":"",'])
def test_a_header_that_would_take_gigabytes_is_refused_before_it_is_parsed(
    filler: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coldstream.model.header._decode", None)
    text = b'{"a":[' + filler * 8_000_001 + b"]}"
    data = framed(text)
    with pytest.raises(HeaderError, match="more values"):
        parse_header(data, file_bytes=len(data), path="x")


def outcome(data: bytes) -> Header | str:
    try:
        return parse_header(data, file_bytes=len(data), path="x")
    except HeaderError as exc:
        return str(exc)


def with_unknown_keys(text: bytes) -> bytes:
    """The same header with an unknown key, so that it is read again for duplicate keys."""
    return text.replace(b'{"dtype"', b'{"x\\u0020":{},"dtype"')


names = st.text(st.characters(min_codepoint=1, max_codepoint=300), max_size=4) | st.sampled_from(["a", "__metadata__"])
tensors = st.lists(
    st.tuples(names, st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 9), max_size=3)), max_size=5
)


@given(
    tensors,
    st.none() | st.dictionaries(names, names, max_size=2),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from(b'{}[],:"\\ 019aU_.-eN\x00\xff')), max_size=2),
    st.integers(0, 3),
)
def test_headers_with_unknown_keys_are_read_alike(
    written: list[tuple[str, str, list[int]]],
    metadata: dict[str, str] | None,
    edits: list[tuple[int, int]],
    blanks: int,
) -> None:
    position = 0
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    for name, dtype, shape in written:
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = bytearray(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode() + b" " * blanks)
    for at, byte in edits:
        text[at % len(text)] = byte
    data = b"x" * position
    quick, general = outcome(framed(bytes(text), data)), outcome(framed(with_unknown_keys(bytes(text)), data))
    if isinstance(quick, str) or isinstance(general, str):
        assert isinstance(quick, str)
        assert isinstance(general, str)
        return
    assert quick.metadata == general.metadata
    assert places(quick) == places(general)
    # The reference implementation accepts it too, and finds the same tensors.
    assert sorted(t.name for t in quick.tensors) == sorted(name for name, _ in deserialize(framed(bytes(text), data)))


def places(header: Header) -> list[tuple[object, ...]]:
    first = header.data_start
    return [(t.name, t.dtype, t.shape, t.start - first, t.stop - first) for t in header.tensors]
