"""How a file is cut: into parts to store it, into chunks to verify and stream it, into segments to keep it. Pure.

Parts are what a multipart upload sends: equal, large, blind to the content. Chunks are what a load fetches and checks:
about 8 MiB, cut on the edges of tensors. Segments are objects of their own, runs of chunks: where one ends is decided
only by the tensors around that place, so that two revisions of a file share all segments but those in which they
differ. All are half-open byte ranges that cover `[0, size)` in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from coldstream.errors import UsageError
from coldstream.model.header import Header
from coldstream.units import GIB, MIB, TIB, format_bytes

CHUNK_BYTES = 8 * MIB  # 8 MiB is the smallest read that reached full speed on S3 (AWS and several loaders use it too)

PART_BYTES = 64 * MIB
# R2 and S3: at most 10,000 parts, each 5 MiB to 5 GiB (R2: 5 MiB less), all but the last equal on R2; objects up to
# 5 TiB (docs r2/platform/limits, r2/objects/multipart-objects).
PARTS_MAX = 10_000
PART_BYTES_MIN = 5 * MIB
PART_BYTES_MAX = 5 * GIB - 5 * MIB
OBJECT_BYTES_MAX = 5 * TIB
# A segment below this is more request than content; above it, more than any CDN keeps (Cloudflare: 512 MB, Enterprise
# 5 GB) and more than an upload should hold in memory.
SEGMENT_BYTES_MIN = MIB
SEGMENT_BYTES_MAX = 5 * GIB


def part_bytes_for(file_bytes: int, *, preferred: int = PART_BYTES) -> int:
    """The part size for a file: `preferred`, or the next MiB that keeps it within 10,000 parts."""
    if file_bytes > OBJECT_BYTES_MAX:
        raise UsageError(
            f"a file of {format_bytes(file_bytes)} does not fit: an object holds {format_bytes(OBJECT_BYTES_MAX)}"
        )
    needed = -(-file_bytes // PARTS_MAX)
    return max(preferred, -(-needed // MIB) * MIB)


def parts(file_bytes: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """The parts of a file as `[start, stop)`; one empty part for an empty file."""
    for start in range(0, max(file_bytes, 1), part_bytes):
        yield start, min(start + part_bytes, file_bytes)


def part_count(file_bytes: int, part_bytes: int) -> int:
    """How many parts `parts` yields."""
    return max(1, -(-file_bytes // part_bytes))


def even_stops(start: int, stop: int, piece_bytes: int = CHUNK_BYTES) -> list[int]:
    """The stops that cut `[start, stop)` into as few even pieces as keep each within `piece_bytes`."""
    size = stop - start
    count = -(-size // piece_bytes)
    return [start + size * (index + 1) // count for index in range(count)]


def tensor_stops(header: Header, *, chunk_bytes: int = CHUNK_BYTES) -> list[int]:
    """The chunk stops of a safetensors file.

    The header is cut by itself. Consecutive small tensors share a chunk while they fit; a tensor larger than a chunk
    is split evenly and shares no chunk; otherwise no chunk straddles an edge of a tensor.
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


def segment_stops(header: Header, stops: Sequence[int], object_bytes_max: int) -> list[int]:
    """The stops of a safetensors file's segments, each on the edge of a chunk.

    The header is a segment by itself: it changes whenever any shape does. A tensor that is larger than a segment may be
    is cut evenly and shares no segment. Between those, each edge that two chunks and two tensors have in common gets a
    rank, the SHA-256 of the name of the tensor that starts there, and is a segment's edge exactly if the nearest edges
    of higher rank on either side of it (or the ends of the run) are further apart than a segment may be long. So after
    a tensor that was added, removed or resized, the edges are the same as before. The price is that segments are, on
    average, half as long as they might be. `stops` are those of the chunks, which are at most as large as a segment.
    """
    names = {tensor.start: tensor.name for tensor in header.tensors if tensor.stop > tensor.start}
    cut: list[int] = []
    edges: list[int] = []  # of the present run: where it starts, then where its pieces of one or more tensors stop
    first = 0  # the first chunk of the present piece
    start = 0
    for index, stop in enumerate(stops):
        if stop not in names and stop != stops[-1]:
            continue  # inside the header or a tensor
        if stop - start > object_bytes_max or start < header.data_start:
            cut += _ranked_stops(edges, names, object_bytes_max)
            cut += _even_runs(stops[first : index + 1], start, object_bytes_max)
            edges = [stop]
        else:
            edges.append(stop)
        first, start = index + 1, stop
    return cut + _ranked_stops(edges, names, object_bytes_max)


def _ranked_stops(edges: Sequence[int], names: Mapping[int, str], bytes_max: int) -> list[int]:
    """The stops in a run of pieces; the last edge is one. Empty for a run without a piece."""
    if len(edges) < 2:
        return []
    ranks = [hashlib.sha256(names[edge].encode("utf-8", "surrogatepass")).digest() for edge in edges[1:-1]]
    inner = edges[1:-1]
    before = _nearest_higher(inner, ranks, edges[0])
    after = _nearest_higher(inner[::-1], ranks[::-1], edges[-1])[::-1]
    cut = [edge for edge, low, high in zip(inner, before, after, strict=True) if high - low > bytes_max]
    return [*cut, edges[-1]]


def _nearest_higher(edges: Sequence[int], ranks: Sequence[bytes], end: int) -> list[int]:
    """For each edge the last one before it of a higher rank, or `end`."""
    nearest = []
    higher: list[tuple[bytes, int]] = []  # falling ranks
    for edge, rank in zip(edges, ranks, strict=True):
        while higher and higher[-1][0] <= rank:
            higher.pop()
        nearest.append(higher[-1][1] if higher else end)
        higher.append((rank, edge))
    return nearest


def _even_runs(stops: Sequence[int], start: int, bytes_max: int) -> list[int]:
    """The stops of as few runs of these chunks as keep each within `bytes_max`, of about as many chunks each."""
    longest = max(stop - begin for begin, stop in pairwise((start, *stops)))
    together = max(1, bytes_max // longest)
    count = -(-len(stops) // together)
    return [stops[len(stops) * (index + 1) // count - 1] for index in range(count)]


def extents(header: Header, stops: Sequence[int]) -> list[tuple[int, int]]:
    """The runs `[first, stop)` of chunks that have to lie in one piece of memory, so that every tensor does.

    They are as short as the cut allows and follow each other without a gap; chunks of only the header are in none.
    A chunk of both, which other tools may cut, is in the first one. `stops` are those of all chunks, however cut.
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
