"""The streamer: the process that runs the scheduler, between its workers and its consumers.

Its owner, which resolves names and holds the credentials, starts it and tells it what to load. It is single-threaded,
so that it can fork at any time. It ends with its owner, whose process descriptor tells even while a fork of the owner
still holds the socket.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from coldstream.engine import messages
from coldstream.engine.actions import Action, Chunk, Fail, Failure, Fetch, Ready, Renew, Stop, StoreChunk
from coldstream.engine.arena import Arena, arena_bytes, connections_within, lay_out
from coldstream.engine.cdn_choice import STATUSES
from coldstream.engine.consumers import Consumers
from coldstream.engine.pace import Pace, first_connections
from coldstream.engine.processes import EventLoop, failure_of
from coldstream.engine.scheduler import Scheduler
from coldstream.engine.tee import Tee
from coldstream.engine.worker_pool import WorkerPool
from coldstream.errors import ConfigError
from coldstream.machine.connections import ConnectionTable
from coldstream.machine.processors import Processors
from coldstream.model.job import FileJob, JobOptions, sources, unpack_files, unpack_options
from coldstream.net.tls import context_for, tls_settings

READS_PER_WORKER = 2
RESPAWNS_MAX = 8
PROGRESS_SECONDS = 0.1
SHARE_SECONDS = 0.25  # between two looks at what other loads of this machine have
LOOK_SECONDS = 0.045  # the least time between two looks at the connections
RETURNED_BYTES = 8 << 20  # memory that is given back at once; takes about 2 ms


class Streamer:
    """Talks to the owner, and runs its load when the plan has come."""

    def __init__(
        self, owner: messages.Frames, *, owner_pid: int, workers: int, connections: int, connections_bound: str = ""
    ) -> None:
        self._owner, self._owner_pid = owner, owner_pid
        self.connections, self.connections_bound = connections, connections_bound
        self.loop = EventLoop()
        self.arena = os.memfd_create("coldstream-arena", os.MFD_CLOEXEC)
        self._options: JobOptions | None = None
        self._load: _RunningLoad | None = None
        self._early_sockets: list[socket.socket] = []  # of consumers that came before the plan
        self.detached = self.over = False
        self.workers = WorkerPool(self.loop, self, arena=self.arena, workers=workers, connections=connections)

    def run(self) -> None:
        """Serves until the load is over or the owner is gone; reports what fails unexpectedly."""
        try:
            self._serve()
        except Exception as exc:  # noqa: BLE001  # a traceback would go to the owner's terminal
            self.gave_up(failure_of(exc))

    def _serve(self) -> None:
        self.loop.watch(self._owner, self._hear_owner)
        try:
            pidfd = os.pidfd_open(self._owner_pid)
            self.loop.watch(pidfd, lambda: setattr(self, "over", True))
        except OSError:
            pidfd = -1  # the kernel is too old: the closed socket tells, and getppid below
        while not self.over:
            now = time.monotonic()
            due = self._load.deadline(now) if self._load else None
            self.loop.poll(max(0.0, due - now) if due is not None else 1.0, lambda: self.over)
            if self._load is not None and not self.over:
                self._load.tick()
            if pidfd < 0 and os.getppid() != self._owner_pid:
                self.over = True

    def stop(self) -> None:
        self.workers.kill()
        if self._load is not None:
            self._load.tee.close()
        if self._options and self._options.listen:
            with contextlib.suppress(OSError):
                os.unlink(self._options.listen)

    def tell_owner(self, letter: bytes, payload: bytes = b"") -> None:
        """Sends a frame; without an owner the streamer ends, unless it was detached."""
        try:
            self._owner.send(letter, payload)
        except OSError:
            self.over |= not self.detached

    def owner_listens(self) -> bool:
        """Whether most of the owner's socket is free."""
        poll = select.poll()
        poll.register(self._owner, select.POLLOUT)
        return bool(poll.poll(0))

    def _hear_owner(self) -> None:
        alive = self._owner.receive()
        for letter, payload in self._owner.frames():
            if letter == messages.SETTINGS:
                self._options = unpack_options(payload)
            elif letter == messages.PLAN:
                self._begin(unpack_files(payload), self._owner.descriptor())
            elif letter == messages.LINK:
                assert self._load is not None
                self._load.renew(payload)
            elif letter == messages.CONSUMER:
                sock = socket.socket(fileno=self._owner.descriptor())
                if self._load is None:
                    self._early_sockets.append(sock)
                else:
                    self._load.consumers.attach(sock)
            elif letter == messages.DETACH:
                self.detached = True
            elif letter == messages.QUIT:
                self.over = True
        if not alive:
            self.loop.unwatch(self._owner)
            if not self.detached:
                self.over = True

    def _begin(self, files: Sequence[FileJob], catalog: int) -> None:
        assert self._options is not None
        load = self._load = _RunningLoad(self, self._options, files, catalog)
        if self._options.listen:
            load.consumers.listen(self._options.listen)
            self.tell_owner(messages.LISTENING)
        for sock in self._early_sockets:
            load.consumers.attach(sock)
        self._early_sockets.clear()
        load.do(load.scheduler.tick(time.monotonic()))

    # What the workers report.

    def fetched(self, connection: int, result: messages.FetchResult) -> None:
        assert self._load is not None
        self._load.fetched(connection, result)

    def lost(self, connections: Sequence[int]) -> None:
        if self.workers.deaths > RESPAWNS_MAX:
            failure = Fail("unavailable", None, f"fetching processes died {self.workers.deaths} times")
            if self._load is None:
                self.gave_up({"kind": failure.kind, "message": failure.message})
            else:
                self._load.do([failure])
        elif self._load is not None:
            self._load.do(self._load.scheduler.lost(connections, time.monotonic()))

    def regained(self, connections: Sequence[int]) -> None:
        if self._load is not None and not self.over:
            self._load.do(self._load.scheduler.regained(connections, time.monotonic()))

    def gave_up(self, failure: dict[str, Any]) -> None:
        """Tells the owner and all consumers why the load has failed, and ends."""
        if self._load is not None:
            self._load.tell_progress()
            self._load.consumers.fail(failure)
        self.tell_owner(messages.FAIL, json.dumps(failure).encode())
        self.over = True


