"""A thousand connections at once, to a server of which each gets little."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coldstream.engine import attach
from coldstream.engine.attach import Owner
from coldstream.engine.load_statistics import LoadStatistics
from coldstream.machine.connections import ConnectionTable
from coldstream.model.job import Catalog, CatalogFile, FileJob, JobOptions, Segment

CONNECTIONS = 1024
CHUNK, CHUNKS = 256 << 10, 1800
# A connection gets 64 kB/s, so that twice as many give twice as much, however busy this machine is.
SERVER = """
import asyncio, random, re, resource

resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            size, start, stop = map(int, re.search(rb"GET /(\\d+)(?s:.*)ange: bytes=(\\d+)-(\\d+)", head).groups())
            await asyncio.sleep(random.uniform(0.0, 0.25))
            writer.write(
                b"HTTP/1.1 206 Partial Content\\r\\nETag: \\"1\\"\\r\\nContent-Length: %d\\r\\n"
                b"Content-Range: bytes %d-%d/%d\\r\\n\\r\\n" % (stop + 1 - start, start, stop, size)
            )
            piece = (start // CHUNK).to_bytes(2, "little") * (8 << 10)
            for _ in range(0, stop + 1 - start, len(piece)):
                writer.write(piece)
                await asyncio.sleep(0.25)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
""".replace("CHUNK", str(CHUNK))
# The steps are short, and whatever else runs on this machine does not stop them.
STREAMER = """
from coldstream.engine import pace, streamer
pace.STEP_SECONDS_MAX = 1.0
streamer.Processors.look = lambda self, now: None
main(sys.argv[2:])
"""


@pytest.fixture
def port() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def load(port: int, *, chunks: int, connections: int, **options: Any) -> LoadStatistics:
    """Reads so many chunks of the server's file, and checks each."""
    size = CHUNK * chunks
    stops = tuple(range(CHUNK, size + 1, CHUNK))
    file = FileJob(
        path="model",
        segments=(Segment(stop=size, etag="1", url=f"http://127.0.0.1:{port}/{size}"),),
        stops=stops,
        extents=tuple((index, index + 1) for index in range(chunks)),
    )
    catalog = Catalog((CatalogFile("model", size, b""),), tuple((0, stop - CHUNK, stop) for stop in stops))
    owner = Owner(workers=2, connections=connections)
    try:
        owner.load([file], catalog, JobOptions(memory_limit=2 * size, answer_seconds=1.0, **options))
        with closing(owner.consumer()) as consumer:
            for extent in consumer.extents():
                assert bytes(extent.memory[:2]) == (extent.start // CHUNK).to_bytes(2, "little")
                owner.hear()  # a streamer whose owner never listens stops
                del extent
        while not owner.has_finished:
            owner.hear(1.0)
    finally:
        owner.stop()
    assert owner.statistics is not None
    assert owner.statistics.done_bytes == size
    assert owner.statistics.retries == 0
    return owner.statistics


def test_the_pace_reaches_1024_connections_and_everything_arrives(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "_START", attach._START.replace("main(sys.argv[2:])\n", STREAMER))
    statistics = load(port, chunks=CHUNKS, connections=CONNECTIONS)
    assert statistics.connections_peak == statistics.connections_limit == CONNECTIONS


def test_loads_of_one_machine_share_its_connections(port: int, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    other = ConnectionTable(table)
    other.hold(48)
    statistics = load(port, chunks=40, connections=64, connection_table=table, shares_connections=True)
    assert statistics.connections_peak == statistics.connections_limit == 32
    assert statistics.connections_bound == "other loads"
    own_number = load(port, chunks=40, connections=64, connection_table=table)
    assert (own_number.connections_peak, own_number.connections_bound) == (40, "")
    other.close()
