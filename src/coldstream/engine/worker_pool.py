"""The fetching processes as the streamer sees them: started, told what to fetch, replaced when they die."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coldstream.engine import messages
from coldstream.engine.arena import PAGE_BYTES
from coldstream.engine.processes import EventLoop, failure_of, fork, receive
from coldstream.model.job import SegmentSource, pack


class WorkerEvents(Protocol):
    """What the pool reports: the result of a fetch; that a process died, that another one replaces it, or cannot."""

    def fetched(self, connection: int, result: messages.FetchResult) -> None: ...
    def lost(self, connections: Sequence[int]) -> None: ...
    def regained(self, connections: Sequence[int]) -> None: ...
    def gave_up(self, failure: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class _WorkerProcess:
    pid: int
    control: socket.socket
    connections: dict[int, socket.socket]
    started: set[int] = field(default_factory=set)
    cpu_seconds: float = 0.0


class WorkerPool:
    """All workers of a streamer; connection c belongs to worker c modulo their number.

    `received` has for each connection the bytes that its present fetch has received; the workers write it.
    """

    def __init__(self, loop: EventLoop, events: WorkerEvents, *, arena: int, workers: int, connections: int) -> None:
        self._loop, self._events, self._arena = loop, events, arena
        self._connections = connections
        self._counters = mmap.mmap(-1, max(PAGE_BYTES, 8 * connections))
        self.received = memoryview(self._counters).cast("Q")
        self.deaths = 0
        self._lost_cpu_seconds = 0.0
        self._mapped_bytes = 0
        self.sources: list[SegmentSource] = []  # with their present links
        self.versions: list[int] = []  # how often each link was renewed
        self._workers = [self._spawn(number, workers) for number in range(workers)]

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def cpu_seconds(self) -> float:
        return sum(worker.cpu_seconds for worker in self._workers) + self._lost_cpu_seconds

    def begin(self, sources: Sequence[SegmentSource], mapped_bytes: int) -> None:
        self.sources, self.versions, self._mapped_bytes = [*sources], [0] * len(sources), mapped_bytes
        for worker in self._workers:
            self._introduce(worker)

    def renew(self, segment: int, source: SegmentSource) -> None:
        self.sources[segment] = source
        self.versions[segment] += 1
        for worker in self._workers:
            self._inform(worker, segment)

    def fetch(self, connection: int, request: messages.FetchRequest) -> None:
        worker = self._workers[connection % len(self._workers)]
        if connection not in worker.started:
            worker.started.add(connection)
            _tell(worker.control, messages.START + messages.NUMBER.pack(connection))
        self.received[connection] = 0
        _tell(worker.connections[connection], request.pack())

    def stop(self, connection: int, chunk: int) -> None:
        """Stops a fetch if the connection is still at this chunk; its result says how far it came."""
        control = self._workers[connection % len(self._workers)].control
        _tell(control, messages.STOP + messages.NUMBERS.pack(connection, chunk))

    def kill(self) -> None:
        """Ends all workers at once, and replaces none: they hold nothing that has to be saved. Idempotent."""
        for worker in self._workers:
            for sock in (worker.control, *worker.connections.values()):
                self._loop.close(sock)
            with contextlib.suppress(OSError):
                os.kill(worker.pid, signal.SIGKILL)
        for worker in self._workers:
            with contextlib.suppress(OSError):
                os.waitpid(worker.pid, 0)
        self._workers.clear()

    def _spawn(self, number: int, workers: int) -> _WorkerProcess:
        control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pairs = {
            connection: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for connection in range(number, self._connections, workers)
        }
        theirs = {connection: pair[1] for connection, pair in pairs.items()}
        kept = {self._arena, their_control.fileno(), *(sock.fileno() for sock in theirs.values())}
        pid = fork(lambda: self._run_worker(their_control, theirs), keep=kept)
        their_control.close()
        for sock in theirs.values():
            sock.close()
        worker = _WorkerProcess(pid, control, {connection: pair[0] for connection, pair in pairs.items()})
        self._loop.watch(control, lambda: self._hear_control(worker))
        for connection, sock in worker.connections.items():
            self._loop.watch(sock, lambda c=connection: self._hear_connection(worker, c))  # type: ignore[misc]
        return worker

    def _run_worker(self, control: socket.socket, connections: dict[int, socket.socket]) -> None:
        """The child's side of the fork."""
        try:
            from coldstream.engine.worker import Worker

            Worker(control=control, connections=connections, arena=self._arena, counters=self._counters).run()
        except Exception as exc:  # noqa: BLE001  # nothing above this catches it
            with contextlib.suppress(OSError):
                control.send(messages.FAIL + json.dumps(failure_of(exc)).encode())

    def _introduce(self, worker: _WorkerProcess) -> None:
        _tell(worker.control, messages.MAP + messages.SIZE.pack(self._mapped_bytes))
        for segment in range(len(self.sources)):
            self._inform(worker, segment)

    def _inform(self, worker: _WorkerProcess, segment: int) -> None:
        head = messages.SOURCE + messages.NUMBERS.pack(segment, self.versions[segment])
        _tell(worker.control, head + pack(self.sources[segment]))

    def _hear_control(self, worker: _WorkerProcess) -> None:
        """Replaces a worker that died; one that sends a message says why it cannot go on."""
        if message := receive(worker.control):
            self._events.gave_up(json.loads(message[1:]))
            return
        for sock in (worker.control, *worker.connections.values()):
            self._loop.close(sock)
        self._lost_cpu_seconds += worker.cpu_seconds
        self.deaths += 1
        self._events.lost(sorted(worker.connections))
        index = self._workers.index(worker)
        replacement = self._workers[index] = self._spawn(index, len(self._workers))
        if self._mapped_bytes:
            self._introduce(replacement)
        self._events.regained(sorted(replacement.connections))

    def _hear_connection(self, worker: _WorkerProcess, connection: int) -> None:
        data = receive(worker.connections[connection])
        if not data:
            self._loop.close(worker.connections[connection])
            return  # the control socket reports the death too
        result = messages.FetchResult.unpack(data)
        worker.cpu_seconds = max(worker.cpu_seconds, result.cpu_seconds)
        self._events.fetched(connection, result)


def _tell(sock: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # the worker has died; its control socket reports that
        sock.send(message)
