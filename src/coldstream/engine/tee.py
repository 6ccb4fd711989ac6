"""The tee: writes verified chunks from the arena to the local copy, behind the load, in a process of its own.

A disk that is slow or full costs the load nothing: only the tee waits, and only the tee ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from coldstream.engine import messages
from coldstream.engine.mapping import map_shared
from coldstream.engine.processes import EventLoop, fork, receive
from coldstream.errors import ColdstreamError
from coldstream.model.job import Catalog, JobOptions

if TYPE_CHECKING:
    from coldstream.cache.copy_writer import CopyWriter


class Tee:
    """The streamer's end; `message` is why it failed, or ""."""

    def __init__(
        self,
        loop: EventLoop,
        options: JobOptions,
        *,
        arena: tuple[int, int],
        catalog: int,
        on_stored: Callable[[], None],
        on_failed: Callable[[], None],
    ) -> None:
        """The process is started by `start`, or by the first chunk.

        `arena` is a descriptor and a size. `on_stored` is called when the last chunk that was sent is written,
        `on_failed` when nothing will be written any more.
        """
        self._loop, self._options, self._arena, self._catalog = loop, options, arena, catalog
        self._on_stored, self._on_failed = on_stored, on_failed
        self._socket: socket.socket | None = None
        self.is_open = options.cache is not None
        self.message = ""

    def start(self, *, repair: bool) -> None:
        """Starts the process; to `repair`, the copy is complete, and a chunk of it is wrong."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fork(lambda: self._write(theirs, repair=repair), keep={self._arena[0], self._catalog, theirs.fileno()})
        theirs.close()
        self._socket = mine
        self._loop.watch(mine, self._hear)

    def send(self, request: messages.StoreRequest) -> None:
        if self._socket is None:
            # The copy was complete, and a chunk of it is wrong.
            self.start(repair=True)
        assert self._socket is not None
        with contextlib.suppress(OSError):  # it has died; `_hear` notices
            self._socket.send(request.pack())

    def close(self) -> None:
        """Ends the process, which closes its journal when the socket ends; nothing in it depends on that."""
        if self._socket is not None:
            self._socket.close()

    def _hear(self) -> None:
        assert self._socket is not None
        data = receive(self._socket)
        if data[:1] == messages.STORED:
            self._on_stored()
            return
        # The load goes on without it.
        self.message = data[1:].decode("utf-8", "replace") or "the writing process died"
        self._loop.close(self._socket)
        self._socket, self.is_open = None, False
        self._on_failed()

    def _write(self, sock: socket.socket, *, repair: bool) -> None:
        """The process: writes until the streamer closes the socket, or the disk fails, which it reports.

        The catalog has the files' headers, which are never in the arena.
        """
        # Not at the top: a streamer without a local copy starts faster.
        from coldstream.cache.copy_writer import CopyWriter

        options, (arena, arena_bytes) = self._options, self._arena
        assert options.cache is not None
        memory = memoryview(map_shared(arena, arena_bytes)).cast("B")
        os.nice(5)  # the load comes first
        writer = None
        try:
            writer = CopyWriter.open(Path(options.cache), bytes_max=options.cache_bytes_max, repair=repair)
            if writer is None:
                sock.send(messages.FAIL + b"another process is writing it")
                return
            with mmap.mmap(self._catalog, 0, prot=mmap.PROT_READ) as packed:
                _write_headers(writer, Catalog.unpack(packed))
            while data := sock.recv(messages.MESSAGE_BYTES_MAX):
                file, chunk, offset, size, digest = messages.StoreRequest.unpack(data)
                if not size:
                    writer.forget(file, chunk)
                    continue
                writer.write(file, chunk, memory[offset : offset + size], digest)
                sock.send(messages.STORED)
        except ColdstreamError as exc:
            sock.send(messages.FAIL + exc.message.encode()[:2000])
        except OSError:
            return  # the streamer is gone
        finally:
            if writer is not None:
                writer.close()


def _write_headers(writer: CopyWriter, catalog: Catalog) -> None:
    for number, file in enumerate(catalog.files):
        start = 0
        for chunk, stop in enumerate(file.head_stops):
            if not writer.have(number, chunk):
                view = memoryview(file.head)[start:stop]
                writer.write(number, chunk, view, xxhash.xxh3_128_digest(view))
            start = stop
