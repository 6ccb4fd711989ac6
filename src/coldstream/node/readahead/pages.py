"""What the kernel says of a process's memory, as ranges of files. Pure.

`/proc/PID/maps` names the files that a process has mapped, `/proc/PID/pagemap` tells of each page whether it is there:
eight bytes a page, of which the highest bit says so (docs of the kernel, admin-guide/mm/pagemap). A page of a private
mapping that was written to, as the linker does when it relocates a library, is no longer the file's; it was read from
it all the same, and counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ENTRY_BYTES = 8
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S{4} ([0-9a-f]+) \S+ (\d+) +(/.*)")
_DELETED = " (deleted)"
# The highest byte of an entry, little-endian: present, or swapped out.
_THERE = bytes(1 if byte & 0xC0 else 0 for byte in range(256))
_RUN = re.compile(rb"\x01+")

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A part of a file in a process's memory.

    Attributes:
        path: Of the file.
        start: The first address.
        stop: One past the last.
        offset: Where in the file the first address lies.
    """

    path: str
    start: int
    stop: int
    offset: int


def mappings(maps: str) -> Iterator[Mapping]:
    """The files of `/proc/PID/maps`; those that were deleted, and memory without a file, are left out."""
    for line in maps.splitlines():
        match = _LINE.fullmatch(line)
        # The kernel writes a line feed of a name as \012, and nothing else that way.
        if match is None or match[4] == "0" or match[5].endswith(_DELETED) or "\\" in match[5]:
            continue
        yield Mapping(path=match[5], start=int(match[1], 16), stop=int(match[2], 16), offset=int(match[3], 16))


def present(entries: bytes, *, offset: int, page_bytes: int) -> Iterator[Range]:
    """The ranges of a file that are in memory.

    Args:
        entries: Of `pagemap`, for the pages of one mapping.
        offset: Where in the file the mapping begins.
        page_bytes: Of one page.
    """
    for run in _RUN.finditer(entries[ENTRY_BYTES - 1 :: ENTRY_BYTES].translate(_THERE)):
        yield offset + run.start() * page_bytes, offset + run.end() * page_bytes


def merged(ranges: Iterable[Range], *, gap_bytes: int, size: int) -> tuple[Range, ...]:
    """Ranges sorted, cut at the file's size, and joined where less than `gap_bytes` are between them."""
    runs: list[Range] = []
    for start, stop in sorted(ranges):
        if start >= size:
            break
        if runs and start - runs[-1][1] < gap_bytes:
            runs[-1] = runs[-1][0], max(runs[-1][1], min(stop, size))
        else:
            runs.append((start, min(stop, size)))
    return tuple(runs)
