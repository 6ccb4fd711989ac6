"""Servers that inject faults, never answer, or never finish a handshake."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from coldstream.net.pool import HttpPool
from tests.faults.http.connections import BACKENDS, DATA, PATH, Setup, trust
from tests.servers.ranged import RangedServer


@pytest.fixture(params=BACKENDS)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    secure = request.param != "plain"
    with RangedServer({PATH: DATA, "/empty": b""}, tls=secure) as server:
        setup = Setup(server, trust(request.param) if secure else None, [])
        yield setup
        for connection in setup.opened:
            connection.close()


@pytest.fixture
def server() -> Iterator[RangedServer]:
    with RangedServer({PATH: DATA, "/empty": b"", "/small": b"0123456789"}) as server:
        yield server


@pytest.fixture
def unanswering() -> Iterator[tuple[str, int]]:
    """An address that completes no connection: its queue is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    fillers = []
    # The queue takes one or two more than asked for; the first that does not get through is the sign.
    for _ in range(8):
        filler = socket.socket()
        filler.settimeout(0.2)
        fillers.append(filler)
        try:
            filler.connect(address)
        except TimeoutError:
            break
    else:
        pytest.fail("the queue never filled")
    yield address
    for sock in [listener, *fillers]:
        sock.close()


@pytest.fixture
def mute() -> Iterator[tuple[str, int, threading.Event]]:
    """An address that accepts, listens and never says a word; the event: it has heard something."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard = threading.Event()
    accepted: list[socket.socket] = []

    def serve() -> None:
        connection, _ = listener.accept()
        accepted.append(connection)
        connection.recv(1)
        heard.set()

    thread = threading.Thread(target=serve)
    thread.start()
    yield (*listener.getsockname(), heard)
    thread.join()
    for sock in [listener, *accepted]:
        sock.close()


@pytest.fixture(params=["own", "pool"])
def pool(request: pytest.FixtureRequest) -> Iterator[HttpPool | None]:
    with HttpPool() as pool:
        yield pool if request.param == "pool" else None
