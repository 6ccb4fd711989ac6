"""A slow link on loopback: everything that comes through it, over all connections together, keeps to one rate."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

# Of each connection at a time, so that they take turns.
_PIECE_BYTES = 16 << 10


@contextmanager
def throttled(endpoint: str, bytes_per_second: float) -> Iterator[str]:
    """Forwards connections to a server, for the length of the block; what the server sends keeps to the rate.

    Args:
        endpoint: Of the server: `http://host:port`.
        bytes_per_second: Of all connections together. What is sent to the server is not held up.

    Yields:
        Where to connect instead.
    """
    split = urlsplit(endpoint)
    assert split.hostname is not None
    link = _Link((split.hostname, split.port or 80), bytes_per_second)
    try:
        yield f"http://127.0.0.1:{link.port}"
    finally:
        link.close()


class _Link:
    def __init__(self, server: tuple[str, int], bytes_per_second: float) -> None:
        self._server, self._rate = server, bytes_per_second
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="throttle", daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Breaks all connections off."""
        self._ended.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listening.close()
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                thread = threading.Thread(target=self._serve, args=self._listening.accept()[:1], daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, near: socket.socket) -> None:
        with ExitStack() as stack, suppress(OSError):
            self._keep(near, stack)
            far = socket.create_connection(self._server)
            self._keep(far, stack)
            up = threading.Thread(target=self._forward, args=(near, far), daemon=True)
            up.start()
            stack.callback(up.join)
            self._forward(far, near, held_up=True)

    def _keep(self, sock: socket.socket, stack: ExitStack) -> None:
        stack.callback(sock.close)
        with self._lock:
            if self._ended.is_set():
                raise OSError
            self._open.add(sock)
        stack.callback(self._forget, sock)

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)

    def _forward(self, source: socket.socket, target: socket.socket, *, held_up: bool = False) -> None:
        with suppress(OSError):
            while (piece := source.recv(_PIECE_BYTES)) and not (held_up and self._ended.wait(self._delay(len(piece)))):
                target.sendall(piece)
        # The other direction ends with this one.
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _delay(self, count: int) -> float:
        """How long until a piece has crossed the link, if it waits for its turn."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            return self._free_at - now
