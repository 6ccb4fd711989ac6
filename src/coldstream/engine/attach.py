"""A program's two ends of a load: its owner, and its consumers.

An `Owner` starts the streamer and tells it what to load. A `Consumer` maps the arena and learns which extents are
ready; each is a `ctypes` array over the arena itself. A view of it, such as a tensor made with `torch.frombuffer`,
keeps the array alive; the engine reuses the memory when the array is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldstream.engine import messages
from coldstream.engine.load_statistics import LoadStatistics
from coldstream.engine.mapping import map_shared, remove_pages
from coldstream.machine.child_environment import STREAMER, child_environment
from coldstream.machine.limits import limits_named
from coldstream.model.job import Catalog, FileJob, JobOptions, pack
from coldstream.units import format_bytes

# Reports a failed import in the form of `messages.FAIL`, without using any of our modules. Collecting garbage while
# modules are imported takes 5 ms, and later would copy their pages in every worker.
_START = """
import gc, os, sys
gc.disable()
sys.path[:] = sys.argv[1].split(chr(10))
try:
    from coldstream.engine.streamer import main
except BaseException as exc:
    failure = b'{"kind": "start", "message": "did not start: %s"}' % type(exc).__name__.encode()
    os.write(int(sys.argv[2]), len(failure).to_bytes(4, "little") + b"!" + failure)
    os._exit(1)
