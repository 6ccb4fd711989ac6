"""The consumers of a load as the streamer sees them: attached, told of complete extents, gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from coldstream.engine import messages
from coldstream.engine.actions import Action, Fail, Ready
from coldstream.engine.processes import EventLoop
from coldstream.engine.scheduler import Scheduler
from coldstream.model.job import JobOptions


@dataclass(slots=True)
class _AttachedConsumer:
    number: int
    socket: socket.socket
    backlog: list[bytes] = field(default_factory=list)


class Consumers:
    """All consumers of a load. What they say goes to the scheduler, and its actions to `do`."""

    def __init__(
        self,
        loop: EventLoop,
        scheduler: Scheduler,
        options: JobOptions,
        do: Callable[[Sequence[Action]], None],
        *,
        arena: tuple[int, int],
        catalog: tuple[int, int],
    ) -> None:
        """`arena` and `catalog` are the descriptor and the size of each."""
        self._loop, self._scheduler, self._options, self._do = loop, scheduler, options, do
        self._arena, self._catalog = arena, catalog
        self._consumers: dict[int, _AttachedConsumer] = {}
        self._attached = 0
        self._first_attached: float | None = None

    def listen(self, path: str) -> None:
        """Lets processes of the same user attach through a socket at `path`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(64)

        def accept() -> None:
            sock, _ = listener.accept()
            if messages.peer_uid(sock) != os.getuid():
                sock.close()
                return
            self.attach(sock)

        self._loop.watch(listener, accept)

    def attach(self, sock: socket.socket) -> None:
        """Gives a new consumer the arena and the catalog, and tells it of every extent that is complete."""
        if self._attached >= self._options.consumers:
            failure = {"kind": "usage", "message": "every consumer is attached"}
            with sock, contextlib.suppress(OSError):
                sock.send(messages.FAIL + json.dumps(failure).encode())
            return
        consumer = _AttachedConsumer(self._attached, sock)
        self._attached += 1
        now = time.monotonic()
        if self._first_attached is None:
            self._first_attached = now
        self._consumers[consumer.number] = consumer
        (arena, arena_bytes), (catalog, catalog_bytes) = self._arena, self._catalog
        numbers = (consumer.number, self._options.consumers, arena_bytes, catalog_bytes)
        hello = messages.HELLO_LAYOUT.pack(messages.HELLO, *numbers)
        with contextlib.suppress(OSError):  # it has died; its socket reports that
            socket.send_fds(sock, [hello], [arena, catalog])
        sock.setblocking(False)  # noqa: FBT003  # its only parameter
        self._loop.watch(sock, lambda: self._hear(consumer))
        for action in self._scheduler.attached(consumer.number, now):
            if isinstance(action, Ready):
                self._send(consumer, _ready_message(action))
            else:
                self._do([action])

    def announce(self, ready: Ready) -> None:
        """Tells all consumers of a complete extent."""
        message = _ready_message(ready)
        for consumer in self._consumers.values():
            self._send(consumer, message)

    def fail(self, failure: dict[str, Any]) -> None:
        """Tells all consumers why the load has failed."""
        for consumer in self._consumers.values():
            self._send(consumer, messages.FAIL + json.dumps(failure).encode()[:8000])

    @property
    def have_left(self) -> bool:
        """Whether every reader of a shared load has attached and gone: no one will read the arena again."""
        return bool(self._options.listen) and self._attached >= self._options.consumers and not self._consumers

    def missing(self, now: float) -> Fail | None:
        """Fails a load whose other consumers wait in vain: one must have died before it attached."""
        options = self._options
        if self._first_attached is None or self._attached >= options.consumers:
            return None
        if now - self._first_attached <= options.attach_seconds:
            return None
        count = f"{self._attached} of {options.consumers} readers"
        return Fail("readers", None, f"only {count} attached within {options.attach_seconds:.0f} s")

    def _hear(self, consumer: _AttachedConsumer) -> None:
        now, scheduler = time.monotonic(), self._scheduler
        actions: list[Action] = []
        while True:
            try:
                data = consumer.socket.recv(64)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._loop.close(consumer.socket)
                self._consumers.pop(consumer.number, None)
                actions += scheduler.detached(consumer.number, now)
                break
            letter, number = data[:1], messages.NUMBER.unpack(data[1:])[0]
            if letter == messages.WAIT:
                self._flush(consumer)
                actions += scheduler.waiting(consumer.number, number, now)
            elif letter == messages.RELEASE:
                actions += scheduler.released(consumer.number, number, now)
            elif letter == messages.LEAVE:
                # It is not told of anything more; its socket reports what it releases.
                del self._consumers[consumer.number]
                actions += scheduler.left(consumer.number, number, now)
        self._do(actions)

    def _send(self, consumer: _AttachedConsumer, message: bytes) -> None:
        consumer.backlog.append(message)
        self._flush(consumer)

    def _flush(self, consumer: _AttachedConsumer) -> None:
        """Sends what the socket takes; the rest goes when the consumer next waits."""
        while consumer.backlog:
            try:
                consumer.socket.send(consumer.backlog[0])
            except BlockingIOError:
                return
            except OSError:
                consumer.backlog.clear()
                return
            consumer.backlog.pop(0)


def _ready_message(ready: Ready) -> bytes:
    return messages.READY_LAYOUT.pack(messages.READY, ready.extent, ready.order, ready.offset)
