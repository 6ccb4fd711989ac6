"""Safetensors headers: what is refused, and that the real library agrees on what is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from coldstream.errors import HeaderError
from coldstream.header import parse_header


def framed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(start: int, stop: int, *, dtype: str = "U8", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


HOSTILE = {
    "empty file": (b"", "no safetensors"),
    "seven bytes": (b"1234567", "no safetensors"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "header claims"),
    "header past the end": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
    "not JSON": (framed(b"{nope"), "not valid JSON"),
    "a list": (framed([]), "no JSON object"),
    "deep nesting": (framed(b"[" * 100_000), "not valid JSON"),
    "a name twice": (framed(b'{"a":' + json.dumps(tensor(0, 1)).encode() + b',"a":1}', b"x"), "twice"),
    "metadata of numbers": (framed({"__metadata__": {"a": 1}}), "__metadata__"),
    "unknown dtype": (framed({"a": tensor(0, 1, dtype="F7")}, b"x"), "unknown dtype"),
    "negative size": (framed({"a": tensor(0, 1, shape=[-1])}, b"x"), "no list of sizes"),
    "true as a size": (framed({"a": tensor(0, 1, shape=[True])}, b"x"), "no list of sizes"),
    "one offset": (framed({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"x"), "no \\[start, stop\\]"),
    "reversed offsets": (framed({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}, b"x"), "spans -1"),
    "shape too large": (framed({"a": tensor(0, 1, shape=[2**40, 2**40])}, b"x"), "spans 1 bytes"),
    "a hole": (framed({"a": tensor(0, 1), "b": tensor(2, 3)}, b"xxx"), "leaves a hole"),
    "an overlap": (framed({"a": tensor(0, 2), "b": tensor(1, 3)}, b"xxx"), "overlaps"),
    "bytes after the last tensor": (framed({"a": tensor(0, 1)}, b"xx"), "the file has"),
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
