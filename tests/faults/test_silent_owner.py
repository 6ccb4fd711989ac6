"""An owner that is busy with something else does not listen to its streamer."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from coldstream.engine import attach
from coldstream.engine.attach import Owner
from coldstream.model.job import Catalog, CatalogFile, FileJob, JobOptions, Segment

CHUNK, CHUNKS = 4096, 2000
# As many messages in this short load as in one of minutes.
STREAMER = """
from coldstream.engine import streamer
streamer.PROGRESS_SECONDS = 0.0
main(sys.argv[2:])
"""


def test_a_load_goes_on_while_its_owner_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "_START", attach._START.replace("main(sys.argv[2:])\n", STREAMER))
    size = CHUNK * CHUNKS
    path = tmp_path / "model"
    path.write_bytes(bytes(size))
    stops = tuple(range(CHUNK, size + 1, CHUNK))
    file = FileJob(
        path="model",
        segments=(Segment(stop=size, local=str(path)),),
        stops=stops,
        extents=tuple((index, index + 1) for index in range(CHUNKS)),
    )
    catalog = Catalog((CatalogFile("model", size, b""),), tuple((0, stop - CHUNK, stop) for stop in stops))
    owner = Owner(workers=1, connections=4)
    try:
        owner.load([file], catalog, JobOptions(memory_limit=2 * size))
        with closing(owner.consumer()) as consumer:
            deadline = time.monotonic() + 60.0
            while consumer.seen < consumer.total:
                assert time.monotonic() < deadline, f"{consumer} waits for a streamer that waits for its owner"
                if consumer.take() is None:
                    consumer.wait()
                    time.sleep(0.001)
        while not owner.has_finished:
            owner.hear(1.0)
    finally:
        owner.stop()
    assert owner.statistics is not None
    assert owner.statistics.done_bytes == size