class _RunningLoad:
    """Carries out what the scheduler decides, and reports how the load goes."""

    def __init__(self, streamer: Streamer, options: JobOptions, files: Sequence[FileJob], catalog: int) -> None:
        self._streamer, self._workers, self._options, self._files = streamer, streamer.workers, options, files
        store = options.cache is not None
        self._chunks, extents, to_store = lay_out(files, store=store)
        mapped_bytes = arena_bytes(extents, store=store, limit_bytes=options.arena_bytes_max)
        arena, connections = streamer.arena, streamer.connections
        os.ftruncate(arena, mapped_bytes)
        self._workers.begin([source for file in files for source in sources(file)], mapped_bytes)
        self.tee = Tee(
            streamer.loop,
            options,
            arena=(arena, mapped_bytes),
            catalog=catalog,
            on_stored=lambda: self.do(self.scheduler.stored_chunk(time.monotonic())),
            on_failed=lambda: self.do(self.scheduler.store_failed(time.monotonic())),
        )
        if any(to_store):
            self.tee.start(repair=False)
        now = time.monotonic()
        self.scheduler = Scheduler(
            self._chunks,
            extents,
            arena=Arena(options.memory_limit, mapped_bytes=mapped_bytes),
            pace=Pace(first=first_connections(options.answer_seconds), limit=connections),
            consumers=options.consumers,
            local_max=min(connections, READS_PER_WORKER * len(self._workers)),
            in_order=options.in_order,
            store=to_store if store else (),
            give_up_seconds=options.give_up_seconds,
            now=now,
        )
        self.consumers = Consumers(
            streamer.loop,
            self.scheduler,
            options,
            self.do,
            arena=(arena, mapped_bytes),
            catalog=(catalog, os.fstat(catalog).st_size),
        )
        self._began = self._ticked_at = now
        self._digests: dict[int, bytes] = {}  # of chunks that the tee will get
        self._cache_statuses = [0] * len(STATUSES)
        self._processors = Processors(now)
        self._progress_due = 0.0
        self._reported = self._copy_reported = self._returns_memory = False
        self.scheduler.statistics.workers = len(self._workers)
        self._table = ConnectionTable(options.connection_table) if options.connection_table else None
        self._share_due = 0.0
        self._share_connections(now)

    def deadline(self, now: float) -> float | None:
        """When to call `tick` next; None if only events matter."""
        return now if self._returns_memory else self.scheduler.deadline(now)

    def renew(self, payload: bytes) -> None:
        """The owner has a new link for a segment, or cannot have one."""
        (segment,) = messages.NUMBER.unpack_from(payload)
        link = json.loads(payload[messages.NUMBER.size :] or b"null")
        source = self._workers.sources[segment]
        if link is None:
            self.do([Fail("credentials", None, f"{source.path}: the link was refused")])
            return
        headers = tuple((name, value) for name, value in link["headers"])
        self._workers.renew(segment, replace(source, segment=replace(source.segment, url=link["url"], headers=headers)))
        self.do(self.scheduler.renewed(segment, time.monotonic()))

    def fetched(self, connection: int, result: messages.FetchResult) -> None:
        self._cache_statuses[result.cache] += 1
        now = time.monotonic()
        if result.kind == "done":
            if self.tee.is_open:
                self._digests[result.chunk] = result.digest
            self.do(self.scheduler.done(connection, now, first_byte_seconds=result.first_byte_seconds))
            return
        if result.kind == "local" and self.tee.is_open:
            chunk = self._chunks[result.chunk]
            self.tee.send(messages.StoreRequest(chunk.file, chunk.index, 0, 0, b""))
        failure = Failure(result.kind, result.received, result.message, result.retry_after_seconds)
        self.do(self.scheduler.failed_fetch(connection, failure, now))

    def do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Fetch):
                self._workers.fetch(action.connection, self._request(action, self._chunks[action.chunk]))
            elif isinstance(action, Ready):
                if self.scheduler.statistics.first_ready_seconds is None:
                    self.scheduler.statistics.first_ready_seconds = time.monotonic() - self._began
                self.consumers.announce(action)
            elif isinstance(action, Stop):
                flight = self.scheduler.flight(action.connection)
                if flight is not None:
                    self._workers.stop(action.connection, flight[0])
            elif isinstance(action, StoreChunk):
                chunk, digest = self._chunks[action.chunk], self._digests.pop(action.chunk)
                self.tee.send(messages.StoreRequest(chunk.file, chunk.index, action.offset, chunk.size, digest))
            elif isinstance(action, Renew):
                self._streamer.tell_owner(messages.RENEW, messages.NUMBER.pack(action.segment))
            elif self._reported:
                # Consumers have everything; only the local copy is incomplete.
                self.tee.message = action.message
            else:
                path = self._files[self._chunks[action.chunk].file].path if action.chunk is not None else None
                self._streamer.gave_up({"kind": action.kind, "message": action.message, "path": path})

    def _request(self, action: Fetch, chunk: Chunk) -> messages.FetchRequest:
        file = self._files[chunk.file]
        (start, stop), (wire_start, wire_stop) = file.span(chunk.index), file.wire(chunk.index)
        digest = file.digest(chunk.index)
        return messages.FetchRequest(
            chunk=action.chunk,
            segment=chunk.segment,
            version=self._workers.versions[chunk.segment],
            start=start,
            stop=stop,
            wire_start=wire_start,
            wire_stop=wire_stop,
            offset=action.offset,
            skip=action.skip,
            is_local=action.is_local,
            cdn=action.cdn,
            checked=self._options.verify and bool(digest),
            hashed=self.tee.is_open,
            digest=digest,
        )

    def tick(self) -> None:
        now = time.monotonic()
        if failure := self.consumers.missing(now):
            self.do([failure])
        if self.scheduler.deadline(now) is not None and now >= self._ticked_at + LOOK_SECONDS:
            self._look(now)
        if now >= self._progress_due and not self._reported:
            self._progress_due = now + PROGRESS_SECONDS
            self.tell_progress()
        if self.scheduler.finished and not self._reported:
            self._reported = True
            self._finish(now)
        self._return_memory()
        if self.scheduler.finished and self.scheduler.stored and not self._copy_reported:
            if self.scheduler.dropped and self.tee.is_open:
                self.do(self.scheduler.store_dropped(now))
                return
            self._copy_reported = True
            self._workers.kill()  # nothing is left to fetch
            self._streamer.tell_owner(messages.STORED, json.dumps({"failed": self.tee.message}).encode())
            self._streamer.over |= self._streamer.detached
        if self._copy_reported and self.consumers.have_left:
            self._streamer.over = True

    def _look(self, now: float) -> None:
        passed, self._ticked_at = now - self._ticked_at, now
        for connection in self.scheduler.flying():
            self.scheduler.received(connection, self._workers.received[connection], now)
        self._share_connections(now)
        self._processors.look(now)
        if self._processors.full:
            self.scheduler.statistics.full_seconds += passed
            self.scheduler.pace.idle()  # more connections cannot help, so this step says nothing
        self.do(self.scheduler.tick(now))

    def _return_memory(self) -> None:
        """Gives back memory that no chunk will use, while the last ones are fetched.

        The processes would return it when they end, which takes a fifth of a second per GiB.
        """
        unneeded = None if self.scheduler.has_waiting else self.scheduler.arena.take_unneeded(RETURNED_BYTES)
        self._returns_memory = unneeded is not None
        if unneeded:
            start, stop = unneeded
            with contextlib.suppress(OSError), mmap.mmap(self._streamer.arena, stop - start, offset=start) as memory:
                memory.madvise(mmap.MADV_REMOVE)

    def _share_connections(self, now: float) -> None:
        pace, statistics, most = self.scheduler.pace, self.scheduler.statistics, self._streamer.connections
        if self._table is not None and now >= self._share_due:
            self._share_due = now + SHARE_SECONDS
            if self._options.shares_connections:
                pace.limit_to(self._table.share(most))
            self._table.hold(len(self.scheduler.flying()))
        statistics.connections_limit = pace.limit
        statistics.connections_bound = "other loads" if pace.limit < most else self._streamer.connections_bound

    def tell_progress(self) -> None:
        self.scheduler.statistics.connections_now = len(self.scheduler.flying())
        # An owner that is busy with a tensor does not listen, and a full socket would stop the load.
        if self._streamer.owner_listens():
            self._streamer.tell_owner(messages.PROGRESS, self.scheduler.statistics.pack())

    def _finish(self, now: float) -> None:
        scheduler, statistics = self.scheduler, self.scheduler.statistics
        if self._table is not None:
            self._table.close()
            self._table = None
        used = resource.getrusage(resource.RUSAGE_SELF)
        statistics.seconds = now - self._began
        statistics.cpu_seconds = used.ru_utime + used.ru_stime + self._workers.cpu_seconds
        statistics.chunks = len(self._chunks)
        statistics.memory_bytes = scheduler.arena.touched_bytes
        statistics.saturated = scheduler.pace.saturated
        statistics.cdn_statuses = {
            name: count for name, count in zip(STATUSES, self._cache_statuses, strict=True) if name and count
        }
        statistics.cdn_failures = dict(scheduler.cdn.failures)
        statistics.cdn_gave_up = scheduler.cdn.gave_up
        self._streamer.tell_owner(messages.END, statistics.pack())


def main(arguments: Sequence[str]) -> None:
    """Runs the process; the arguments are those that `Owner` passes."""
    descriptor, owner_pid, workers, connections, tls = map(int, arguments)
    # The owner handles Ctrl-C, and tells the streamer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    allowed = connections if soft == resource.RLIM_INFINITY else connections_within(soft, connections)
    bound = "open files" if allowed < connections else ""
    from coldstream.engine import worker as _preloaded  # noqa: F401  # once, before the forks

    if tls:
        # The request that needs TLS reports a wrong setting.
        with contextlib.suppress(ConfigError):
            context_for(tls_settings())

    owner = messages.Frames(socket.socket(fileno=descriptor))
    try:
        streamer = Streamer(owner, owner_pid=owner_pid, workers=workers, connections=allowed, connections_bound=bound)
    except Exception as exc:  # noqa: BLE001  # as in `Streamer.run`; its workers end with this process
        with contextlib.suppress(OSError):
            owner.send(messages.FAIL, json.dumps(failure_of(exc)).encode())
        return
    try:
        streamer.run()
    finally:
        streamer.stop()
    # Python would close the sockets one by one while the owner waits.
    os._exit(0)
