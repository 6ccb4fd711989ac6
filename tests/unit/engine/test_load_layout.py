"""Chunks and extents of a load, from the files' plans."""

from __future__ import annotations

from coldstream.engine.actions import Chunk
from coldstream.engine.arena import connections_within, descriptors_for, lay_out, quick_first
from coldstream.model.job import FileJob, Segment

DIGEST = bytes(range(16))


def test_chunks_lie_in_their_extents_and_segments() -> None:
    first = FileJob(
        path="a",
        segments=(Segment(stop=20, url="http://x/1"), Segment(stop=60, url="http://x/2", cdn="http://cdn/2")),
        stops=(10, 20, 50, 60),
        digests=bytes(16) * 3 + DIGEST,
        extents=((1, 3), (3, 4)),
    )
    second = FileJob(path="b", segments=(Segment(stop=5, local="/b"),), stops=(5,), extents=((0, 1),))
    chunks, extents, to_store = lay_out([first, second], store=True)
    assert chunks == [
        Chunk(0, 0, 1, 0, 0, 10),
        Chunk(0, 1, 2, 0, 10, 30),  # the CDN has it too, but nothing would verify it
        Chunk(0, 1, 3, 1, 0, 10, cdn=True),
        Chunk(1, 2, 0, 2, 0, 5, is_local=True, remote=False),
    ]
    assert extents == [40, 10, 5]
    assert to_store == [True, True, True, False]
    assert lay_out([first, second], store=False)[2] == [False] * 4


def test_some_small_extents_come_first() -> None:
    assert quick_first([900, 8, 700, 8, 8], 2, small_bytes=8) == [1, 3, 0, 2, 4]
    assert quick_first([900, 700], 2, small_bytes=8) == [0, 1]


def test_connections_fit_the_limit_of_open_files() -> None:
    assert connections_within(descriptors_for(64), 64) == 64
    assert connections_within(descriptors_for(64) - 1, 64) == 63
    assert connections_within(10, 64) == 1
