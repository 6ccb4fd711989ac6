"""A bucket, a network, consumers, a disk and worker processes in virtual time, around the real scheduler.

A heap of events; nothing sleeps. Bytes flow as a fluid: every connection gets its cap or its fair share of the link.
After every event the invariants of `Invariants` are looked at; all of them are computed from what the world itself has
seen (actions, drops, answers), and compared with what the scheduler and the arena believe.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from coldstream.engine.actions import Action, Chunk, Fail, Failure, Fetch, Ready, Renew, Stop, StoreChunk
from coldstream.engine.arena import Arena, arena_bytes
from coldstream.engine.extents import STUCK_SECONDS
from coldstream.engine.pace import Pace
from coldstream.engine.scheduler import PILE_MAX, TICK_SECONDS, WINDOW_BYTES, Scheduler

MIB = 1 << 20
_TICK_APART = 0.045  # the streamer ticks no more often


@dataclass
class Bucket:
    """What requests meet. Rates are of requests; each fault is drawn anew for each."""

    latency: float = 0.02
    latency_sigma: float = 0.0  # above 0, first bytes come after a lognormal time with `latency` as the median
    connect: float = 0.03
    each_rate: float = 30e6  # bytes/s of one connection
    each_rates: tuple[float, float] | None = None  # or drawn from this range for each connection, when it is opened
    total_rate: float = math.inf
    slow: float = 0.0
    slow_factor: float = 100.0
    stall: float = 0.0
    reset: float = 0.0
    busy: float = 0.0
    busy_max: int = 1 << 60  # connections above which all answers are "busy"
    retry_after: float | None = None
    storms: tuple[tuple[float, float], ...] = ()  # [start, stop) in which all answers are "busy"
    corrupt: float = 0.0
    misranged: float = 0.0
    link_requests: int = 0  # a link opens so many ranges; 0: any number
    renew_seconds: float = 0.2
    dead_after: float = math.inf  # no answers at all from then on
    down_after: float = math.inf  # every connection is refused from then on
    no: float = 0.0  # answers that do not help: a page, 403, 404, another version
    idle_seconds: float = 30.0  # the HTTP client's own patience
    stop_lost: float = 0.0  # a stop that does not arrive
    local_rate: float = 500e6
    local_bad: float = 0.0  # of chunks on this machine


@dataclass
class Reader:
    """One consumer: how it behaves, and what it has seen."""

    attach: float = 0.0
    work: float = 0.0  # seconds for each extent
    keep: float = 0.0  # share of extents that it never drops
    late_drop: float = 0.0  # seconds until the others are dropped
    leave_after: int | None = None  # extents
    attached: bool = False
    gone: bool = False
    waiting: bool = False
    working: bool = False
    moved: float = 0.0
    seen: int = 0
    inbox: list[Ready] = field(default_factory=list)
    told: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    holds: set[int] = field(default_factory=set)  # what it keeps after it has left


@dataclass
class Disk:
    """The process that writes the local copy."""

    rate: float = 1e9
    fails_after: float = math.inf  # seconds


@dataclass(eq=False)
class _Transfer:
    """A request under way."""

    fetch: Fetch
    number: int
    size: int
    cap: float
    received: float = 0.0
    until: float = math.inf  # bytes after which `end` happens
    end: str = "done"
    flowing: bool = False
    rate: float = 0.0
    first_byte_seconds: float = 0.0


class World:
    """One load. `run` returns the seconds that it took.

    Attributes:
        scheduler: Under test.
        now: Virtual seconds; begins anywhere, as monotonic clocks do.
        failed: The action that ended the load, or None.
        steps: How many events there were.
    """

    def __init__(
        self,
        extents: Sequence[Sequence[int]],
        *,
        bucket: Bucket | None = None,
        cdn: Bucket | None = None,
        readers: Sequence[Reader] = (),
        disk: Disk | None = None,
        files: int = 1,
        cuts: float = 0.0,
        is_local: Sequence[bool] = (),
        remote: bool = True,
        limit: int = 1 << 50,
        connections: int = 16,
        first: int = 16,
        local_max: int = 4,
        in_order: bool = False,
        give_up: float = 60.0,
        workers: int = 2,
        deaths: Sequence[float] = (),
        respawn: float = 0.0,
        seed: int = 0,
        checked: bool = True,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = self.start = 1000.0
        self.bucket, self.cdn, self.disk = bucket or Bucket(), cdn, disk
        self.readers = list(readers)
        self.checked, self.local_max, self.give_up = checked, local_max, give_up
        self.chunks: list[Chunk] = []
        self.members: list[list[int]] = []
        counters: dict[int, int] = {}
        # A share `cuts` of the chunks begins a new segment, in the middle of an extent too; each file does.
        cutting, segment, segment_file = random.Random(seed ^ 0x5E6), -1, -1
        for extent, sizes in enumerate(extents):
            file = extent * files // len(extents)
            position = 0
            self.members.append([])
            for size in sizes:
                number, index = len(self.chunks), counters.get(file, 0)
                counters[file] = index + 1
                if file != segment_file or (cuts and cutting.random() < cuts):
                    segment, segment_file = segment + 1, file
                local = bool(is_local) and is_local[number]
                self.members[-1].append(number)
                far = remote or not local
                self.chunks.append(Chunk(file, segment, index, extent, position, size, local, far, cdn is not None))
                position += size
        self.sizes = [sum(sizes) for sizes in extents]
        self.wanted = [disk is not None and not chunk.is_local for chunk in self.chunks]
        self.limit = limit
        # As in the streamer: what is mapped is enough for any load.
        self.arena = Arena(limit, mapped_bytes=arena_bytes(self.sizes, store=disk is not None, limit_bytes=None))
        self._grow, self.arena.grow = self.arena.grow, self._checked_grow  # type: ignore[method-assign]
        self.pace = Pace(first=first, limit=connections)
        self.scheduler = Scheduler(
            self.chunks,
            self.sizes,
            arena=self.arena,
            pace=self.pace,
            consumers=len(self.readers),
            local_max=local_max,
            in_order=in_order,
            store=self.wanted if disk else (),
            give_up_seconds=give_up,
            rng=self.rng,
            now=self.now,
        )
        self.in_order = in_order
        self.workers, self.respawn = workers, respawn
        self.failed: Fail | None = None
        self.steps = 0
        self.targets = [self.pace.target]
        self.samples: list[tuple[float, int, int]] = []  # at each tick: seconds, bytes received, requests under way
        self.finished_at: float | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._transfers: dict[int, _Transfer] = {}
        self._flowing: list[_Transfer] = []
        self._flowed = self.now
        self._version = 0
        self._warm: dict[int, float] = {}  # open connections, and what each can deliver
        self._gone_connections: set[int] = set()
        self._ticked = -math.inf
        # What the world knows, to be compared with.
        self._in_place = [0] * len(self.chunks)
        self._reported: dict[int, int] = {}
        self._done: set[int] = set()
        self._bad: dict[int, int] = {}
        self._misranged: dict[int, int] = {}
        self._left_cdn: set[int] = set()  # chunks that the CDN has failed
        self._tainted: set[int] = set()  # of which wrong bytes of the CDN are in place
        self._local_bad = {
            n for n, c in enumerate(self.chunks) if c.is_local and self.rng.random() < self.bucket.local_bad
        }
        self._memory: dict[int, int] = {}  # extents that are used, and where
        self._ready: list[Ready] = []
        self._ready_extents: set[int] = set()
        self._to_store: dict[int, set[int]] = {}  # by extent: chunks done, wanted, and neither stored nor dropped
        self._storing: StoreChunk | None = None
        self._stored: set[int] = set()
        self._tee_alive = disk is not None
        self._link = {chunk.segment: 0 for chunk in self.chunks}
        self._link_used: dict[tuple[int, int], int] = {}
        self._renewing: set[int] = set()
        self._copying = False
        for number, reader in enumerate(self.readers):
            self.at(reader.attach, lambda number=number: self._attach(number))  # type: ignore[misc]
        for moment in deaths:
            self.at(moment, self._kill_worker)
        if disk and disk.fails_after < math.inf:
            self.at(disk.fails_after, self._tee_dies)

    # Time.

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        """So many seconds from now."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now + seconds, self._sequence, event))

    def run(self, *, steps_max: int | None = None) -> float:
        """Until the load is over; the seconds that it took until every chunk was there."""
        steps_max = steps_max or 4000 + 400 * len(self.chunks)
        self._do(self.scheduler.tick(self.now))
        while not self._over():
            self.steps += 1
            assert self.steps < steps_max, f"no end: {self.scheduler!r} after {self.now - self.start:.1f} s"
            due = self.scheduler.deadline(self.now)
            if due is not None:
                due = max(due, self._ticked + _TICK_APART)
            if self._events and (due is None or self._events[0][0] <= due):
                self.now, _, event = heapq.heappop(self._events)
                event()
            else:
                assert due is not None, f"asleep for ever: {self.scheduler!r}"
                self.now = max(self.now, due)
                self._tick()
            if self.scheduler.finished and self.finished_at is None:
                self.finished_at = self.now
            if self.checked:
                self._check()
        assert self.failed is not None or self.finished_at is not None
        if self.failed is None:
            self._check_end()
        return (self.finished_at or self.now) - self.start

    def _over(self) -> bool:
        if self.failed is not None:
            return True
        if not self.scheduler.finished:
            return False
        if not all(reader.gone or reader.seen == len(self.sizes) for reader in self.readers):
            return False
        if not self.scheduler.stored:
            return False
        if self._tee_alive and self.scheduler.dropped:
            self._copying = True
            # It waits for room until those who keep what they have seen are gone.
            for number in range(len(self.readers)):
                self.at(2.0, lambda number=number: self._vanish(number))  # type: ignore[misc]
            self._do(self.scheduler.store_dropped(self.now))
            return False
        return True

    def _tick(self) -> None:
        self._ticked = self.now
        self._flow()
        for connection in self.scheduler.flying():
            transfer = self._transfers.get(connection)
            if transfer is not None:
                self._reported[connection] = int(transfer.received)
                self.scheduler.received(connection, int(transfer.received), self.now)
        self.samples.append((self.now - self.start, self.scheduler.statistics.received_bytes, len(self._transfers)))
        self._do(self.scheduler.tick(self.now))
        self.targets.append(self.pace.target)
        unneeded = None if self.scheduler.has_waiting else self.arena.take_unneeded(8 * MIB)
        if unneeded is not None:
            for extent, start in self._memory.items():
                apart = unneeded[1] <= start or start + self.sizes[extent] <= unneeded[0]
                assert apart, "memory in use is given back"

    # The network.

    def _flow(self) -> None:
        """Bytes that have arrived since the last look."""
        passed = self.now - self._flowed
        self._flowed = self.now
        if passed > 0:
            for transfer in self._flowing:
                transfer.received = min(transfer.until, transfer.received + transfer.rate * passed)

    def _share(self) -> None:
        """Who gets how much from now on, and who is through first."""
        self._version += 1
        left, count, soonest, first = self.bucket.total_rate, len(self._flowing), math.inf, None
        order = sorted(self._flowing, key=lambda t: t.cap) if left < math.inf else self._flowing
        for transfer in order:
            transfer.rate = min(transfer.cap, left / count)
            left, count = left - transfer.rate, count - 1
            if transfer.until < math.inf and transfer.rate > 0:
                needs = (transfer.until - transfer.received) / transfer.rate
                if needs < soonest:
                    soonest, first = needs, transfer
        if first is not None:
            version = self._version
            self.at(soonest, lambda: self._through(first, version))

    def _through(self, transfer: _Transfer, version: int) -> None:
        if version == self._version:
            self._flow()
            transfer.received = transfer.until
            self._end(transfer)

    def _fetch(self, fetch: Fetch) -> None:
        chunk = self.chunks[fetch.chunk]
        assert fetch.connection not in self._transfers, "two requests on one connection"
        assert fetch.connection not in self._gone_connections, "a request on a connection that is gone"
        self._check_fetch(fetch, chunk)
        transfer = _Transfer(fetch, fetch.chunk, chunk.size - fetch.skip, 0.0)
        self._transfers[fetch.connection] = transfer
        self._reported[fetch.connection] = 0
        remote = sum(not t.fetch.is_local for t in self._transfers.values())
        assert fetch.is_local or remote <= self.pace.target, "more connections than there should be"
        assert not fetch.is_local or len(self._transfers) - remote <= self.local_max
        (self._read if fetch.is_local else self._request)(transfer, chunk)

    def _read(self, transfer: _Transfer, chunk: Chunk) -> None:
        transfer.end = "local" if transfer.number in self._local_bad else "done"
        transfer.until = transfer.received = transfer.size
        self.at(transfer.size / self.bucket.local_rate, lambda: self._end(transfer))

    def _request(self, transfer: _Transfer, chunk: Chunk) -> None:
        rng, seconds = self.rng, self.now - self.start
        bucket = self.cdn if self.cdn is not None and transfer.fetch.cdn else self.bucket
        if bucket.latency_sigma:
            delay = bucket.latency * math.exp(rng.gauss(0.0, bucket.latency_sigma))
        else:
            delay = bucket.latency * rng.uniform(0.8, 1.5)
        transfer.first_byte_seconds = delay
        if transfer.fetch.connection not in self._warm:
            each = rng.uniform(*bucket.each_rates) if bucket.each_rates else 0.0
            self._warm[transfer.fetch.connection] = each
            delay += bucket.connect
        version = self._link[chunk.segment]
        if seconds >= bucket.dead_after:
            self.at(bucket.idle_seconds, lambda: self._end(transfer, "broken"))
            return
        if seconds >= bucket.down_after:
            self.at(0.001, lambda: self._end(transfer, "broken"))
            return
        stormy = any(start <= seconds < stop for start, stop in bucket.storms)
        if bucket.no and rng.random() < bucket.no:
            transfer.end, transfer.until = rng.choice(["refused", "gone", "changed", "range", "protocol", "tls"]), 0
        elif stormy or rng.random() < bucket.busy or self._served() > bucket.busy_max:
            transfer.end, transfer.until = "busy", 0
        elif 0 < bucket.link_requests <= self._link_used.get((chunk.segment, version), 0):
            transfer.end, transfer.until = "refused", 0
        elif rng.random() < bucket.misranged:
            transfer.end, transfer.until = "range", 0
        else:
            self._link_used[chunk.segment, version] = self._link_used.get((chunk.segment, version), 0) + 1
            each = self._warm[transfer.fetch.connection]
            transfer.cap = each or bucket.each_rate * rng.uniform(0.9, 1.1)
            transfer.until = transfer.size
            if rng.random() < bucket.slow:
                transfer.cap /= bucket.slow_factor
            if rng.random() < bucket.reset:
                transfer.end, transfer.until = "broken", rng.randrange(transfer.size + 1)
            elif rng.random() < bucket.stall:
                transfer.until, stalled = math.inf, rng.randrange(transfer.size)
                self.at(delay + stalled / transfer.cap, lambda: self._stall(transfer))
                self.at(delay + stalled / transfer.cap + bucket.idle_seconds, lambda: self._end(transfer, "broken"))
            elif rng.random() < bucket.corrupt:
                transfer.end = "corrupt"
        self.at(delay, lambda: self._begin_flowing(transfer))

    def _served(self) -> int:
        """Requests that the bucket is busy with."""
        return sum(transfer.end != "busy" and not transfer.fetch.is_local for transfer in self._transfers.values())

    def _begin_flowing(self, transfer: _Transfer) -> None:
        if self._transfers.get(transfer.fetch.connection) is not transfer:
            return
        if transfer.until <= 0:
            self._end(transfer)
            return
        self._flow()
        transfer.flowing = True
        self._flowing.append(transfer)
        self._share()

    def _stall(self, transfer: _Transfer) -> None:
        if transfer.flowing:
            self._flow()
            transfer.cap = 0.0
            self._share()

    def _end(self, transfer: _Transfer, kind: str | None = None) -> None:
        """The worker answers."""
        fetch, number = transfer.fetch, transfer.number
        if not self._take(transfer):
            return
        kind, received = kind or transfer.end, int(transfer.received)
        if fetch.cdn and kind != "done":
            self._left_cdn.add(number)
            assert self.cdn is not None
            if received and kind != "corrupt" and self.rng.random() < self.cdn.corrupt:
                self._tainted.add(number)
        elif kind == "done" and number in self._tainted and not fetch.is_local:
            assert not fetch.cdn, "what the bucket began, the CDN goes on with"
            kind = "mixed"
        chunk = self.chunks[number]
        self._in_place[number] = fetch.skip + received
        if kind == "done":
            assert received == transfer.size
            self._done.add(number)
            self._bad.pop(number, None)
            if self._tee_alive and not fetch.is_local and self.wanted[number]:
                self._to_store.setdefault(chunk.extent, set()).add(number)
            self._settle()
            self._do(self.scheduler.done(fetch.connection, self.now, first_byte_seconds=transfer.first_byte_seconds))
            return
        asked = None
        if kind in {"corrupt", "local", "mixed"}:
            self._in_place[number] = 0
            self._tainted.discard(number)
            if kind != "mixed" and not fetch.cdn:
                self._bad[number] = self._bad.get(number, 0) + 1
                self.wanted[number] = self._tee_alive
            kind = "corrupt" if kind == "mixed" else kind
        elif kind == "range" and not fetch.cdn:
            self._misranged[number] = self._misranged.get(number, 0) + 1
        elif kind == "busy":
            asked = self.bucket.retry_after
        if kind not in {"busy", "refused", "corrupt", "range"}:
            self._warm.pop(fetch.connection, None)
        failure = Failure(kind, received, f"{kind} answer", asked)
        self._do(self.scheduler.failed_fetch(fetch.connection, failure, self.now))

    def _take(self, transfer: _Transfer) -> bool:
        """Ends a request; whether it was still under way."""
        connection = transfer.fetch.connection
        if self._transfers.get(connection) is not transfer:
            return False
        self._flow()
        del self._transfers[connection]
        if transfer.flowing:
            transfer.flowing = False
            self._flowing.remove(transfer)
            self._share()
        return True

    def _stop(self, connection: int) -> None:
        transfer = self._transfers.get(connection)
        if transfer is not None and self.rng.random() >= self.bucket.stop_lost:
            self.at(0.001, lambda: self._end(transfer, "cancelled"))

    def _renew(self, segment: int) -> None:
        assert segment not in self._renewing, "asked twice for one link"
        self._renewing.add(segment)

        def renewed() -> None:
            self._renewing.remove(segment)
            self._link[segment] += 1
            self._do(self.scheduler.renewed(segment, self.now))

        if self.bucket.renew_seconds < math.inf:
            self.at(self.bucket.renew_seconds, renewed)

    def _kill_worker(self) -> None:
        worker = self.rng.randrange(self.workers)
        mine = [c for c in range(max(self.pace.limit, self.local_max)) if c % self.workers == worker]
        if self._gone_connections.intersection(mine):
            return
        for connection in mine:
            self._warm.pop(connection, None)
            transfer = self._transfers.get(connection)
            if transfer is not None:
                self._take(transfer)
                # Of what it received last, nothing is known.
                self._in_place[transfer.number] = transfer.fetch.skip + self._reported[connection]
        self._gone_connections.update(mine)
        actions = self.scheduler.lost(mine, self.now)

        def back() -> list[Action]:
            self._gone_connections.difference_update(mine)
            return self.scheduler.regained(mine, self.now)

        if self.respawn:
            self._do(actions)
            self.at(self.respawn, lambda: self._do(back()))
        else:
            self._do([*actions, *back()])

    # Consumers.

    def _attach(self, number: int) -> None:
        reader = self.readers[number]
        reader.attached, reader.moved = True, self.now
        for action in self.scheduler.attached(number, self.now):
            if isinstance(action, Ready):
                self._tell(number, action)
            else:
                self._do([action])
        assert [ready.extent for ready in self._ready] == [ready.extent for ready in reader.inbox]
        self._read_on(number)

    def _tell(self, number: int, ready: Ready) -> None:
        reader = self.readers[number]
        assert ready.extent not in reader.told, "told twice"
        reader.told.add(ready.extent)
        reader.inbox.append(ready)
        reader.waiting = False
        if not reader.working:
            reader.working = True
            self.at(0.0, lambda: self._read_on(number))

    def _read_on(self, number: int) -> None:
        """The consumer has time for the next extent."""
        reader = self.readers[number]
        if reader.gone:
            return
        if reader.leave_after is not None and reader.seen >= reader.leave_after:
            self._leave(number)
            return
        if not reader.inbox:
            reader.working = False
            if reader.seen < len(self.sizes):
                reader.waiting, reader.moved = True, self.now
                self._do(self.scheduler.waiting(number, reader.seen, self.now))
            return
        reader.working = True
        ready = reader.inbox.pop(0)
        reader.seen += 1
        assert all(chunk in self._done for chunk in self.members[ready.extent])
        assert self._memory.get(ready.extent) == ready.offset, "memory was taken from under a consumer"
        if self.rng.random() >= reader.keep:
            self.at(reader.work + reader.late_drop, lambda: self._drop(number, ready.extent))
        self.at(reader.work, lambda: self._read_on(number))

    def _leave(self, number: int) -> None:
        reader = self.readers[number]
        if reader.gone:
            return
        if self.rng.random() < 0.5:
            # It keeps some of what it has looked at, for long or for ever.
            reader.holds = {ready.extent for ready in self._ready[: reader.seen]} - reader.dropped
            for extent in sorted(reader.holds):
                if self.rng.random() < 0.5:
                    self.at(self.rng.random(), partial(self._drop, number, extent))
        if not reader.holds:
            self._vanish(number)
            return
        reader.gone = True
        self._settle()
        self._do(self.scheduler.left(number, reader.seen, self.now))

    def _vanish(self, number: int) -> None:
        reader = self.readers[number]
        if not reader.gone or reader.holds:
            reader.gone = True
            reader.holds.clear()
            self._settle()
            self._do(self.scheduler.detached(number, self.now))

    def _drop(self, number: int, extent: int) -> None:
        reader = self.readers[number]
        if not reader.gone or extent in reader.holds:
            reader.dropped.add(extent)
            reader.holds.discard(extent)
            reader.moved = self.now
            self._settle()
            self._do(self.scheduler.released(number, extent, self.now))

    def _held(self, extent: int) -> bool:
        return any(
            extent in reader.holds or (not reader.gone and extent not in reader.dropped) for reader in self.readers
        )

    def _settle(self) -> None:
        """Extents that no reader uses any more, as far as the world knows."""
        for extent in list(self._memory):
            if extent not in self._ready_extents or self._held(extent) or self._to_store.get(extent):
                continue
            if not any(self.chunks[t.number].extent == extent for t in self._transfers.values()):
                del self._memory[extent]

    # The local copy.

    def _store(self, store: StoreChunk) -> None:
        assert self._storing is None, "two chunks at once"
        assert self._tee_alive
        assert self.disk is not None
        chunk = self.chunks[store.chunk]
        assert store.chunk in self._done
        assert store.chunk not in self._stored
        assert self._memory[chunk.extent] + chunk.position == store.offset
        self._storing = store
        self.at(chunk.size / self.disk.rate, lambda: self._stored_it(store))

    def _stored_it(self, store: StoreChunk) -> None:
        if self._storing is store:
            self._storing = None
            self._stored.add(store.chunk)
            self._to_store[self.chunks[store.chunk].extent].discard(store.chunk)
            self._settle()
            self._do(self.scheduler.stored_chunk(self.now))

    def _tee_dies(self) -> None:
        if self._tee_alive:
            self._tee_alive, self._storing = False, None
            self._to_store.clear()
            self._settle()
            self._do(self.scheduler.store_failed(self.now))

    # Carrying out.

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Fetch):
                self._forget_dropped()
                self._fetch(action)
            elif isinstance(action, Ready):
                self._check_ready(action)
                self._ready.append(action)
                self._ready_extents.add(action.extent)
                for number, reader in enumerate(self.readers):
                    if reader.attached and not reader.gone:
                        self._tell(number, action)
                self._settle()
            elif isinstance(action, Stop):
                self._stop(action.connection)
            elif isinstance(action, StoreChunk):
                self._store(action)
            elif isinstance(action, Renew):
                self._renew(action.segment)
            else:
                assert self.failed is None, "failed twice"
                self.failed = action
        self._forget_dropped()

    def _forget_dropped(self) -> None:
        for number in self.scheduler.dropped:
            waiting = self._to_store.get(self.chunks[number].extent)
            if waiting and number in waiting:
                waiting.discard(number)
                self._done.discard(number)
                self._in_place[number] = 0
                self._settle()

    # Invariants.

    def _check_fetch(self, fetch: Fetch, chunk: Chunk) -> None:
        assert 0 <= fetch.skip < chunk.size
        assert fetch.chunk not in self._done, "a chunk is fetched that is done"
        assert fetch.skip == min(self._in_place[fetch.chunk], chunk.size - 1), "bytes in place are fetched again"
        assert all(t.number != fetch.chunk for t in self._transfers.values()), "two writers on one chunk"
        assert not fetch.is_local or chunk.is_local
        assert chunk.segment not in self._renewing or fetch.is_local or fetch.cdn, (
            "a request with a link that was refused"
        )
        assert not fetch.cdn or (chunk.cdn and not fetch.is_local)
        assert not fetch.cdn or self.scheduler.cdn.open, "the CDN was given up"
        assert not fetch.cdn or fetch.chunk not in self._left_cdn, "the CDN has failed this chunk"
        start = fetch.offset - chunk.position
        known = self._memory.get(chunk.extent)
        if known is None:
            stop = start + self.sizes[chunk.extent]
            for extent, other in self._memory.items():
                assert stop <= other or other + self.sizes[extent] <= start, "memory in use is used again"
            self._memory[chunk.extent] = start
        else:
            assert known == start, "an extent has moved"

    def _check_ready(self, ready: Ready) -> None:
        assert ready.extent not in self._ready_extents, "ready twice"
        assert ready.order == len(self._ready)
        assert not self.in_order or ready.extent == ready.order
        assert self._memory[ready.extent] == ready.offset
        assert all(number in self._done for number in self.members[ready.extent]), "ready before it is whole"

    def _checked_grow(self, size: int) -> int:
        assert not self._transfers, "grown while something flies"
        assert not self._renewing
        assert not self.scheduler._resting
        if self._copying:
            assert not self._memory
        else:
            for reader in self.readers:
                silent = reader.waiting or self.now - reader.moved > STUCK_SECONDS
                assert reader.gone or (reader.attached and silent), "grown while a consumer may drop something"
            storing = self._storing and self.chunks[self._storing.chunk].extent
            assert storing is None or self._held(storing), "grown while the disk was about to give some back"
        return self._grow(size)

    def _check(self) -> None:
        scheduler, counts = self.scheduler, self.scheduler.statistics
        assert self.arena.touched_bytes <= self.limit + counts.grown_bytes
        assert self.arena.touched_bytes <= self.arena.limit_bytes
        for extent, start in self._memory.items():
            assert self.arena._used.get(start, 0) >= start + self.sizes[extent], "used memory counts as free"
        assert sorted(scheduler.flying()) == sorted(self._transfers)
        if self.failed is not None:
            return
        due = scheduler.deadline(self.now)
        assert scheduler.finished or due is not None
        if scheduler._resting and not scheduler.failed:
            assert due is not None
            assert due <= max(self.now, scheduler._resting[0][0]) + TICK_SECONDS
        assert not scheduler._resting or scheduler._resting[0][0] > self._ticked, "not woken from its rest"
        # No idle connection while there is work that it may do.
        flying = [0, 0]
        for transfer in self._transfers.values():
            flying[transfer.fetch.is_local] += 1
        if len(self._transfers) + len(self._gone_connections) < max(self.pace.limit, self.local_max):
            idle = [c for c in scheduler._idle if c not in self._gone_connections]
            for here, most in ((0, self.pace.target), (1, self.local_max)):
                if flying[here] >= most or not idle:
                    continue
                assert not scheduler._queues[here], "idle, and a chunk is queued"
                roomy = self.limit >= 4 * sum(self.sizes) + 4096 * len(self.sizes)
                ahead = scheduler._extents.ahead_bytes > WINDOW_BYTES and scheduler._extents.all_attached
                piled = len(scheduler._queues[1 - here]) >= PILE_MAX
                assert not (roomy and not ahead and not piled and scheduler._pending_kinds[here]), "idle, with room"

    def _check_end(self) -> None:
        counts, scheduler = self.scheduler.statistics, self.scheduler
        assert len(self._ready) == len(self.sizes)
        assert len(self._done) == len(self.chunks) or (self.disk and not self._tee_alive)
        assert counts.done_bytes == sum(self.sizes)
        assert counts.fallbacks == len(self._left_cdn) == sum(scheduler.cdn.failures.values())
        assert not scheduler._cdn_flying
        assert not scheduler._mixed or self._copying or self.disk
        for reader in self.readers:
            assert reader.gone or reader.told == set(range(len(self.sizes)))
        if self._tee_alive:
            assert self._stored == {n for n, wanted in enumerate(self.wanted) if wanted}
            assert counts.unstored_bytes == 0
        # All memory is returned once every reader has left.
        for number, reader in enumerate(self.readers):
            if not reader.gone or reader.holds:
                scheduler.detached(number, self.now)
        assert self.arena.used_bytes == 0
        assert scheduler._extents.ahead_bytes == 0


def even(count: int, size: int = 8 * MIB) -> list[list[int]]:
    """So many extents of one chunk."""
    return [[size] for _ in range(count)]
