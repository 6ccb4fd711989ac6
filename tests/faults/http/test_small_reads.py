"""Small reads, with and without a pool."""

from __future__ import annotations

import threading

import pytest

from coldstream.net.http_message import FetchError, parse_target
from coldstream.net.pool import HttpPool, read
from tests.faults.http.connections import DATA, PATH, QUICK, Setup
from tests.servers.ranged import RangedServer


def test_read_whole_parts_and_past_the_end(server: RangedServer, pool: HttpPool | None) -> None:
    link = server.link("/small")
    whole = read(link, stop=10, pool=pool)
    assert (whole.body, whole.size, whole.etag, whole.url) == (b"0123456789", 10, server.etags["/small"], link)
    assert read(link, start=3, stop=5, pool=pool).body == b"34"
    assert read(link, start=3, stop=500, pool=pool).body == b"3456789"
    assert read(link, start=3, stop=10, pool=pool).body == b"3456789"
    assert read(link, start=3, stop=5, etag=whole.etag, pool=pool).size == 10
    assert server.connections == (1 if pool else 5)


def test_read_an_empty_object(server: RangedServer, pool: HttpPool | None) -> None:
    for stop in [1, 100]:
        found = read(server.link("/empty"), stop=stop, pool=pool)
        assert (found.body, found.size) == (b"", 0)
    with pytest.raises(FetchError) as caught:
        read(server.link("/small"), start=20, stop=30, pool=pool)
    assert (caught.value.kind, caught.value.status) == ("range", 416)


def test_read_is_bounded(server: RangedServer) -> None:
    for value in ["until the end", "Content-Length: 13\r\n\r\nuntil the end"]:
        server.add("garbage", value="HTTP/1.1 200 OK\r\n" + ("" if ":" in value else "\r\n") + value)
        with pytest.raises(FetchError, match=r"longer than the 9 bytes|the range was ignored") as caught:
            read(server.link("/small"), stop=9)
        assert caught.value.kind == "range"
    for start, stop in [(5, 5), (-1, 3)]:
        with pytest.raises(ValueError, match="is not a range"):
            read(server.link("/small"), start=start, stop=stop)


def test_read_from_servers_that_ignore_ranges(server: RangedServer) -> None:
    server.add("whole", times=3)
    assert read(server.link("/small"), stop=50).body == b"0123456789"
    for start, stop in [(0, 5), (5, 8)]:
        with pytest.raises(FetchError, match="the range was ignored"):
            read(server.link("/small"), start=start, stop=stop)


def test_read_bodies_of_every_framing(server: RangedServer) -> None:
    server.add("chunked", by=3, times=2)
    assert read(server.link("/small"), stop=10).body == b"0123456789"
    assert read(server.link("/small"), start=2, stop=9).body == b"2345678"
    server.add("garbage", value="HTTP/1.1 200 OK\r\n\r\nuntil the end")
    found = read(server.link("/small"), stop=100)
    assert (found.body, found.size) == (b"until the end", 13)
    server.add("garbage", value="HTTP/1.1 200 OK\r\n\r\nuntil the end")
    with pytest.raises(FetchError, match="longer than the 5 bytes"):
        read(server.link("/small"), stop=5)
    server.add("garbage", value="HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/10\r\n\r\n01234")
    with pytest.raises(FetchError, match="before the reply was complete") as caught:
        read(server.link("/small"), stop=10)
    assert caught.value.received == 0


def test_the_pool_is_shared_by_threads_and_bounded(server: RangedServer) -> None:
    with HttpPool(2) as pool:
        barrier = threading.Barrier(4)

        def work() -> None:
            for _ in range(20):
                assert read(server.link(PATH), start=10, stop=1000, pool=pool).body == DATA[10:1000]
            barrier.wait()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.connections < 80
        server.hang_up()
        assert read(server.link("/small"), stop=10, pool=pool).body == b"0123456789"
    pool.close()
    assert read(server.link("/small"), stop=10, pool=pool).body == b"0123456789"


def test_a_whole_object_over_a_connection_of_the_engine(setup: Setup) -> None:
    connection, server = setup.connect(), setup.server
    for _ in range(2):
        body, reply = connection.get_whole(parse_target(server.link(PATH)), len(DATA))
        assert body == DATA
        assert (reply.size, reply.etag, reply.status) == (len(DATA), server.etags[PATH], 206)
        assert 0 < reply.first_byte_seconds < QUICK.idle_seconds
    assert server.connections == 1
    server.add("whole")
    assert connection.get_whole(parse_target(server.link(PATH)), len(DATA))[0] == DATA


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n0123456789",
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\r\n<html>   ",
        "HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/99\r\nContent-Length: 10\r\n\r\n0123456789",
        "HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/10\r\n\r\n01234",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n012\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n012",
        "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_not_surely_a_whole_small_object_is_left_to_another_client(server: RangedServer, answer: str) -> None:
    target = parse_target(server.link("/small"))
    connection = Setup(server, None, []).connect()
    server.add("garbage", value=answer)
    with pytest.raises(FetchError):
        connection.get_whole(target, 50)
    assert connection.get_whole(target, 50)[0] == b"0123456789"
    connection.close()
