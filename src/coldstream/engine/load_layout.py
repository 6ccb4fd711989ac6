"""How a load is laid out: its chunks and extents, the size of the arena, how many files it opens. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coldstream.engine.actions import Chunk
from coldstream.engine.arena import PAGE_BYTES
from coldstream.model.job import FileJob

# What the streamer needs beside the connections' sockets.
_DESCRIPTORS_SPARE = 64


def lay_out(files: Sequence[FileJob], *, store: bool) -> tuple[list[Chunk], list[int], list[bool]]:
    """The chunks and the sizes of the extents of a load, and which chunks to write to the local copy."""
    chunks: list[Chunk] = []
    extents: list[int] = []
    to_store: list[bool] = []
    segments_before = 0
    for number, file in enumerate(files):
        for first, stop in file.extents:
            position = 0
            for index in range(first, stop):
                begin, end = file.span(index)
                is_local, segment = file.is_local(index), file.segment(index)
                place = file.segments[segment]
                chunks.append(
                    Chunk(
                        number,
                        segments_before + segment,
                        index,
                        len(extents),
                        position,
                        end - begin,
                        is_local,
                        remote=place.url is not None,
                        # What cannot be verified comes from the bucket itself.
                        cdn=place.cdn is not None and bool(file.digest(index)),
                    )
                )
                to_store.append(store and not is_local)
                position += end - begin
            extents.append(position)
        segments_before += len(file.segments)
    return chunks, extents, to_store


def arena_bytes(extents: Sequence[int], *, store: bool, limit_bytes: int | None) -> int:
    """How much address space the arena takes, for extents of these sizes.

    It is sparse: untouched memory costs nothing, and no consumer ever has to map it again. However it is used, each
    extent touches no more than its own size, and once more when it is fetched again for the local copy (`store`).
    """
    once = sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in extents)
    whole = max(PAGE_BYTES, once * (2 if store else 1))
    return whole if limit_bytes is None else min(whole, max(PAGE_BYTES, limit_bytes // PAGE_BYTES * PAGE_BYTES))


def quick_first(sizes: Sequence[int], count: int, *, small_bytes: int) -> list[int]:
    """The order in which extents get memory: up to `count` small ones, so that a tensor is ready soon, then the others.

    A model often begins with its embedding, half a gigabyte in one piece.
    """
    first = [extent for extent, size in enumerate(sizes) if size <= small_bytes][:count]
    chosen = set(first)
    return [*first, *(extent for extent in range(len(sizes)) if extent not in chosen)]


def connections_within(descriptors: int, connections: int) -> int:
    """How many of these connections a limit of open files allows; at least one."""
    return max(1, min(connections, (descriptors - _DESCRIPTORS_SPARE) // 2))


def descriptors_for(connections: int) -> int:
    """How many open files a number of connections needs."""
    # The streamer has both ends of a worker's sockets until it has forked it.
    return 2 * connections + _DESCRIPTORS_SPARE
