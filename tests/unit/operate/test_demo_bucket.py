"""A slow link: nothing is changed on it, and all connections together keep to its rate."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from coldstream.operate.demo_bucket import throttled

ANSWER = bytes(range(256)) * 512


@pytest.fixture
def server() -> Iterator[str]:
    """Reads a line, sends it back with 128 KiB, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer(sock: socket.socket) -> None:
            with sock:
                sock.sendall(sock.makefile("rb").readline() + ANSWER)

        def serve() -> None:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(sock,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=30)


def fetch(url: str, line: bytes) -> bytes:
    with connect(url) as sock:
        sock.sendall(line)
        return sock.makefile("rb").read()


def test_all_connections_share_the_rate(server: str) -> None:
    rate = 1 << 20
    answers: list[bytes] = []
    with throttled(server, rate) as link:
        began = time.monotonic()
        threads = [threading.Thread(target=lambda: answers.append(fetch(link, b"a line\n"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    assert answers == [b"a line\n" + ANSWER] * 4
    assert seconds >= 4 * len(ANSWER) / rate


def test_it_ends_with_its_block(server: str) -> None:
    with throttled(server, 1 << 20) as link:
        sock = connect(link)
        sock.sendall(b"a line\n")
        assert sock.recv(1)
    with closing(sock):
        while sock.recv(65536):
            pass
    with pytest.raises(ConnectionRefusedError):
        connect(link)


def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with throttled(f"http://127.0.0.1:{port}", 1.0) as link, connect(link) as sock:
        assert sock.recv(1) == b""
