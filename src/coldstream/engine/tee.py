"""The tee: a process that writes verified chunks from the arena to the local copy, behind the load.

Forked by the streamer. A disk that is slow or full costs the load nothing: it waits here, and ends here.
"""

from __future__ import annotations

import mmap
import os
import socket
from pathlib import Path

import xxhash

from coldstream.cache.copy_writer import Writer
from coldstream.engine import messages
from coldstream.engine.catalog import Catalog
from coldstream.errors import ColdstreamError
from coldstream.model.job import JobOptions


def run(sock: socket.socket, arena: int, arena_bytes: int, catalog: int, settings: JobOptions, *, mend: bool) -> None:
    """Writes until the streamer closes the socket; closes with a message when the disk refuses.

    Args:
        sock: Where the streamer tells what to write.
        arena: Its descriptor.
        arena_bytes: Its size.
        catalog: Descriptor of the catalog: the files' heads are in it, and never in the arena.
        settings: Where the local copy is.
        mend: Whether it is complete, and a chunk of it is wrong.
    """
    assert settings.cache is not None
    memory = memoryview(mmap.mmap(arena, arena_bytes))
    os.nice(5)  # the load comes first
    writer = None
    try:
        writer = Writer.open(Path(settings.cache), bytes_max=settings.cache_bytes_max, mend=mend)
        if writer is None:
            sock.send(messages.FAIL + b"another process is writing it")
            return
        with mmap.mmap(catalog, 0, prot=mmap.PROT_READ) as packed:
            _write_heads(writer, Catalog.unpack(packed))
        while data := sock.recv(messages.MESSAGE_BYTES_MAX):
            file, chunk, offset, size, digest = messages.unpack_store(data)
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


def _write_heads(writer: Writer, catalog: Catalog) -> None:
    """The chunks that lie in the headers, which were read to make the plan."""
    for number, file in enumerate(catalog.files):
        start = 0
        for chunk, stop in enumerate(file.head_stops):
            if not writer.have(number, chunk):
                view = memoryview(file.head)[start:stop]
                writer.write(number, chunk, view, xxhash.xxh3_128_digest(view))
            start = stop
