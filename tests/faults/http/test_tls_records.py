"""TLS below the bytes: records in pieces, new keys, a second handshake, and ends in order."""

from __future__ import annotations

import fcntl
import random
import re
import shutil
import socket
import ssl
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from coldstream.net.connection import Connection
from coldstream.net.http_message import FetchError, parse_target
from tests.faults.http.connections import DATA, PATH, QUICK, TLS_BACKENDS, Later, trust, wait_until
from tests.servers.ranged import RangedServer, certificates

DIGITS = b"0123456789" * 60_000


@contextmanager
def relay(port: int, cut: Callable[[int], int]) -> Iterator[int]:
    """A port that passes one connection on, the server's bytes in pieces of `cut(bytes so far)`."""
    listener, server = socket.create_server(("127.0.0.1", 0)), socket.create_connection(("127.0.0.1", port))

    def forward(client: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        forwarding = threading.Thread(target=forward, args=(client,))
        forwarding.start()
        total = 0
        with suppress(OSError):
            while data := server.recv(cut(total)):
                client.sendall(data)
                total += len(data)
        forwarding.join()
        client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, server:
        yield listener.getsockname()[1]
        thread.join()


def fetch(connection: Connection, port: int, body: bytes = DATA) -> None:
    """Fetches a whole object and compares it."""
    buffer = bytearray(len(body))
    target = parse_target(f"https://127.0.0.1:{port}{PATH}")
    connection.get(target, 0, len(body), memoryview(buffer), etag=None, size=len(body))
    assert buffer == body


def connect(port: int, backend: str) -> Connection:
    return Connection(parse_target(f"https://127.0.0.1:{port}/"), tls=trust(backend), timeouts=QUICK)


@pytest.mark.parametrize("backend", TLS_BACKENDS)
@pytest.mark.parametrize("pieces", ["bytes first", "five", "around a record", "random"])
def test_records_may_come_in_any_pieces(backend: str, pieces: str) -> None:
    draw = random.Random(2)
    cuts: dict[str, Callable[[int], int]] = {
        "bytes first": lambda total: 1 if total < 4_000 else 65_536,
        "five": lambda total: 5 if total < 20_000 else 65_536,  # as long as a record's header
        "around a record": lambda total: 16_384 + 21 + draw.randrange(3),
        "random": lambda total: draw.randrange(1, 40_000),
    }
    with (
        RangedServer({PATH: DATA}, tls=True) as server,
        relay(server.port, cuts[pieces]) as port,
        closing(connect(port, backend)) as connection,
    ):
        for _ in range(3):
            fetch(connection, port)


@pytest.mark.parametrize("backend", TLS_BACKENDS)
@pytest.mark.parametrize("sent", [0, 1, 16_384, 400_000])
def test_an_end_in_order_in_the_middle_of_a_body(backend: str, sent: int) -> None:
    """The server sends close_notify and keeps the socket open: what came before counts, and no one waits."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates().good)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def serve() -> None:
        accepted, _ = listener.accept()
        with accepted, context.wrap_socket(accepted, server_side=True) as secure, suppress(OSError):
            secure.recv(65536)
            length = len(DATA)
            head = (
                f"HTTP/1.1 206 OK\r\nContent-Length: {length}\r\nContent-Range: bytes 0-{length - 1}/{length}\r\n\r\n"
            )
            secure.sendall(head.encode() + DATA[:sent])
            secure.unwrap().recv(1)  # it returns when the client has closed

    thread = threading.Thread(target=serve)
    thread.start()
    connection = connect(port, backend)
    with pytest.raises(FetchError) as caught:
        fetch(connection, port)
    assert (caught.value.kind, caught.value.received) == ("broken", sent)
    assert not connection.is_open
    thread.join()
    listener.close()


class OpensslServer:
    """`openssl s_server`, which takes commands between the bytes that it sends."""

    def __init__(self, *options: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed (apt-get install openssl)")
        command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-cert", str(certificates().good)]
        self._process = subprocess.Popen(
            [*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.output = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        wait_until(lambda: re.search(rb"ACCEPT 127.0.0.1:\d+\n", self.output) is not None)
        self.port = int(re.findall(rb"ACCEPT 127.0.0.1:(\d+)\n", self.output)[0])

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := self._process.stdout.read1():  # type: ignore[attr-defined]
            self.output += data

    def send(self, data: bytes) -> None:
        """Sends data, or carries out a command (a letter and a newline); returns when the server has read it."""
        pipe = self._process.stdin
        assert pipe is not None
        pipe.write(data)
        pipe.flush()
        wait_until(lambda: not any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))))

    def requests(self) -> int:
        return self.output.count(b"GET ")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._thread.join()


@pytest.mark.parametrize("backend", TLS_BACKENDS)
@pytest.mark.parametrize(
    ("version", "within", "between"),
    [("-tls1_3", b"k\n", b"K\n"), ("-tls1_3", b"K\n", b"k\n"), ("-tls1_2", b"r\n", b"")],
)
def test_new_keys_within_a_body_and_between_two(backend: str, version: str, within: bytes, between: bytes) -> None:
    """`k`: a key update; `K`: one that the client must answer with its own; `r`: another handshake."""
    length = len(DIGITS)
    head = f"HTTP/1.1 206 OK\r\nContent-Length: {length}\r\nContent-Range: bytes 0-{length - 1}/{length}\r\n\r\n"
    with closing(OpensslServer(version)) as server, closing(connect(server.port, backend)) as connection:
        for number in range(3):
            later = Later(lambda: fetch(connection, server.port, DIGITS))
            wait_until(lambda count=number + 1: server.requests() == count)  # type: ignore[misc]
            server.send(head.encode() + DIGITS[:300_000])
            server.send(within)
            server.send(DIGITS[300_000:])
            later.succeed()
            server.send(between)
