"""The streamer: the process that runs the scheduler, between its workers and its consumers.

Started by its owner, which resolves names, holds the credentials and tells it what to load; single-threaded, so that it
may fork its workers at any time. It ends with its owner: a descriptor of that process tells, even when a fork of it
still holds the socket.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coldstream.engine import messages
from coldstream.engine.actions import Action, Chunk, Fail, Failure, Fetch, Ready, Renew, Stop, StoreChunk
from coldstream.engine.arena import PAGE_BYTES, Arena
from coldstream.engine.cdn_choice import STATUSES
from coldstream.engine.pace import Pace
from coldstream.engine.scheduler import Scheduler
from coldstream.errors import ConfigError, where_raised
from coldstream.machine.limits import limit_error
from coldstream.machine.processors import Processors
from coldstream.model.job import FileJob, JobOptions, SegmentSource, pack_source, sources, unpack_files, unpack_options
from coldstream.net.tls import context_for, tls_settings

CONNECTIONS_FIRST = 8
READS_PER_WORKER = 2
RESPAWNS_MAX = 8
PROGRESS_SECONDS = 0.1
# What the process needs beside the connections' sockets.
_DESCRIPTORS_SPARE = 64
# How far to look for open files where /proc does not list them.
_DESCRIPTORS_MAX = 8192


@dataclass(slots=True)
class _WorkerProcess:
    """One worker, seen from here."""

    pid: int
    control: socket.socket
    connections: dict[int, socket.socket]
    started: set[int] = field(default_factory=set)
    cpu_seconds: float = 0.0


@dataclass(slots=True)
class _Attached:
    """One consumer, seen from here."""

    number: int
    socket: socket.socket
    backlog: list[bytes] = field(default_factory=list)


class Streamer:
    """One load, from the owner's first word to the end of the process."""

    def __init__(self, owner: messages.Frames, *, owner_pid: int, workers: int, connections: int) -> None:
        self._owner, self._owner_pid = owner, owner_pid
        self._connections = connections
        self._selector = selectors.DefaultSelector()
        self._arena = os.memfd_create("coldstream-arena", os.MFD_CLOEXEC)
        self._counters = mmap.mmap(-1, max(PAGE_BYTES, 8 * connections))
        self._counted = memoryview(self._counters).cast("Q")
        self._workers: list[_WorkerProcess] = []
        self._respawns = 0
        self._lost_cpu_seconds = 0.0
        self._settings: JobOptions | None = None
        self._files: list[FileJob] = []
        self._sources: list[SegmentSource] = []  # all segments of all files
        self._versions: list[int] = []  # of their links
        self._mapped = 0
        self._catalog = -1
        self._catalog_bytes = 0
        self._consumers: dict[int, _Attached] = {}
        self._waiting_sockets: list[socket.socket] = []
        self._attached = 0
        self._first_attached: float | None = None
        self._scheduler: Scheduler | None = None
        self._chunks: list[Chunk] = []
        self._tee: socket.socket | None = None
        self._teeing = False
        self._tee_message = ""
        self._digests: dict[int, bytes] = {}  # of chunks that the tee will get
        self._cache_statuses = [0] * len(STATUSES)
        self._began = time.monotonic()
        self._processors = Processors(self._began)
        self._full_seconds = 0.0
        self._first_ready_seconds: float | None = None
        self._finished_seconds: float | None = None
        self._reported = self._detached = self._stored_told = self._over = False
        self._progress_due = self._ticked_at = 0.0
        for number in range(workers):
            self._workers.append(self._spawn(number, workers))

    def run(self) -> None:
        """Serves until the load is over or the owner is gone, or something fails that should not: that is told."""
        try:
            self._serve()
        except Exception as exc:  # noqa: BLE001  # a traceback would go to a terminal that is the owner's
            self._give_up(failure_of(exc))

    def _serve(self) -> None:
        self._watch(self._owner, self._hear_owner)
        try:
            pidfd = os.pidfd_open(self._owner_pid)
            self._selector.register(pidfd, selectors.EVENT_READ, self._end)
        except OSError:
            pidfd = -1  # too old a kernel: the closed socket, and getppid below, tell
        while not self._over:
            now = time.monotonic()
            due = self._scheduler.deadline(now) if self._scheduler else None
            for key, _ in self._selector.select(max(0.0, due - now) if due is not None else 1.0):
                key.data()
                if self._over:
                    break
            self._tick()
            if pidfd < 0 and os.getppid() != self._owner_pid:
                self._over = True

    def stop(self) -> None:
        """Ends the workers at once: they hold nothing that is worth a goodbye."""
        for worker in self._workers:
            _kill(worker.pid)
        if self._tee is not None:
            # It closes its journal when the socket ends; nothing that it has noted depends on that.
            self._tee.close()
        if self._settings and self._settings.listen:
            with contextlib.suppress(OSError):
                os.unlink(self._settings.listen)

    # The owner.

    def _hear_owner(self) -> None:
        alive = self._owner.receive()
        for letter, payload in self._owner.frames():
            if letter == messages.SETTINGS:
                self._settings = unpack_options(payload)
            elif letter == messages.PLAN:
                self._begin(unpack_files(payload), self._owner.descriptor())
            elif letter == messages.LINK:
                self._renew(payload)
            elif letter == messages.CONSUMER:
                self._attach(socket.socket(fileno=self._owner.descriptor()))
            elif letter == messages.DETACH:
                self._detached = True
            elif letter == messages.QUIT:
                self._over = True
        if not alive:
            self._selector.unregister(self._owner)
            if not self._detached:
                self._over = True

    def _end(self) -> None:
        self._over = True

    def _tell(self, letter: bytes, document: object) -> None:
        self._tell_owner(letter, json.dumps(document).encode())

    def _tell_owner(self, letter: bytes, payload: bytes = b"") -> None:
        try:
            self._owner.send(letter, payload)
        except OSError:
            self._over |= not self._detached

    def _begin(self, files: Sequence[FileJob], catalog: int) -> None:
        assert self._settings is not None
        settings = self._settings
        self._files = list(files)
        self._sources = [source for file in files for source in sources(file)]
        self._versions = [0] * len(self._sources)
        self._catalog, self._catalog_bytes = catalog, os.fstat(catalog).st_size
        self._chunks, extents, wanted = lay_out(files, store=settings.cache is not None)
        self._mapped = arena_bytes(extents, store=settings.cache is not None, most=settings.arena_bytes_max)
        os.ftruncate(self._arena, self._mapped)
        for worker in self._workers:
            self._introduce(worker)
        self._teeing = settings.cache is not None
        if any(wanted):
            self._start_tee(mend=False)
        now = time.monotonic()
        self._scheduler = Scheduler(
            self._chunks,
            extents,
            arena=Arena(settings.memory_limit, mapped_bytes=self._mapped),
            pace=Pace(first=CONNECTIONS_FIRST, limit=self._connections),
            consumers=settings.consumers,
            local_max=min(self._connections, READS_PER_WORKER * len(self._workers)),
            in_order=settings.in_order,
            store=wanted if self._teeing else (),
            give_up_seconds=settings.give_up_seconds,
            now=now,
        )
        self._began = now
        if settings.listen:
            self._listen(settings.listen)
        for sock in self._waiting_sockets:
            self._attach(sock)
        self._waiting_sockets.clear()
        self._do(self._scheduler.tick(now))

    def _renew(self, payload: bytes) -> None:
        (number,) = messages.NUMBER.unpack_from(payload)
        link = json.loads(payload[messages.NUMBER.size :] or b"null")
        assert self._scheduler is not None
        if link is None:
            self._do([Fail("credentials", None, f"{self._sources[number].path}: the link was refused")])
            return
        headers = tuple((name, value) for name, value in link["headers"])
        source = self._sources[number]
        self._sources[number] = replace(source, segment=replace(source.segment, url=link["url"], headers=headers))
        self._versions[number] += 1
        for worker in self._workers:
            self._inform(worker, number)
        self._do(self._scheduler.renewed(number, time.monotonic()))

    # Workers.

    def _spawn(self, number: int, workers: int) -> _WorkerProcess:
        mine = range(number, self._connections, workers)
        control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pairs = {c: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for c in mine}
        theirs = {c: pair[1] for c, pair in pairs.items()}
        pid = os.fork()
        if pid == 0:
            self._be_worker(their_control, theirs)
        their_control.close()
        for sock in theirs.values():
            sock.close()
        worker = _WorkerProcess(pid, control, {c: pair[0] for c, pair in pairs.items()})
        self._watch(control, lambda: self._hear_control(worker))
        for connection, sock in worker.connections.items():
            self._watch(sock, lambda c=connection: self._hear_connection(worker, c))  # type: ignore[misc]
        return worker

    def _be_worker(self, control: socket.socket, connections: dict[int, socket.socket]) -> None:
        """The child's side of the fork; does not return."""
        try:
            _close_all_but({self._arena, control.fileno(), *(sock.fileno() for sock in connections.values())})
            from coldstream.engine.worker import Worker

            Worker(control=control, connections=connections, arena=self._arena, counters=self._counters).run()
        except Exception as exc:  # noqa: BLE001  # the last stop of this process
            with contextlib.suppress(OSError):
                control.send(messages.FAIL + json.dumps(failure_of(exc)).encode())
        finally:
            os._exit(0)

    def _introduce(self, worker: _WorkerProcess) -> None:
        _tell_worker(worker, messages.MAP + messages.SIZE.pack(self._mapped))
        for number in range(len(self._sources)):
            self._inform(worker, number)

    def _inform(self, worker: _WorkerProcess, number: int) -> None:
        head = messages.SOURCE + messages.NUMBERS.pack(number, self._versions[number])
        _tell_worker(worker, head + pack_source(self._sources[number]))

    def _hear_control(self, worker: _WorkerProcess) -> None:
        """A worker says nothing on this socket but why it ends; it has died."""
        if message := _received(worker.control):
            self._give_up(json.loads(message[1:]))
            return
        self._forget(worker.control)
        for sock in worker.connections.values():
            self._forget(sock)
        self._lost_cpu_seconds += worker.cpu_seconds
        index = self._workers.index(worker)
        now = time.monotonic()
        self._respawns += 1
        if self._respawns > RESPAWNS_MAX:
            self._do([Fail("unavailable", None, f"fetching processes died {self._respawns} times")])
            return
        actions = self._scheduler.lost(sorted(worker.connections), now) if self._scheduler else []
        replacement = self._spawn(index, len(self._workers))
        self._workers[index] = replacement
        if self._scheduler:
            self._introduce(replacement)
            actions += self._scheduler.found(sorted(replacement.connections), now)
        self._do(actions)

    def _hear_connection(self, worker: _WorkerProcess, connection: int) -> None:
        data = _received(worker.connections[connection])
        if not data:
            self._forget(worker.connections[connection])
            return  # the control socket tells the same, and acts on it
        answer = messages.Answer.unpack(data)
        worker.cpu_seconds = max(worker.cpu_seconds, answer.cpu_seconds)
        self._cache_statuses[answer.cache] += 1
        scheduler = self._scheduler
        assert scheduler is not None
        now = time.monotonic()
        if answer.kind == "done":
            if self._teeing:
                self._digests[answer.chunk] = answer.digest
            actions = scheduler.done(connection, now, first_byte_seconds=answer.first_byte_seconds)
        else:
            chunk = self._chunks[answer.chunk]
            if answer.kind == "local" and self._teeing:
                self._send_tee(messages.pack_store(chunk.file, chunk.index, 0, 0, b""))
            failure = Failure(answer.kind, answer.received, answer.message, answer.retry_after_seconds)
            actions = scheduler.failed_fetch(connection, failure, now)
        self._do(actions)

    # Consumers.

    def _listen(self, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(64)

        def accept() -> None:
            sock, _ = listener.accept()
            if messages.peer_uid(sock) != os.getuid():
                sock.close()
                return
            self._attach(sock)

        self._watch(listener, accept)
        self._tell_owner(messages.LISTENING)

    def _attach(self, sock: socket.socket) -> None:
        if self._scheduler is None:
            self._waiting_sockets.append(sock)
            return
        assert self._settings is not None
        if self._attached >= self._settings.consumers:
            with sock, contextlib.suppress(OSError):
                sock.send(
                    messages.FAIL + json.dumps({"kind": "usage", "message": "every consumer is attached"}).encode()
                )
            return
        consumer = _Attached(self._attached, sock)
        self._attached += 1
        if self._first_attached is None:
            self._first_attached = time.monotonic()
        self._consumers[consumer.number] = consumer
        hello = messages.pack_hello(consumer.number, self._settings.consumers, self._mapped, self._catalog_bytes)
        with contextlib.suppress(OSError):  # it has died; its socket will say so
            socket.send_fds(sock, [hello], [self._arena, self._catalog])
        sock.setblocking(False)  # noqa: FBT003  # its only parameter
        self._watch(sock, lambda: self._hear_consumer(consumer))
        for action in self._scheduler.attached(consumer.number, time.monotonic()):
            if isinstance(action, Ready):
                self._send(consumer, messages.pack_ready(action.extent, action.order, action.offset))
            else:
                self._do([action])

    def _hear_consumer(self, consumer: _Attached) -> None:
        assert self._scheduler is not None
        now = time.monotonic()
        actions: list[Action] = []
        while True:
            try:
                data = consumer.socket.recv(64)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._forget(consumer.socket)
                self._consumers.pop(consumer.number, None)
                actions += self._scheduler.detached(consumer.number, now)
                break
            letter, rest = data[:1], data[1:]
            if letter == messages.WAIT:
                self._flush(consumer)
                actions += self._scheduler.waiting(consumer.number, messages.NUMBER.unpack(rest)[0], now)
            elif letter == messages.RELEASE:
                actions += self._scheduler.released(consumer.number, messages.NUMBER.unpack(rest)[0], now)
            elif letter == messages.LEAVE:
                # It is told of nothing more; its socket says what it drops.
                del self._consumers[consumer.number]
                actions += self._scheduler.left(consumer.number, messages.NUMBER.unpack(rest)[0], now)
        self._do(actions)

    def _send(self, consumer: _Attached, message: bytes) -> None:
        consumer.backlog.append(message)
        self._flush(consumer)

    def _flush(self, consumer: _Attached) -> None:
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

    # The local copy.

    def _start_tee(self, *, mend: bool) -> None:
        assert self._settings is not None
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                _close_all_but({self._arena, self._catalog, theirs.fileno()})
                from coldstream.engine.tee import run

                run(theirs, self._arena, self._mapped, self._catalog, self._settings, mend=mend)
            finally:
                os._exit(0)
        theirs.close()
        self._tee = mine
        self._watch(mine, self._hear_tee)

    def _send_tee(self, message: bytes) -> None:
        if self._tee is None:
            # The copy was complete, and a chunk of it is wrong.
            self._start_tee(mend=True)
        assert self._tee is not None
        with contextlib.suppress(OSError):  # it has died; `_hear_tee` will find out
            self._tee.send(message)

    def _hear_tee(self) -> None:
        assert self._tee is not None
        assert self._scheduler is not None
        data = _received(self._tee)
        if data[:1] == messages.STORED:
            self._do(self._scheduler.stored_chunk(time.monotonic()))
            return
        # It has failed or died: the load goes on without it.
        self._tee_message = data[1:].decode("utf-8", "replace") or "the writing process died"
        self._forget(self._tee)
        self._tee, self._teeing = None, False
        self._digests.clear()
        self._do(self._scheduler.store_failed(time.monotonic()))

    # Doing.

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Fetch):
                self._fetch(action)
            elif isinstance(action, Ready):
                if self._first_ready_seconds is None:
                    self._first_ready_seconds = time.monotonic() - self._began
                message = messages.pack_ready(action.extent, action.order, action.offset)
                for consumer in self._consumers.values():
                    self._send(consumer, message)
            elif isinstance(action, Stop):
                self._stop_fetch(action)
            elif isinstance(action, StoreChunk):
                self._store(action)
            elif isinstance(action, Renew):
                self._ask_for_link(action.segment)
            elif isinstance(action, Fail):
                self._fail(action)

    def _fetch(self, action: Fetch) -> None:
        chunk = self._chunks[action.chunk]
        file = self._files[chunk.file]
        assert self._settings is not None
        worker = self._workers[action.connection % len(self._workers)]
        if action.connection not in worker.started:
            worker.started.add(action.connection)
            _tell_worker(worker, messages.START + messages.NUMBER.pack(action.connection))
        start, stop = file.chunk(chunk.index)
        digest = file.digest(chunk.index)
        self._counted[action.connection] = 0
        fetch = messages.Fetch(
            chunk=action.chunk,
            segment=chunk.segment,
            version=self._versions[chunk.segment],
            start=start,
            stop=stop,
            offset=action.offset,
            skip=action.skip,
            here=action.here,
            cdn=action.cdn,
            checked=self._settings.verify and bool(digest),
            hashed=self._teeing,
            digest=digest,
        )
        with contextlib.suppress(OSError):  # it has died; its control socket will say so
            worker.connections[action.connection].send(fetch.pack())

    def _stop_fetch(self, action: Stop) -> None:
        assert self._scheduler is not None
        flight = self._scheduler.flight(action.connection)
        if flight is not None:
            worker = self._workers[action.connection % len(self._workers)]
            _tell_worker(worker, messages.STOP + messages.NUMBERS.pack(action.connection, flight[0]))

    def _store(self, action: StoreChunk) -> None:
        chunk = self._chunks[action.chunk]
        digest = self._digests.pop(action.chunk)
        self._send_tee(messages.pack_store(chunk.file, chunk.index, action.offset, chunk.size, digest))

    def _ask_for_link(self, segment: int) -> None:
        self._tell_owner(messages.RENEW, messages.NUMBER.pack(segment))

    def _fail(self, action: Fail) -> None:
        if self._reported:
            # Everybody has everything; what fails is only what the local copy still wanted.
            self._tee_message = action.message
            return
        path = self._files[self._chunks[action.chunk].file].path if action.chunk is not None else None
        self._give_up({"kind": action.kind, "message": action.message, "path": path})

    def _give_up(self, document: dict[str, Any]) -> None:
        """Tells the owner and all consumers why the load has failed, and ends."""
        if self._scheduler is not None:
            self._tell(messages.PROGRESS, self._progress())
        for consumer in self._consumers.values():
            self._send(consumer, messages.FAIL + json.dumps(document).encode()[:8000])
        self._tell(messages.FAIL, document)
        self._over = True

    def _tick(self) -> None:
        scheduler = self._scheduler
        if scheduler is None or self._over:
            return
        now = time.monotonic()
        self._check_readers(now)
        due = scheduler.deadline(now)
        if due is not None and now >= self._ticked_at + 0.045:
            passed, self._ticked_at = now - max(self._ticked_at, self._began), now
            for connection in scheduler.flying():
                scheduler.received(connection, self._counted[connection], now)
            self._processors.look(now)
            if self._processors.full:
                self._full_seconds += passed
                scheduler.pace.idle()  # more connections cannot help, so nothing is to be learnt from this step
            self._do(scheduler.tick(now))
        if now >= self._progress_due and not self._reported:
            self._progress_due = now + PROGRESS_SECONDS
            self._tell(messages.PROGRESS, self._progress())
        if scheduler.finished and not self._reported:
            self._reported = True
            self._finished_seconds = now - self._began
            self._tell(messages.PROGRESS, self._progress())
            self._tell(messages.END, self._report())
        if scheduler.finished and scheduler.stored and not self._stored_told:
            if scheduler.dropped and self._teeing:
                self._do(scheduler.store_dropped(now))
                return
            self._stored_told = True
            self._tell(messages.STORED, {"failed": self._tee_message})
            self._over |= self._detached
        if self._stored_told and self._deserted:
            self._over = True

    @property
    def _deserted(self) -> bool:
        """Whether every reader of a shared load has come and gone: nobody will look at the arena again."""
        settings = self._settings
        assert settings is not None
        return bool(settings.listen) and self._attached >= settings.consumers and not self._consumers

    def _check_readers(self, now: float) -> None:
        """Ends a load that a part of its consumers wait for in vain: one must have died before it attached."""
        settings = self._settings
        assert settings is not None
        if self._first_attached is None or self._attached >= settings.consumers or self._over:
            return
        if now - self._first_attached > settings.attach_seconds:
            counted = f"{self._attached} of {settings.consumers} readers"
            self._do([Fail("readers", None, f"only {counted} came within {settings.attach_seconds:.0f} s")])

    def _progress(self) -> dict[str, Any]:
        assert self._scheduler is not None
        counts = self._scheduler.counts
        return {
            "bytes": counts.received_bytes + counts.here_bytes,
            "connections": len(self._scheduler.flying()),
            "counts": self._counts(),
        }

    def _counts(self) -> dict[str, Any]:
        assert self._scheduler is not None
        counts = self._scheduler.counts
        return {name: getattr(counts, name) for name in type(counts).__slots__}

    def _report(self) -> dict[str, Any]:
        assert self._scheduler is not None
        used = resource.getrusage(resource.RUSAGE_SELF)
        return self._counts() | {
            "seconds": self._finished_seconds,
            "first_ready_seconds": self._first_ready_seconds,
            "streamer_cpu_seconds": used.ru_utime + used.ru_stime,
            "worker_cpu_seconds": sum(worker.cpu_seconds for worker in self._workers) + self._lost_cpu_seconds,
            "workers": len(self._workers),
            "chunks": len(self._chunks),
            "arena_bytes": self._scheduler.arena.touched_bytes,
            "connections_limit": self._connections,
            "saturated": self._scheduler.pace.saturated,
            "throttled": self._scheduler.pace.throttled,
            "respawns": self._respawns,
            "full_seconds": self._full_seconds,
            "cdn_statuses": {
                name: count for name, count in zip(STATUSES, self._cache_statuses, strict=True) if name and count
            },
            "cdn_failures": dict(self._scheduler.cdn.failures),
            "cdn_gave_up": self._scheduler.cdn.gave_up,
        }

    def _watch(self, source: Any, handler: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, handler)

    def _forget(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()


def lay_out(files: Sequence[FileJob], *, store: bool) -> tuple[list[Chunk], list[int], list[bool]]:
    """The chunks and the sizes of extents of a load, and which chunks the local copy wants. Pure."""
    chunks: list[Chunk] = []
    extents: list[int] = []
    wanted: list[bool] = []
    before = 0  # segments of the files before
    for number, file in enumerate(files):
        for first, stop in file.extents:
            position = 0
            for index in range(first, stop):
                begin, end = file.chunk(index)
                here, segment = file.here(index), file.segment(index)
                place = file.segments[segment]
                chunks.append(
                    Chunk(
                        number,
                        before + segment,
                        index,
                        len(extents),
                        position,
                        end - begin,
                        here,
                        remote=place.url is not None,
                        # What nothing verifies comes from the bucket itself.
                        cdn=place.cdn is not None and bool(file.digest(index)),
                    )
                )
                wanted.append(store and not here)
                position += end - begin
            extents.append(position)
        before += len(file.segments)
    return chunks, extents, wanted


def arena_bytes(extents: Sequence[int], *, store: bool, most: int | None) -> int:
    """How much address space the arena takes. Pure.

    It is sparse: what is never touched costs nothing, and no consumer ever has to map it anew. However it is used, each
    extent touches no more than its own size, and once more when it is fetched again for the local copy.

    Args:
        extents: Their sizes.
        store: Whether the local copy is written.
        most: What limits allow, or None.
    """
    once = sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in extents)
    whole = max(PAGE_BYTES, once * (2 if store else 1))
    return whole if most is None else min(whole, max(PAGE_BYTES, most // PAGE_BYTES * PAGE_BYTES))


def connections_within(descriptors: int, connections: int) -> int:
    """How many of these connections so many open files allow; at least one. Pure."""
    return max(1, min(connections, (descriptors - _DESCRIPTORS_SPARE) // 2))


def descriptors_for(connections: int) -> int:
    """How many open files so many connections want. Pure."""
    # Both ends of a worker's sockets are open here until it has been forked.
    return 2 * connections + _DESCRIPTORS_SPARE


def main(arguments: Sequence[str]) -> None:
    """Runs the process.

    Args:
        arguments: Descriptor of the owner's socket, the owner's process id, workers, connections, 1 to prepare TLS.
    """
    descriptor, owner_pid, workers, connections, tls = map(int, arguments)
    # Ctrl-C is the owner's to handle; it tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft != resource.RLIM_INFINITY:
        connections = connections_within(soft, connections)
    from coldstream.engine import worker as _preloaded  # noqa: F401  # once, before the forks

    if tls:
        # A wrong setting is reported by the request that needs it.
        with contextlib.suppress(ConfigError):
            context_for(tls_settings())

    owner = messages.Frames(socket.socket(fileno=descriptor))
    try:
        streamer = Streamer(owner, owner_pid=owner_pid, workers=workers, connections=connections)
    except Exception as exc:  # noqa: BLE001  # as in `Streamer.run`; workers that there are end with this process
        with contextlib.suppress(OSError):
            owner.send(messages.FAIL, json.dumps(failure_of(exc)).encode())
        return
    try:
        streamer.run()
    finally:
        streamer.stop()


def failure_of(exc: Exception) -> dict[str, Any]:
    """What should not have happened, as `wire.FAIL` tells it: a limit of this machine, or a bug and where it is."""
    if error := limit_error(exc, "stream"):
        return {"kind": "limit", "message": error.message, "hint": error.hint}
    return {"kind": "internal", "message": f"failed: {where_raised(exc)}"}


def _tell_worker(worker: _WorkerProcess, message: bytes) -> None:
    with contextlib.suppress(OSError):  # it has died; its control socket will say so
        worker.control.send(message)


def _received(sock: socket.socket) -> bytes:
    """The next message; empty when the other side has ended, however it did."""
    try:
        with contextlib.suppress(ConnectionResetError):
            return sock.recv(messages.MESSAGE_BYTES_MAX)
        # It ended with messages of ours unread. That is told once, and before what it said last.
        return sock.recv(messages.MESSAGE_BYTES_MAX)
    except OSError:
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except OSError:
        pass


def _close_all_but(kept: set[int]) -> None:
    """Closes what a fork has inherited, but its own and the standard streams."""
    try:
        there = {int(name) for name in os.listdir("/proc/self/fd")}
    except OSError:
        there = {*range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _DESCRIPTORS_MAX))}
    for descriptor in there - kept - {0, 1, 2}:
        with contextlib.suppress(OSError):
            os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
