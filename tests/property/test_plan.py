"""Cutting files into chunks and parts, and hashing them in any order."""

from __future__ import annotations

import hashlib
import json
import random
from contextlib import suppress
from itertools import pairwise

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import HeaderError, ManifestError
from coldstream.mirror.digest import OrderedDigest, StreamDigest
from coldstream.model.chunks import PARTS_MAX, extents, part_bytes_for, part_count, parts, segment_stops, tensor_stops
from coldstream.model.header import Header, parse_header
from coldstream.model.manifest import parse, serialize

sizes = st.lists(st.integers(0, 300), max_size=30)


def file_of(tensor_sizes: list[int]) -> bytes:
    header = {}
    position = 0
    for number, size in enumerate(tensor_sizes):
        header[f"t{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + random.Random(0).randbytes(position)


@given(sizes)
def test_chunks_cover_the_file_and_respect_tensors(tensor_sizes: list[int]) -> None:
    data = file_of(tensor_sizes)
    header = parse_header(data, file_bytes=len(data), path="x")
    stops = tensor_stops(header, chunk_bytes=100)
    starts = [0, *stops[:-1]]
    assert stops[-1] == len(data)
    assert all(0 < stop - start <= 100 for start, stop in zip(starts, stops, strict=True))
    for tensor in header.tensors:
        inside = [stop for stop in stops if tensor.start < stop < tensor.stop]
        if inside:
            assert tensor.stop - tensor.start > 100
            assert {tensor.start, tensor.stop} <= set(stops)


@given(sizes, st.sets(st.integers(1, 12_000)), st.booleans())
def test_extents_hold_tensors_whole_and_are_minimal(tensor_sizes: list[int], cuts: set[int], ours: bool) -> None:
    data = file_of(tensor_sizes)
    header = parse_header(data, file_bytes=len(data), path="x")
    stops = tensor_stops(header, chunk_bytes=100) if ours else sorted({c for c in cuts if c < len(data)} | {len(data)})
    starts = [0, *stops[:-1]]
    runs = extents(header, stops)
    chunks = [index for first, stop in runs for index in range(first, stop)]
    # In order, without gaps: all chunks but those of the header alone.
    assert all(first < stop for first, stop in runs)
    assert chunks == [index for index, stop in enumerate(stops) if stop > header.data_start]
    spans = [(starts[first], stops[stop - 1]) for first, stop in runs]
    for tensor in header.tensors:
        if tensor.stop > tensor.start:
            assert sum(start <= tensor.start and tensor.stop <= stop for start, stop in spans) == 1
            assert sum(start < tensor.stop and tensor.start < stop for start, stop in spans) == 1
    # Minimal: every cut within a run goes through a tensor.
    for first, stop in runs:
        for cut in stops[first : stop - 1]:
            assert cut <= header.data_start or any(tensor.start < cut < tensor.stop for tensor in header.tensors)


def parsed(tensors: dict[str, int]) -> Header:
    """The header of a file with these tensors, which is as long as any other's: changed sizes move no byte else."""
    header = {}
    position = 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode().ljust(200_000)
    data = len(text).to_bytes(8, "little") + text
    return parse_header(data, file_bytes=len(data) + position, path="x")


def contents(header: Header, bytes_max: int) -> list[tuple[tuple[str, int, int], ...]]:
    """The segments behind the header, as what of which tensor each holds: equal contents, equal bytes."""
    stops = segment_stops(header, tensor_stops(header, chunk_bytes=min(100, bytes_max)), bytes_max)
    starts = [0, *stops[:-1]]
    return [
        tuple(
            (tensor.name, max(start, tensor.start) - tensor.start, min(stop, tensor.stop) - tensor.start)
            for tensor in header.tensors
            if tensor.start < stop and start < tensor.stop
        )
        for start, stop in zip(starts, stops, strict=True)
        if start >= header.data_start
    ]


@given(sizes, st.integers(1, 2000))
def test_segments_cover_the_file_and_end_where_chunks_do(tensor_sizes: list[int], bytes_max: int) -> None:
    data = file_of(tensor_sizes)
    header = parse_header(data, file_bytes=len(data), path="x")
    chunks = tensor_stops(header, chunk_bytes=min(100, bytes_max))
    stops = segment_stops(header, chunks, bytes_max)
    assert stops[-1] == len(data)
    assert header.data_start in stops
    assert set(stops) <= set(chunks)
    assert all(0 < stop - start <= bytes_max for start, stop in pairwise((0, *stops)))
    for tensor in header.tensors:
        if any(tensor.start < stop < tensor.stop for stop in stops):
            assert tensor.stop - tensor.start > bytes_max
            assert {tensor.start, tensor.stop} <= set(stops)


@given(sizes, st.integers(100, 2000), st.data())
def test_a_tensor_of_other_bytes_changes_the_segments_it_lies_in_alone(
    tensor_sizes: list[int], bytes_max: int, draw: st.DataObject
) -> None:
    tensors = {f"t{number}": size for number, size in enumerate(tensor_sizes) if size}
    found = contents(parsed(tensors), bytes_max)
    if tensors:
        changed = draw.draw(st.sampled_from(sorted(tensors)))
        touched = sum(any(name == changed for name, _, _ in segment) for segment in found)
        assert touched == 1 or (touched > 1 and tensors[changed] > bytes_max)


def test_few_segments_change_when_a_tensor_comes_goes_or_grows() -> None:
    """The rest of the cut does not depend on where a tensor lies: the edges after a change are those before it."""
    rng = random.Random(20261124)
    shares = []
    for _ in range(200):
        tensors = {f"layers.{number}.weight": rng.choice((7, 90, 400, 400, 1100)) for number in range(120)}
        old = contents(parsed(tensors), 3000)
        place = rng.randrange(120)
        change = rng.choice(("comes", "goes", "grows"))
        items = list(tensors.items())
        if change == "comes":
            items.insert(place, ("new.weight", 400))
        elif change == "goes":
            del items[place]
        else:
            items[place] = (items[place][0], items[place][1] + 50)
        new = contents(parsed(dict(items)), 3000)
        shares.append((len(set(new) - set(old)), len(new)))
    assert max(changed for changed, _ in shares) <= 8
    assert sum(changed for changed, _ in shares) <= 2 * len(shares)
    assert min(count for _, count in shares) >= 15


@given(st.integers(0, 5 << 40))
def test_parts_are_equal_and_few(size: int) -> None:
    part_bytes = part_bytes_for(size)
    assert part_count(size, part_bytes) <= PARTS_MAX
    if size < 1 << 34:
        cut = list(parts(size, part_bytes))
        assert cut[0][0] == 0
        assert cut[-1][1] == size
        assert {stop - start for start, stop in cut[:-1]} <= {part_bytes}
        assert len(cut) == part_count(size, part_bytes)


@given(sizes, st.integers(1, 500), st.randoms())
def test_hashes_do_not_depend_on_the_order_of_parts(tensor_sizes: list[int], part: int, rng: random.Random) -> None:
    data = file_of(tensor_sizes)
    digest = OrderedDigest(StreamDigest("x.safetensors", len(data), git=True))
    cut = list(enumerate(parts(len(data), part)))
    rng.shuffle(cut)
    hashed: list[int] = []
    for index, (start, stop) in cut:
        digest.offer(index, memoryview(data)[start:stop], lambda index=index: hashed.append(index))  # type: ignore[misc]
    found = digest.finish()
    assert hashed == list(range(len(cut)))
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.git_blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    for start, stop, xxh3 in found.chunks.ranges():
        assert xxh3 == xxhash.xxh3_128_hexdigest(data[start:stop])


@given(st.binary(max_size=400))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    for framed in (data, len(data).to_bytes(8, "little") + data):
        with suppress(HeaderError):
            header = parse_header(framed, file_bytes=len(framed), path="x")
            assert header.data_start <= len(framed)
    with suppress(ManifestError):
        record = parse(data, where="x")
        assert parse(serialize(record), where="x") == record
