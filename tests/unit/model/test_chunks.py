"""How files are cut, by small examples; tests/property/test_plan.py has the laws."""

from __future__ import annotations

import pytest

from coldstream.errors import UsageError
from coldstream.model.chunks import (
    OBJECT_BYTES_MAX,
    PART_BYTES,
    PARTS_MAX,
    even_stops,
    extents,
    part_bytes_for,
    part_count,
    parts,
    segment_stops,
    tensor_stops,
)
from coldstream.model.header import Header, Tensor
from coldstream.units import MIB


def header(*sizes: int, start: int = 10) -> Header:
    """A header of `start` bytes, and tensors of these sizes behind it."""
    tensors = []
    position = start
    for number, size in enumerate(sizes):
        tensors.append(Tensor(f"t{number}", "U8", (size,), position, position + size))
        position += size
    return Header(data_start=start, tensors=tuple(tensors), metadata={})


def test_parts_are_as_preferred_while_ten_thousand_suffice() -> None:
    assert part_bytes_for(0) == part_bytes_for(PART_BYTES * PARTS_MAX) == PART_BYTES
    assert part_bytes_for(PART_BYTES * PARTS_MAX + 1) == PART_BYTES + MIB
    assert part_bytes_for(100, preferred=7) == MIB


def test_a_file_larger_than_an_object_may_be_is_refused() -> None:
    assert part_count(OBJECT_BYTES_MAX, part_bytes_for(OBJECT_BYTES_MAX)) <= PARTS_MAX
    with pytest.raises(UsageError, match="an object holds 5"):
        part_bytes_for(OBJECT_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, [(0, 0)]), (4, [(0, 4)]), (9, [(0, 4), (4, 8), (8, 9)]), (8, [(0, 4), (4, 8)])]
)
def test_parts_cover_a_file(size: int, expected: list[tuple[int, int]]) -> None:
    assert list(parts(size, 4)) == expected
    assert part_count(size, 4) == len(expected)


def test_pieces_are_even() -> None:
    assert even_stops(5, 5, 10) == []
    assert even_stops(0, 10, 10) == [10]
    assert even_stops(0, 11, 10) == [5, 11]
    assert even_stops(100, 130, 10) == [110, 120, 130]


def test_small_tensors_share_a_chunk_and_a_large_one_shares_none() -> None:
    assert tensor_stops(header(3, 3, 3), chunk_bytes=10) == [10, 19]
    assert tensor_stops(header(6, 6, 6), chunk_bytes=10) == [10, 16, 22, 28]
    assert tensor_stops(header(3, 25, 3), chunk_bytes=10) == [10, 13, 21, 29, 38, 41]
    assert tensor_stops(header(start=25), chunk_bytes=10) == [8, 16, 25]


def test_the_header_and_a_tensor_larger_than_a_segment_are_segments_of_their_own() -> None:
    file = header(8, 25, 8)
    stops = tensor_stops(file, chunk_bytes=10)
    assert stops == [10, 18, 26, 34, 43, 51]
    assert segment_stops(file, stops, 20) == [10, 18, 26, 43, 51]


def test_segments_do_not_depend_on_what_is_far_away() -> None:
    sizes = [10] * 60
    before, after = header(*sizes), header(30, *sizes)

    def edges(file: Header) -> set[str]:
        stops = set(segment_stops(file, tensor_stops(file, chunk_bytes=10), 40))
        last = [tensor for tensor in file.tensors if tensor.stop in stops]
        return {f"{tensor.start - file.tensors[-1].stop}" for tensor in last}

    renamed = [Tensor(f"t{n - 1}", t.dtype, t.shape, t.start, t.stop) for n, t in enumerate(after.tensors)]
    moved = Header(data_start=10, tensors=tuple(renamed), metadata={})
    late = {edge for edge in edges(before) if int(edge) > -400}
    assert late
    assert late <= edges(moved)


def test_an_extent_is_what_a_tensor_needs_in_one_piece() -> None:
    file = header(3, 25, 3)
    stops = tensor_stops(file, chunk_bytes=10)
    assert extents(file, stops) == [(1, 2), (2, 5), (5, 6)]
    assert extents(file, [41]) == [(0, 1)]
    assert extents(header(), [10]) == []