gc.freeze()
gc.enable()
main(sys.argv[2:])
"""
_LAST_WORDS_SECONDS = 1.0
_STOP_SECONDS = 1.0
_detached: list[subprocess.Popen[bytes]] = []
# Consumers that were closed while their memory is in use: their sockets report when it no longer is.
_holding: set[Consumer] = set()


@dataclass(frozen=True, slots=True)
class Extent:
    """A ready extent."""

    number: int  # its place in the catalog
    file: int  # its file's number
    start: int  # its first byte in the file
    stop: int  # one past its last
    memory: ctypes.Array[ctypes.c_ubyte]  # the bytes, writable; valid as long as anything refers to it


class StreamerGoneError(Exception):
    """The streamer has ended, or the load failed; `failure` is its last message, if there will be no other."""

    def __init__(self, message: str, *, failure: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.failure = failure


def ready(sources: Sequence[Any], seconds: float | None, event: int = select.POLLIN) -> list[Any]:
    """Which sources can be read, or have ended, within `seconds`. Not by `select`, which refuses numbers over 1023."""
    poll, numbers = select.poll(), {source.fileno(): source for source in sources}
    for number in numbers:
        poll.register(number, event)
    return [numbers[number] for number, _ in poll.poll(None if seconds is None else seconds * 1000)]


class Consumer:
    """One process's view of a load. Not thread-safe, but memory may be dropped in any thread.

    After a fork the child must not use it, and attaches by itself.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Attaches; blocks until the streamer has its plan. StreamerGoneError: it ended, or all are attached."""
        try:
            consumers = self._map(sock)
        except BaseException:
            sock.close()
            raise
        self.total = len(self.catalog.extents)  # how many extents there are
        self.seen = 0  # how many `take` has returned
        self.failure: dict[str, Any] | None = None  # the streamer's message when the load failed, or None
        self._socket: socket.socket | None = sock
        self._pid = os.getpid()
        self._waiting = False
        self._held: dict[int, weakref.ref[Any]] = {}
        self._ready: deque[bytes] = deque()
        self._offsets: dict[int, tuple[int, int]] = {}
        self._left = False
        self._is_only = consumers == 1
        sock.setblocking(False)  # noqa: FBT003  # its only parameter

    def _map(self, sock: socket.socket) -> int:
        """Maps the arena and the catalog; returns the number of consumers."""
        try:
            with limits_named("attach to the load"):
                message, descriptors = messages.receive_descriptors(sock, messages.MESSAGE_BYTES_MAX, 2)
        except ConnectionError:
            message, descriptors = b"", []
        if message[:1] == messages.FAIL:
            failure = json.loads(message[1:])
            raise StreamerGoneError(failure["message"], failure=failure)
        if message[:1] != messages.HELLO:
            raise StreamerGoneError("it ended before the load began")
        _, _, consumers, arena_bytes, catalog_bytes = messages.HELLO_LAYOUT.unpack(message)
        try:
            with limits_named(f"map {format_bytes(arena_bytes)} for the load"):
                # All of the memory; sparse, and far larger than what is used of it.
                self.arena = map_shared(descriptors[0], arena_bytes)
                with mmap.mmap(descriptors[1], catalog_bytes, prot=mmap.PROT_READ) as packed:
                    self.catalog = Catalog.unpack(packed)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return int(consumers)

    @classmethod
    def connect(cls, path: str) -> Consumer:
        """Attaches to a streamer that listens at `path`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return cls(sock)

    def __repr__(self) -> str:
        return f"Consumer({self.seen} of {self.total} extents seen, {len(self._held)} held)"

    def fileno(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    def take(self) -> Extent | None:
        """The next ready extent, or None if there is none yet; then call `wait`."""
        self._receive()
        if not self._ready:
            return None
        _, number, _, offset = messages.READY_LAYOUT.unpack(self._ready.popleft())
        file, start, stop = self.catalog.extents[number]
        size = stop - start
        memory = (ctypes.c_ubyte * size).from_buffer(self.arena, offset)
        self._offsets[number] = (offset, offset + size)
        self._held[number] = weakref.ref(memory, lambda _: self._drop(number))
        self.seen += 1
        self._waiting = False
        return Extent(number, file, start, stop, memory)

    def wait(self) -> None:
        """Tells the streamer that this consumer has nothing to do until another extent is ready."""
        if not self._waiting and self._socket is not None:
            self._waiting = True
            self._send(messages.WAIT + messages.NUMBER.pack(self.seen))

    def extents(self, *, before_wait: Callable[[], bool] | None = None) -> Iterator[Extent]:
        """All extents, each once, as they become ready; blocks. StreamerGoneError: the load failed, see `failure`.

        `before_wait` is called when none is ready; it returns whether it released memory, so that one may be now.
        """
        while self.seen < self.total:
            if (extent := self.take()) is not None:
                yield extent
                # A reference here would keep its memory until the next extent.
                del extent
                continue
            if self.failure:
                raise StreamerGoneError(str(self.failure["message"]))
            if before_wait is not None and before_wait():
                continue
            self.wait()
            ready([self], 5.0)

    def close(self) -> None:
        """Detaches. Memory that is still in use stays valid, and the streamer is told when it no longer is."""
        if self._left or os.getpid() != self._pid:
            return
        self._left = True
        # A closed socket would mean that nothing is held.
        _holding.add(self)
        if self._held:
            self._send(messages.LEAVE + messages.NUMBER.pack(self.seen))
        if not self._held:
            self._hang_up()

    def _hang_up(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
        _holding.discard(self)

    def _receive(self) -> None:
        while self._socket is not None:
            try:
                data = self._socket.recv(messages.MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data[:1] == messages.READY:
                self._ready.append(data)
            elif data[:1] == messages.FAIL:
                self.failure = json.loads(data[1:])
                return
            elif not data:
                if not self._ready and self.seen < self.total and self.failure is None:
                    raise StreamerGoneError("it ended in the middle of the load")
                return

    def _drop(self, number: int) -> None:
        """The last reference to an extent is gone. Runs in any thread, in a fork, or when Python ends."""
        if os.getpid() != self._pid:
            return
        self._held.pop(number, None)
        start, stop = self._offsets.pop(number)
        was_sent = self._send(messages.RELEASE + messages.NUMBER.pack(number))
        if not was_sent and self._left and self._is_only:
            # The streamer has ended: no one reuses the memory, writes it to the local copy, or reads it. Release its
            # pages at once; an extent starts on a page.
            with contextlib.suppress(OSError, AttributeError, TypeError):
                remove_pages(self.arena, start, stop)
        if self._left and not self._held:
            self._hang_up()

    def _send(self, message: bytes) -> bool:
        """Returns whether the streamer still runs."""
        sock = self._socket
        if sock is None:
            return False
        try:
            sock.send(message)
        except BlockingIOError:
            # The streamer is far behind. This message is a few bytes, and the streamer never waits for a consumer.
            with contextlib.suppress(OSError, ValueError):
                ready([sock], 1.0, select.POLLOUT)
                sock.send(message)
        except OSError:
            return False  # receiving reports it
        return True


class Owner:
    """The process that started a load. Not thread-safe."""

    def __init__(self, *, workers: int, connections: int, tls: bool = False, ca_bundle: str | None = None) -> None:
        """Starts the streamer, which gets ready while its plan is made.

        With `tls` it reads the trusted certificates early, once for all workers. `ca_bundle` replaces the environment's
        AWS_CA_BUNDLE.
        """
        _detached[:] = [process for process in _detached if process.poll() is None]
        package = str(Path(__file__).resolve().parents[2])
        # The site's start-up files would take as long as the rest; what they add to the path is already in it.
        paths = "\n".join(dict.fromkeys([package, *(path for path in sys.path if path)]))
        with limits_named("start the streaming process"):
            mine, theirs = _socketpair()
            numbers = [theirs.fileno(), os.getpid(), workers, connections, int(tls)]
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-S", "-c", _START, paths, *map(str, numbers)],
                    pass_fds=[theirs.fileno()],
                    # It gets signed links over the socket, and needs no key.
                    env=child_environment(only=STREAMER) | ({"AWS_CA_BUNDLE": ca_bundle} if ca_bundle else {}),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    # Python has no stderr if the descriptor was closed; something else may have its number now.
                    stderr=subprocess.DEVNULL if sys.__stderr__ is None else None,
                )
        self.pid = self._process.pid
        # The streamer's last ones, or None; final when it `has_finished` fetching everything.
        self.statistics: LoadStatistics | None = None
        self.has_finished = False
        # Once the local copy is finished or failed: why it failed, or "". None before.
        self.copy_failure: str | None = None
        self.failure: dict[str, Any] | None = None  # the streamer's message when the load failed, or None
        # Segments, counted over all files, whose link was refused and that wait for `link`.
        self.renewals: list[int] = []
        self.listening = False  # whether consumers in other processes can connect
        self.gone = False  # whether the streamer has ended
        self._frames = messages.Frames(mine)
        self._pid = os.getpid()

    def fileno(self) -> int:
        return self._frames.fileno()

    def load(self, files: Sequence[FileJob], catalog: Catalog, settings: JobOptions) -> None:
        """Tells it what to load."""
        descriptor = os.memfd_create("coldstream-catalog", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(catalog.pack())
            self._tell(messages.SETTINGS, pack(settings))
            self._tell(messages.PLAN, pack([*files]), (descriptor,))
        finally:
            os.close(descriptor)

    def consumer(self) -> Consumer:
        """Attaches a consumer in this process; blocks until the streamer has its plan."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._tell(messages.CONSUMER, b"", (theirs.fileno(),))
            except StreamerGoneError:
                mine.close()
                raise
        return Consumer(mine)

    def wait_until_listening(self) -> None:
        """Blocks until consumers can connect."""
        while not self.listening:
            if self.gone or self.failure:
                raise StreamerGoneError("it ended before the load began")
            self.hear(None)

    def hear(self, seconds: float | None = 0.0) -> None:
        """Takes in the streamer's messages; waits for them up to `seconds`, or without a limit."""
        if not self.gone and ready([self], seconds):
            self.gone = not self._frames.receive()
        for letter, payload in self._frames.frames():
            if letter in {messages.PROGRESS, messages.END}:
                self.statistics = LoadStatistics.unpack(payload)
                self.has_finished |= letter == messages.END
            elif letter == messages.RENEW:
                self.renewals.append(messages.NUMBER.unpack(payload)[0])
            elif letter == messages.STORED:
                self.copy_failure = json.loads(payload)["failed"]
            elif letter == messages.FAIL:
                self.failure = json.loads(payload)
            elif letter == messages.LISTENING:
                self.listening = True

    def last_words(self) -> dict[str, Any]:
        """Why the load failed: the streamer's last message, or how it ended if there was none."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while self.failure is None and not self.gone and time.monotonic() < deadline:
            self.hear(0.05)
        if self.failure is not None:
            return self.failure
        try:
            code = self._process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            return {"kind": "gone", "message": "does not answer"}
        if code >= 0:
            return {"kind": "gone", "message": f"ended with exit code {code}"}
        kind = "killed" if code == -signal.SIGKILL else "gone"
        return {"kind": kind, "message": f"was killed ({signal.Signals(-code).name})"}

    def link(self, segment: int, url: str | None, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Gives a segment a new link; None if the link cannot be renewed."""
        document = None if url is None else {"url": url, "headers": [list(pair) for pair in headers]}
        with contextlib.suppress(StreamerGoneError):  # `hear` reports it
            self._tell(messages.LINK, messages.NUMBER.pack(segment) + json.dumps(document).encode())

    def detach(self) -> None:
        """Lets it finish the local copy by itself; it ends then, or with this process."""
        with contextlib.suppress(StreamerGoneError):
            self._tell(messages.DETACH)
        self._frames.socket.close()
        # Reaped when another one starts.
        _detached.append(self._process)

    def stop(self) -> None:
        """Ends the streamer and all of its processes."""
        if os.getpid() != self._pid:
            return
        with contextlib.suppress(StreamerGoneError):
            self._tell(messages.QUIT)
        self._frames.socket.close()
        if not self._ends_within(_STOP_SECONDS):
            self._process.kill()
        self._process.wait()

    def _ends_within(self, seconds: float) -> bool:
        """Waits until the streamer has ended. `Popen.wait` with a limit looks only every 50 ms."""
        if self._process.poll() is not None:
            return True
        # OSError: the kernel is too old, or no descriptor is left.
        with contextlib.suppress(OSError), open(os.pidfd_open(self.pid), "rb", buffering=0) as process:
            return bool(ready([process], seconds))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def _tell(self, letter: bytes, payload: bytes = b"", descriptors: tuple[int, ...] = ()) -> None:
        try:
            self._frames.send(letter, payload, descriptors)
        except OSError as exc:
            raise StreamerGoneError("it ended before it read a message") from exc


def _socketpair() -> tuple[socket.socket, socket.socket]:
    """Two ends with other numbers than the standard streams, which this process may have closed."""
    one, other = socket.socketpair()
    return _moved(one), _moved(other)


def _moved(sock: socket.socket) -> socket.socket:
    if sock.fileno() > 2:
        return sock
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
