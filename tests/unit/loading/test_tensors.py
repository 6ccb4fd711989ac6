from __future__ import annotations

import ctypes

import pytest
import torch

from coldstream.engine.attach import Extent
from coldstream.errors import UsageError
from coldstream.loading.tensors import TORCH_DTYPES, Layout, TensorReader, TypedBuffer, make_buffer, torch_maker
from coldstream.model.chunks import extents, tensor_stops
from coldstream.model.header import Header, Tensor, parse_header
from tests.checkpoints import checkpoint_bytes, layered, raw_bytes


def extent_of(number: int, start: int, content: bytes) -> Extent:
    memory = (ctypes.c_ubyte * len(content)).from_buffer(bytearray(content))
    return Extent(number, 0, start, start + len(content), memory)


def planned(content: bytes) -> tuple[Header, list[tuple[int, int, int]]]:
    header = parse_header(content, file_bytes=len(content), path="a.safetensors")
    stops = tensor_stops(header, chunk_bytes=64 << 10)
    bounds = [0, *stops]
    return header, [(0, bounds[first], bounds[stop]) for first, stop in extents(header, stops)]


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_every_tensor_comes_out_once_with_its_bytes(pad: int) -> None:
    content = checkpoint_bytes(layered(layers=3, rows=64, columns=128), pad=pad)
    header, runs = planned(content)
    layout = Layout([header], runs)
    expected = {tensor.name: content[tensor.start : tensor.stop] for tensor in header.tensors}
    for maker in (make_buffer, torch_maker()):
        found = {tensor.name: raw_bytes(maker(tensor, bytearray(), 0)) for tensor in layout.empty}
        for number, (_, start, stop) in enumerate(runs):
            for name, made in TensorReader(layout, maker).make(extent_of(number, start, content[start:stop])):
                assert name not in found
                found[name] = raw_bytes(made)
        assert found == expected


def test_tensors_of_extents_that_are_left_out_are_too() -> None:
    content = checkpoint_bytes(layered(layers=3, rows=64, columns=128))
    header, runs = planned(content)
    both = [*runs, *((1, start, stop) for _, start, stop in runs)]
    whole, count = Layout([header, header], both), len(runs)
    for first in range(2 * count + 1):
        rest = Layout([header, header], both[first:])
        assert [rest.tensors(number) for number in range(2 * count - first)] == [
            whole.tensors(number) for number in range(first, 2 * count)
        ]


def test_a_view_keeps_the_memory_and_the_last_one_lets_go() -> None:
    import weakref

    content = bytes(range(64))
    extent = extent_of(0, 0, content)
    gone: list[int] = []
    watch = weakref.ref(extent.memory, lambda _: gone.append(1))
    tensors = [Tensor("a", "F32", (4,), 0, 16), Tensor("b", "U8", (48,), 16, 64)]
    layout = Layout([Header(data_start=0, tensors=tuple(tensors), metadata={})], [(0, 0, 64)])
    made = dict(TensorReader(layout, torch_maker()).make(extent))
    buffers = dict(TensorReader(layout, make_buffer).make(extent))
    del extent
    view = made["a"].view(2, 2)[1]
    piece = buffers["b"].data[3:5]
    del made, buffers
    assert watch() is not None
    assert bytes(piece) == content[19:21]
    del piece
    assert not gone
    assert raw_bytes(view) == content[8:16]
    del view
    assert gone == [1]


def test_every_dtype_that_torch_has_is_known() -> None:
    for name, attribute in TORCH_DTYPES.items():
        assert isinstance(getattr(torch, attribute), torch.dtype), name


def test_a_dtype_without_a_torch_one_names_the_way_out() -> None:
    with pytest.raises(UsageError, match="F6_E2M3") as caught:
        torch_maker()(Tensor("odd", "F6_E2M3", (4,), 0, 3), bytearray(3), 0)
    assert "buffer" in (caught.value.hint or "")
    made = make_buffer(Tensor("odd", "F6_E2M3", (4,), 0, 3), bytearray(b"abc"), 0)
    assert isinstance(made, TypedBuffer)
    assert bytes(made.data) == b"abc"


def test_two_halves_of_a_byte() -> None:
    made = torch_maker()(Tensor("four", "F4", (2, 8), 0, 8), bytearray(range(8)), 0)
    assert made.shape == (2, 4)
    assert made.dtype is torch.float4_e2m1fn_x2
