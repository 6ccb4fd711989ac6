from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coldstream.node.readahead.pages import Mapping, mappings, merged, present

_MAPS = """\
55d0c0a00000-55d0c0a01000 r--p 00002000 fe:00 123456                     /usr/bin/python3.11
7f0000000000-7f0000002000 rw-p 00000000 00:00 0
7f1000000000-7f1000001000 r-xp 00001000 fe:00 7 /a folder/with spaces.so
7f2000000000-7f2000001000 rw-s 00000000 00:01 9                          /memfd:arena (deleted)
7f3000000000-7f3000001000 r--p 00000000 fe:00 8                          /odd\\012name
7f4000000000-7f4000001000 rw-s 00000000 00:05 0                          /dev/zero
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_mappings_are_those_with_a_file() -> None:
    assert list(mappings(_MAPS)) == [
        Mapping(path="/usr/bin/python3.11", start=0x55D0C0A00000, stop=0x55D0C0A01000, offset=0x2000),
        Mapping(path="/a folder/with spaces.so", start=0x7F1000000000, stop=0x7F1000001000, offset=0x1000),
    ]


def test_pages_that_are_there_or_were_become_ranges() -> None:
    present_, swapped, absent = 1 << 63, 1 << 62, 1 << 55
    entries = b"".join(
        e.to_bytes(8, "little") for e in (absent, present_, present_ | 1 << 61, absent, 0, swapped, absent)
    )
    assert list(present(entries, offset=8192, page_bytes=4096)) == [(12288, 20480), (28672, 32768)]
    assert list(present(b"", offset=0, page_bytes=4096)) == []


def test_near_ranges_are_joined_and_cut_at_the_end() -> None:
    assert merged([(30, 40), (0, 10), (5, 12), (50, 60)], gap_bytes=11, size=55) == ((0, 12), (30, 55))
    assert merged([(60, 70)], gap_bytes=1, size=60) == ()


_RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)).map(lambda r: (r[0], r[0] + r[1])), max_size=30)


@given(_RANGES, st.integers(1, 50), st.integers(1, 320))
def test_merging_keeps_every_byte(ranges: list[tuple[int, int]], gap: int, size: int) -> None:
    found = merged(ranges, gap_bytes=gap, size=size)
    wanted = {at for start, stop in ranges for at in range(start, min(stop, size))}
    covered = {at for start, stop in found for at in range(start, stop)}
    assert wanted <= covered
    assert all(start < stop <= size for start, stop in found)
    assert all(later[0] - earlier[1] >= gap for earlier, later in pairwise(found))
    assert covered <= set(range(size))
    # Nothing is added but gaps.
    assert all(start in wanted and stop - 1 in wanted for start, stop in found)
