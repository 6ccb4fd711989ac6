"""How a file is cut: into parts to store it, into chunks to verify and stream it. Pure.

Parts are what a multipart upload sends: equal, large, blind to the content. Chunks are what a load fetches and
checks: about 8 MiB, cut on the edges of tensors, so that a tensor is made of whole chunks and small tensors share one.
Both are half-open byte ranges that cover `[0, size)` in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coldstream.errors import UsageError
from coldstream.header import Header
from coldstream.units import GIB, MIB, TIB, format_bytes

# 8 MiB is the smallest read that reached full speed on S3 (AWS and several loaders use it too).
CHUNK_BYTES = 8 * MIB

PART_BYTES = 64 * MIB
# R2 and S3: at most 10,000 parts, each 5 MiB to 5 GiB (R2: 5 MiB less), all but the last equal on R2; objects up to
# 5 TiB (docs r2/platform/limits, r2/objects/multipart-objects).
PARTS_MAX = 10_000
PART_BYTES_MIN = 5 * MIB
PART_BYTES_MAX = 5 * GIB - 5 * MIB
OBJECT_BYTES_MAX = 5 * TIB


def part_bytes_for(file_bytes: int, *, wanted: int = PART_BYTES) -> int:
    """The part size for a file: `wanted`, or the next MiB that keeps it within 10,000 parts.

    Raises:
        UsageError: The file is larger than an object may be.
    """
    if file_bytes > OBJECT_BYTES_MAX:
        raise UsageError(
            f"a file of {format_bytes(file_bytes)} does not fit: an object holds {format_bytes(OBJECT_BYTES_MAX)}"
        )
    needed = -(-file_bytes // PARTS_MAX)
    return max(wanted, -(-needed // MIB) * MIB)


def parts(file_bytes: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """The parts of a file as `[start, stop)`; one empty part for an empty file."""
    for start in range(0, max(file_bytes, 1), part_bytes):
        yield start, min(start + part_bytes, file_bytes)


def part_count(file_bytes: int, part_bytes: int) -> int:
    """How many parts `parts` yields."""
    return max(1, -(-file_bytes // part_bytes))


def even_stops(start: int, stop: int, piece_bytes: int = CHUNK_BYTES) -> list[int]:
    """The stops that cut `[start, stop)` into as few even pieces as keep each within `piece_bytes`.

    Empty for an empty range; the last stop is `stop`.
    """
    size = stop - start
    count = -(-size // piece_bytes)
    return [start + size * (index + 1) // count for index in range(count)]


def tensor_stops(header: Header, *, chunk_bytes: int = CHUNK_BYTES) -> list[int]:
    """The chunk stops of a safetensors file.

    The header is cut by itself. Consecutive small tensors share a chunk while they fit; a tensor larger than a chunk
    is split evenly and shares with nobody; no chunk straddles an edge of a tensor otherwise.
    """
    stops = even_stops(0, header.data_start, chunk_bytes)
    open_start = header.data_start  # where the chunk that is being filled starts
    position = header.data_start
    for tensor in header.tensors:
        if tensor.stop - open_start > chunk_bytes and position > open_start:
            stops.append(position)
            open_start = position
        position = tensor.stop
        if position - open_start > chunk_bytes:
            stops.extend(even_stops(open_start, position, chunk_bytes))
            open_start = position
    if position > open_start:
        stops.append(position)
    return stops


def extents(header: Header, stops: Sequence[int]) -> list[tuple[int, int]]:
    """The runs `[first, stop)` of chunks that have to lie in one piece of memory, so that every tensor does.

    They are as short as the cut allows and follow each other without a gap; chunks of the header alone are in none. A
    chunk of both, which other tools may cut, is in the first one.

    Args:
        header: The file's.
        stops: Of the chunks of the whole file, however it was cut.
    """
    edges = {tensor.start for tensor in header.tensors}
    runs: list[tuple[int, int]] = []
    first = start = 0
    for index, stop in enumerate(stops):
        if start <= header.data_start:
            first = index  # nothing but the header, or nothing at all, lies before this chunk
        elif start in edges:
            runs.append((first, index))
            first = index
        start = stop
    if start > header.data_start:
        runs.append((first, len(stops)))
    return runs
