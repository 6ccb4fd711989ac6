"""What the streamer needs to run its child processes: an event loop over sockets, forks, failures as documents."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
from collections.abc import Callable, Collection
from typing import Any

from coldstream.engine import messages
from coldstream.errors import where_raised
from coldstream.machine.limits import limit_error

_DESCRIPTORS_MAX = 8192  # how far to look for open files where /proc does not list them


class EventLoop:
    """Calls a handler when its socket has something to read."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, source: Any, handler: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, handler)

    def unwatch(self, source: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def close(self, sock: socket.socket) -> None:
        self.unwatch(sock)
        sock.close()

    def poll(self, seconds: float, is_over: Callable[[], bool]) -> None:
        """Waits for events and handles them until `is_over`."""
        for key, _ in self._selector.select(seconds):
            key.data()
            if is_over():
                return


def fork(run: Callable[[], None], *, keep: Collection[int]) -> int:
    """Runs a function in a child process that has only the descriptors `keep` and the standard streams."""
    pid = os.fork()
    if pid:
        return pid
    try:
        try:
            opened = {int(name) for name in os.listdir("/proc/self/fd")}
        except OSError:
            opened = {*range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _DESCRIPTORS_MAX))}
        for descriptor in opened.difference(keep, (0, 1, 2)):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        run()
    finally:
        os._exit(0)


def receive(sock: socket.socket) -> bytes:
    """The next message; empty when the peer has ended, however it did."""
    try:
        with contextlib.suppress(ConnectionResetError):
            return sock.recv(messages.MESSAGE_BYTES_MAX)
        # The peer ended with messages unread. The kernel reports that once, before the peer's last message.
        return sock.recv(messages.MESSAGE_BYTES_MAX)
    except OSError:
        return b""


def failure_of(exc: Exception) -> dict[str, Any]:
    """An unexpected exception as the document of `messages.FAIL`: a limit of this machine, or an internal error."""
    if error := limit_error(exc, "stream"):
        return {"kind": "limit", "message": error.message, "hint": error.hint}
    return {"kind": "internal", "message": f"failed: {where_raised(exc)}"}
