"""A slow link on loopback: all connections through it share one rate."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

# Each connection sends this much at a time, so that they take turns.
_PIECE_BYTES = 16 << 10


@contextmanager
def throttled(endpoint: str, bytes_per_second: float) -> Iterator[str]:
    """Forwards connections to `http://host:port` and yields the URL to connect to; breaks them off at the end.

    The rate applies to the data that the server sends.
    """
    split = urlsplit(endpoint)
    assert split.hostname is not None
    link = _Link((split.hostname, split.port or 80), bytes_per_second)
    thread = threading.Thread(target=lambda: asyncio.run(link.run()), name="throttle", daemon=True)
    thread.start()
    port, stop = link.started.result()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop()
        thread.join()


class _Link:
    def __init__(self, server: tuple[str, int], bytes_per_second: float) -> None:
        self.started: Future[tuple[int, Callable[[], object]]] = Future()
        self._server, self._rate = server, bytes_per_second
        self._free_at = 0.0

    async def run(self) -> None:
        """Listens until it is stopped; asyncio then cancels the connections."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            self.started.set_result((port, lambda: loop.call_soon_threadsafe(stopped.set)))
            await stopped.wait()
            listening.close()

    async def _serve(self, near: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        with ExitStack() as stack, suppress(OSError):
            stack.callback(near_writer.transport.abort)
            far, far_writer = await asyncio.open_connection(*self._server)
            stack.callback(far_writer.transport.abort)
            await asyncio.gather(self._forward(near, far_writer), self._forward(far, near_writer, paced=True))

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, paced: bool = False
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(_PIECE_BYTES):
                if paced:
                    await asyncio.sleep(self._delay(len(piece)))
                target.write(piece)
                await target.drain()
        # The other direction ends with this one.
        target.close()

    def _delay(self, count: int) -> float:
        """How long until a piece has crossed the link, including the wait for its turn."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + count / self._rate
        return self._free_at - now
