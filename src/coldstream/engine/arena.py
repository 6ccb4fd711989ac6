"""How a load is laid out in the arena, and how its extents get memory there. Pure; touches no memory.

The arena is one sparse file of memory, and only touched memory costs anything. So freed extents are reused before new
memory is touched, the last one first: it is still in the processor's cache and in every process's page table.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

from coldstream.engine.actions import Chunk
from coldstream.model.job import FileJob

PAGE_BYTES = 4096  # extents start on pages and never share one: memory is released by the page
_DESCRIPTORS_SPARE = 64  # what the streamer needs beside the connections' sockets


class Arena:
    """Hands out `[start, start + size)` ranges."""

    def __init__(self, limit_bytes: int, *, mapped_bytes: int | None = None) -> None:
        self.mapped_bytes = mapped_bytes  # the maximum of `limit_bytes`, or None
        # How far the arena may be touched; `grow` raises it.
        self.limit_bytes = limit_bytes if mapped_bytes is None else min(limit_bytes, mapped_bytes)
        self.touched_bytes = 0  # how far it has been touched
        self._used: dict[int, int] = {}  # start to stop
        self._starts: list[int] = []  # of the holes, sorted
        self._holes: dict[int, tuple[int, int]] = {}  # start to (stop, when it was freed)
        self._clock = 0
        self._unneeded: deque[tuple[int, int]] | None = None  # see `take_unneeded`

    def __repr__(self) -> str:
        return (
            f"Arena({len(self._used)} extents of {self.used_bytes} bytes, {len(self._holes)} holes, "
            f"{self.touched_bytes} of {self.limit_bytes} bytes touched)"
        )

    @property
    def used_bytes(self) -> int:
        """Bytes in extents, whole pages."""
        return sum(stop - start for start, stop in self._used.items())

    def allocate(self, size: int) -> int | None:
        """The start of a free range of `size` bytes, rounded up to whole pages, or None if the limit leaves no room."""
        self._unneeded = None
        size = -(-size // PAGE_BYTES) * PAGE_BYTES
        fits = [start for start in self._starts if self._holes[start][0] - start >= size]
        if fits:
            # The tightest hole keeps large holes for large tensors; of equal holes, the last freed.
            start = min(fits, key=lambda start: (self._holes[start][0] - start, -self._holes[start][1]))
            stop, freed = self._holes[start]
            self._drop_hole(start)
            if stop - start > size:
                self._add_hole(start + size, stop, freed)
        else:
            start = self._end()
            if start + size > self.limit_bytes:
                return None
            if start in self._holes:
                self._drop_hole(start)
            self.touched_bytes = start + size
        self._used[start] = start + size
        return start

    def lacking_bytes(self, size: int) -> int:
        """By how much the limit has to rise for an extent of `size` bytes that no hole has room for."""
        return max(0, self._end() + -(-size // PAGE_BYTES) * PAGE_BYTES - self.limit_bytes)

    def grow(self, size: int) -> int:
        """Raises the limit by `size` bytes, in whole pages, within the mapped memory; returns by how many."""
        size = -(-size // PAGE_BYTES) * PAGE_BYTES
        if self.mapped_bytes is not None:
            size = min(size, self.mapped_bytes - self.limit_bytes)
        self.limit_bytes += size
        return size

    def free(self, start: int) -> None:
        """Frees the extent at `start`."""
        stop = self._used.pop(start)
        if self._unneeded is not None:
            self._unneeded.append((start, stop))
        self._clock += 1
        position = bisect_left(self._starts, start)
        if position < len(self._starts) and self._starts[position] == stop:
            following = self._starts[position]
            stop = self._holes[following][0]
            self._drop_hole(following)
        if position and self._holes[self._starts[position - 1]][0] == start:
            start = self._starts[position - 1]
            self._drop_hole(start)
        self._add_hole(start, stop, self._clock)

    def take_unneeded(self, size_max: int) -> tuple[int, int] | None:
        """A free range of up to `size_max` bytes, whole pages, that was not returned before; None if there is none.

        For when nothing more will be allocated: the caller gives its memory back to the system.
        """
        if self._unneeded is None:
            self._unneeded = deque((start, stop) for start, (stop, _) in self._holes.items())
        if not self._unneeded:
            return None
        start, stop = self._unneeded.popleft()
        if stop - start > size_max:
            self._unneeded.appendleft((start + size_max, stop))
            stop = start + size_max
        return start, stop

    def _end(self) -> int:
        """Where memory begins that can be extended: at a hole that ends with the touched memory, or there."""
        last = self._starts[-1] if self._starts else -1
        return last if last >= 0 and self._holes[last][0] == self.touched_bytes else self.touched_bytes

    def _add_hole(self, start: int, stop: int, freed: int) -> None:
        insort(self._starts, start)
        self._holes[start] = (stop, freed)

    def _drop_hole(self, start: int) -> None:
        del self._starts[bisect_left(self._starts, start)]
        del self._holes[start]


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
