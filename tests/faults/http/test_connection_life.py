"""Connections that are closed, reset, stalled or refused."""

from __future__ import annotations

import random
import socket
import time
from typing import Any

import pytest

from coldstream.net import connection as http
from coldstream.net.connection import Connection
from coldstream.net.http_message import FetchError, parse_target
from coldstream.net.pool import read
from tests.faults.http.connections import DATA, IMPATIENT, PATH, QUICK, Setup


def test_a_connection_that_was_closed_while_idle_is_replaced(setup: Setup) -> None:
    setup.server.requests_per_connection = 2
    connection = setup.connect()
    for _ in range(5):
        setup.get(0, 1000, connection)
    assert setup.server.connections == 3


def test_a_connection_that_closes_as_we_ask_is_replaced_once(setup: Setup) -> None:
    connection = setup.connect()
    setup.get(0, 1000, connection)
    setup.server.add("unanswered")
    setup.get(0, 1000, connection)
    assert setup.server.connections == 2
    setup.server.add("unanswered", times=2)
    assert setup.fail(0, 1000, connection).kind == "broken"
    assert setup.server.count() == 5


def test_a_new_connection_that_closes_is_not(setup: Setup) -> None:
    setup.server.add("unanswered")
    error = setup.fail(0, 1000)
    assert (error.kind, error.received, error.status) == ("broken", 0, None)
    assert setup.server.count() == 1


def test_a_polite_close_is_understood(setup: Setup) -> None:
    connection = setup.connect()
    setup.server.add("close")
    setup.get(0, 1000, connection)
    assert not connection.is_open
    setup.get(0, 1000, connection)
    assert setup.server.connections == 2


def test_a_thread_is_woken_for_each_byte_at_the_end_of_a_body(setup: Setup) -> None:
    """Otherwise it would wait there until the poll interval is over."""
    connection, seen = setup.connect(), []

    def look(_count: int) -> None:
        assert connection._sock is not None
        seen.append(connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT))

    for _ in range(2):
        seen.clear()
        setup.get(connection=connection, on_progress=look)
        assert set(seen) == {1, http._WAKE_BYTES}
        assert seen[-1] == 1


def test_bytes_beyond_the_announced_length_end_only_the_connection(setup: Setup) -> None:
    connection = setup.connect()
    setup.server.add("excess", by=100)
    setup.get(0, 200_000, connection)
    # They may come a moment after the body.
    deadline = time.monotonic() + 10
    while connection._stream is not None and connection._stream.is_quiet():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    setup.get(0, 200_000, connection)
    assert setup.server.connections == 2


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_what_came_before_an_end_is_kept(setup: Setup, kind: Any) -> None:
    rng = random.Random(2)
    for at in [0, 1, 20_000, 1 << 20, len(DATA) - 1, *[rng.randrange(len(DATA)) for _ in range(10)]]:
        setup.server.add(kind, at=at)
        error = setup.fail()
        assert error.kind == "broken"
        # A reset may overtake bytes that were sent before it; an end in order may not.
        assert error.received == at if kind == "cut" else error.received <= at
        setup.get(error.received, len(DATA))


def test_a_cut_within_chunks_is_exact(setup: Setup) -> None:
    for at in [0, 5, 65_536, 65_537, 2_000_000]:
        setup.server.add("chunked", by=65_536)
        setup.server.add("cut", at=at)
        error = setup.fail()
        assert (error.kind, error.received) == ("broken", at)


def test_a_missing_last_chunk_is_not_missed(setup: Setup) -> None:
    connection = setup.connect()
    setup.server.add("chunked", by=65_536)
    setup.server.add("cut", at=len(DATA))
    setup.get(connection=connection)
    assert not connection.is_open


def test_a_silent_server_is_broken_and_what_came_is_kept(setup: Setup) -> None:
    setup.server.add("stall", at=1_111_111)
    connection = setup.connect()

    def lose_patience(count: int) -> None:
        if count == 1_111_111:
            connection._timeouts = IMPATIENT
            connection._deadline = time.monotonic() + IMPATIENT.idle_seconds

    error = setup.fail(connection=connection, on_progress=lose_patience)
    assert (error.kind, error.received) == ("broken", 1_111_111)
    assert "no data for 0.3 s" in error.message
    setup.server.add("late")
    error = setup.fail(connection=setup.connect(IMPATIENT))
    assert (error.kind, error.received) == ("broken", 0)


def test_a_refused_connection_is_broken(setup: Setup) -> None:
    with setup.server.refusing():
        error = setup.fail()
        assert error.kind == "broken"
        assert "refused" in error.message
    setup.get()


def test_a_connection_hung_up_on_is_opened_again(setup: Setup) -> None:
    connection = setup.connect()
    for _ in range(3):
        setup.get(0, 1000, connection)
        setup.server.hang_up()
    assert setup.server.connections == 3


def test_several_addresses_are_tried(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        entries = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", unused.getsockname()[1])),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", setup.server.port)),
        ]
        monkeypatch.setattr(http.socket, "getaddrinfo", lambda *_args, **_kwargs: list(entries))
        target = parse_target(setup.server.link(PATH, host="localhost"))
        for _ in range(6):
            connection = Connection(target, tls=setup.settings, timeouts=QUICK)
            buffer = bytearray(10)
            connection.get(target, 0, 10, memoryview(buffer), etag=None, size=None)
            assert buffer == DATA[:10]
            connection.close()


def test_an_unknown_name_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: object, **_kwargs: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(http.socket, "getaddrinfo", unknown)
    target = parse_target("http://nowhere.example/")
    with pytest.raises(FetchError, match=r"cannot resolve nowhere\.example") as caught:
        Connection(target).get(target, 0, 1, memoryview(bytearray(1)), etag=None, size=None)
    assert caught.value.kind == "broken"
    with pytest.raises(FetchError, match="Name or service not known") as caught:
        read(target.url, stop=10)
    assert caught.value.kind == "broken"
