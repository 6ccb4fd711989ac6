"""A fetching process: one thread per connection, each with its own socket to the streamer.

The main thread listens for what concerns all connections: segments and their links, the arena, connections to start or
to stop. It ends, and the process with it, when the streamer is gone.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import threading
import time
from contextlib import suppress
from typing import NamedTuple

import xxhash

from coldstream.engine import messages
from coldstream.engine.cdn_choice import status_number
from coldstream.engine.mapping import PageMaker, map_shared
from coldstream.engine.processes import receive
from coldstream.errors import ConfigError, where_raised
from coldstream.model.job import SegmentSource, unpack_source
from coldstream.net.connection import Connection, RangeReply
from coldstream.net.http_message import FetchError, Proxy, Target, parse_target, proxy_for

# One read of a local file: large enough to cost little, small enough to be stopped soon.
_READ_BYTES = 4 << 20
_LINK_SECONDS = 10.0
_STACK_BYTES = 1 << 20


class _KnownSegment(NamedTuple):
    source: SegmentSource
    version: int
    routes: dict[bool, tuple[Target, Proxy | None]]  # the parsed links, the CDN's at True


class Worker:
    """What the threads of a fetching process share."""

    def __init__(
        self, *, control: socket.socket, connections: dict[int, socket.socket], arena: int, counters: mmap.mmap
    ) -> None:
        """Takes the socket for messages to the whole process, and those of its connections by number.

        In `counters`, shared memory, the u64 at a connection's number is how many bytes its fetch has received.
        """
        self._control, self._sockets, self._descriptor = control, connections, arena
        self._counters = memoryview(counters).cast("Q")
        self._arena = memoryview(b"")
        self._pages: PageMaker | None = None
        self._segments: dict[int, _KnownSegment] = {}
        self._learnt = threading.Condition()
        self._links: dict[int, Connection] = {}
        # The bucket's link while `_links` has the CDN's, and vice versa.
        self._spare: dict[int, Connection] = {}
        self._fetching: dict[int, int] = {}
        self._opened: dict[str, int] = {}
        self._opening = threading.Lock()

    def run(self) -> None:
        """Serves until the streamer closes the control socket."""
        # With the default of 8 MiB, many connections would use up a limited address space.
        threading.stack_size(_STACK_BYTES)
        while message := receive(self._control):
            letter, rest = message[:1], message[1:]
            if letter == messages.SOURCE:
                self._learn(rest)
            elif letter == messages.MAP:
                (size,) = messages.SIZE.unpack(rest)
                memory = map_shared(self._descriptor, size)
                self._arena, self._pages = memoryview(memory).cast("B"), PageMaker(memory)
            elif letter == messages.START:
                (connection,) = messages.NUMBER.unpack(rest)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            elif letter == messages.STOP:
                connection, chunk = messages.NUMBERS.unpack(rest)
                link = self._links.get(connection)
                if link is not None and self._fetching.get(connection) == chunk:
                    link.cancel()

    def _learn(self, data: bytes) -> None:
        number, version = messages.NUMBERS.unpack_from(data)
        source = unpack_source(data[messages.NUMBERS.size :])
        links = {False: source.segment.url, True: source.segment.cdn}
        targets = {cdn: parse_target(url) for cdn, url in links.items() if url}
        routes = {cdn: (target, proxy_for(target)) for cdn, target in targets.items()}
        with self._learnt:
            self._segments[number] = _KnownSegment(source, version, routes)
            self._learnt.notify_all()

    def _segment(self, number: int, version: int) -> _KnownSegment:
        """The segment, as soon as the main thread has received it."""
        deadline = time.monotonic() + _LINK_SECONDS
        with self._learnt:
            while (known := self._segments.get(number)) is None or known.version < version:
                if not self._learnt.wait(deadline - time.monotonic()):
                    raise FetchError("broken", "the worker did not receive the link")
        return known

    def _serve(self, connection: int) -> None:
        """One connection's thread."""
        sock = self._sockets[connection]
        while data := receive(sock):
            request = messages.FetchRequest.unpack(data)
            self._counters[connection] = 0
            self._fetching[connection] = request.chunk
            try:
                result = self._fetch(connection, request)
            except Exception as exc:  # noqa: BLE001  # without a result, the chunk would never be fetched
                result = messages.FetchResult("broken", request.chunk, message=f"internal error: {where_raised(exc)}")
            with suppress(OSError):  # the streamer has ended; the next receive reports it
                sock.send(result._replace(cpu_seconds=time.process_time()).pack())

    def _fetch(self, connection: int, fetch: messages.FetchRequest) -> messages.FetchResult:
        view = self._arena[fetch.offset : fetch.offset + fetch.stop - fetch.start]
        if self._pages is not None:
            self._pages.make(fetch.offset, fetch.offset + fetch.stop - fetch.start)
        first_byte, path, cache = 0.0, "a file", 0
        try:
            known = self._segment(fetch.segment, fetch.version)
            path = known.source.path
            if fetch.is_local:
                self._read(known.source, fetch, view, connection)
            else:
                answer = self._get(known, fetch, view[fetch.skip :], connection)
                first_byte = answer.first_byte_seconds
                cache = status_number(answer.cache_status) if fetch.cdn else 0
        except FetchError as exc:
            wait = exc.retry_after_seconds
            return messages.FetchResult(
                exc.kind, fetch.chunk, exc.received, retry_after_seconds=wait, message=exc.message
            )
        except ConfigError as exc:
            return messages.FetchResult("tls", fetch.chunk, message=exc.message)
        except OSError as exc:
            return messages.FetchResult("local", fetch.chunk, message=f"{path}: {exc.strerror or exc}")
        digest = xxhash.xxh3_128_digest(view) if fetch.hashed or fetch.checked else b""
        kind, message = "done", ""
        if fetch.checked and digest != fetch.digest:
            kind = "local" if fetch.is_local else "corrupt"
            message = (
                f"{path}: bytes {fetch.start}-{fetch.stop - 1} differ from what was uploaded "
                f"(XXH3 {digest.hex()[:8]}…, the manifest says {fetch.digest.hex()[:8]}…)"
            )
        received = len(view) - fetch.skip
        return messages.FetchResult(
            kind, fetch.chunk, received, first_byte, digest=digest, cache=cache, message=message
        )

    def _get(self, known: _KnownSegment, fetch: messages.FetchRequest, view: memoryview, connection: int) -> RangeReply:
        target, proxy = known.routes[fetch.cdn]
        link = self._links.get(connection)
        if link is None or link.place != target.place:
            link = self._exchange(connection, target, proxy)
        source, segment = known.source, known.source.segment
        try:
            return link.get(
                target,
                fetch.wire_start + fetch.skip,
                fetch.wire_stop,
                view,
                etag=segment.etag,
                size=source.size,
                headers=source.cdn_headers if fetch.cdn else segment.headers,
                cached=fetch.cdn,
                on_progress=lambda count: self._counters.__setitem__(connection, count),
            )
        except FetchError:
            link.close()
            del self._links[connection]
            raise

    def _exchange(self, connection: int, target: Target, proxy: Proxy | None) -> Connection:
        """The link to another server than that of the last request, which is kept for the next change."""
        spare, last = self._spare.pop(connection, None), self._links.get(connection)
        if last is not None:
            self._spare[connection] = last
        if spare is not None and spare.place != target.place:
            spare.close()
            spare = None
        link = self._links[connection] = spare or Connection(target, proxy=proxy)
        return link

    def _read(self, source: SegmentSource, fetch: messages.FetchRequest, view: memoryview, connection: int) -> None:
        # A local copy is of the whole file, a segment's local file only of the segment.
        path, start = (source.copy, 0) if source.copy is not None else (source.segment.local, source.start)
        assert path is not None
        descriptor = self._open(path)
        done = fetch.skip
        while done < len(view):
            count = os.preadv(descriptor, [view[done : done + _READ_BYTES]], fetch.start - start + done)
            if not count:
                raise OSError(errno.ENODATA, "it is shorter than expected")
            done += count
            self._counters[connection] = done - fetch.skip

    def _open(self, path: str) -> int:
        with self._opening:
            if path not in self._opened:
                self._opened[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._opened[path]
