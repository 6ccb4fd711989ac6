"""A consumer and what it tells, against the other end of its socket."""

from __future__ import annotations

import gc
import mmap
import os
import socket
from collections.abc import Iterator

import pytest

from coldstream.engine import attach as attach_module
from coldstream.engine import messages
from coldstream.engine.arena import PAGE_BYTES
from coldstream.engine.attach import Consumer
from coldstream.model.job import Catalog, CatalogFile

EXTENTS = 3


class Streamer:
    """Its end: an arena full of 7s, of which every extent is ready."""

    def __init__(self, *, consumers: int) -> None:
        self.socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        size = EXTENTS * PAGE_BYTES
        bounds = tuple((0, number * PAGE_BYTES, (number + 1) * PAGE_BYTES) for number in range(EXTENTS))
        packed = Catalog((CatalogFile("model.safetensors", size, b""),), bounds).pack()
        descriptors = [os.memfd_create(name) for name in ("arena", "catalog")]
        os.pwrite(descriptors[0], bytes([7]) * size, 0)
        os.pwrite(descriptors[1], packed, 0)
        self.arena = mmap.mmap(descriptors[0], size)
        socket.send_fds(
            self.socket, [messages.HELLO_LAYOUT.pack(messages.HELLO, 0, consumers, size, len(packed))], descriptors
        )
        for descriptor in descriptors:
            os.close(descriptor)
        for number in range(EXTENTS):
            self.socket.send(messages.READY_LAYOUT.pack(messages.READY, number, number, number * PAGE_BYTES))
        self.socket.settimeout(10)

    def hear(self) -> tuple[bytes, int]:
        """A letter and its number; no letter when the consumer has hung up."""
        data = self.socket.recv(64)
        return data[:1], messages.NUMBER.unpack(data[1:])[0] if data else 0

    def close(self) -> None:
        self.socket.close()
        self.theirs.close()


@pytest.fixture(params=[1, 2])
def streamer(request: pytest.FixtureRequest) -> Iterator[Streamer]:
    found = Streamer(consumers=request.param)
    yield found
    found.close()


def test_what_is_held_when_it_closes_is_released_one_by_one(streamer: Streamer) -> None:
    consumer = Consumer(streamer.theirs)
    first, second = consumer.take(), consumer.take()
    assert first is not None
    assert second is not None
    consumer.close()
    consumer.close()
    # Nobody refers to it any more but its own memory.
    del consumer
    gc.collect()
    assert streamer.hear() == (messages.LEAVE, 2)
    streamer.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        streamer.hear()
    del second
    assert streamer.hear() == (messages.RELEASE, 1)
    assert streamer.arena[PAGE_BYTES] == 7, "it is the streamer's, which may still write it to the local copy"
    assert bytes(first.memory) == bytes([7]) * PAGE_BYTES
    del first
    assert streamer.hear() == (messages.RELEASE, 0)
    assert streamer.hear() == (b"", 0)


def test_a_consumer_that_holds_nothing_hangs_up_as_it_closes(streamer: Streamer) -> None:
    consumer = Consumer(streamer.theirs)
    assert consumer.take() is not None
    assert streamer.hear() == (messages.RELEASE, 0)
    consumer.close()
    assert streamer.hear() == (b"", 0)


@pytest.mark.parametrize("consumers", [1, 2])
def test_memory_of_a_load_that_is_over_goes_back_by_the_page_when_nobody_else_looks(consumers: int) -> None:
    streamer = Streamer(consumers=consumers)
    consumer = Consumer(streamer.theirs)
    first, second = consumer.take(), consumer.take()
    consumer.close()
    streamer.socket.close()
    del first
    assert streamer.arena[0] == (0 if consumers == 1 else 7)
    assert second is not None
    assert bytes(second.memory) == bytes([7]) * PAGE_BYTES


def test_the_protocol_never_gets_the_number_of_a_closed_standard_stream() -> None:
    pid = os.fork()
    if pid == 0:
        os.close(2)
        one, other = attach_module._socketpair()
        os._exit(not (one.fileno() > 2 and other.fileno() > 2))
    assert os.waitpid(pid, 0)[1] == 0
