"""Decides what is fetched when, on which connection, into which memory, and what happens when it fails. Pure.

Events come in as method calls with the time, actions come out as a list: the streamer carries them out, a test in
virtual time checks them.

A chunk is *pending* (its extent has no memory yet), *queued*, *in flight* on a connection, *resting* until a time after
a failure, *parked* until its segment has a new link, or *done*. Extents get memory roughly in the order of the files;
`extents` follows them from there, `hedging` finds slow connections, `pace` decides how many there should be.

A connection is the only writer of its chunk. One that is slow or silent is stopped, and once it has reported how far it
came, another continues from there: no byte is received twice, and no late writer can overwrite verified bytes, as with
two requests that race for one place. A load gives up when nothing at all has moved for long, never because one chunk
has failed a number of times: while others arrive, the bucket works.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from coldstream.engine.actions import Action, Chunk, Fail, Failure, Fetch, Renew, Stop, StoreChunk
from coldstream.engine.arena import Arena, quick_first
from coldstream.engine.cdn_choice import BYTES_PER_SECOND_MIN, SLOW_SECONDS, CdnHealth
from coldstream.engine.extents import Extents
from coldstream.engine.hedging import Flight, Speeds
from coldstream.engine.load_statistics import LoadStatistics
from coldstream.engine.pace import Pace

CHUNK_BYTES = 8 << 20
# How far ready extents may be ahead of a consumer that is there: enough to ride out its pauses, small enough for
# memory to be reused while it is warm.
WINDOW_BYTES = 16 * CHUNK_BYTES
TICK_SECONDS = 0.05
IDLE_TICK_SECONDS = 0.5  # with nothing in flight, ticks only notice a stuck consumer, or a load that has to be given up
# How many chunks of one kind, local or remote, may have memory and wait while extents are placed for the other kind.
PILE_MAX = 16
REFUSED_MAX = CORRUPT_MAX = MISRANGED_MAX = 3
_SUSPECT = {"corrupt", "local", "range"}
# Failures that a retry cannot fix, and the kind of the load's failure.
_PERMANENT = {"changed": "conflict", "gone": "not-found", "tls": "unavailable"}
BACKOFF_SECONDS = 0.05
BACKOFF_SECONDS_MAX = 5.0
# The longest rest of a chunk, whatever a server asks for: other requests tell sooner whether the bucket works again.
REST_SECONDS_MAX = 60.0


@dataclass(slots=True)
class RetryState:
    """A chunk's failures so far."""

    failures: int = 0  # consecutive ones without a received byte
    corrupt: int = 0  # wrong digests
    misranged: int = 0  # answers with a range that was not requested
    takeovers: int = 0  # slow connections that were stopped

    def rest(self, retry_after_seconds: float | None, rng: random.Random) -> float:
        """Counts a failure; returns how many seconds to rest, with jitter, since other clients got the same answer."""
        self.failures += 1
        if retry_after_seconds is not None:
            return min(retry_after_seconds, REST_SECONDS_MAX) + rng.uniform(0.0, 0.2)
        if self.failures == 1:
            return rng.uniform(0.0, BACKOFF_SECONDS)
        mean: float = min(BACKOFF_SECONDS * 2.0 ** (self.failures - 1), BACKOFF_SECONDS_MAX)
        return rng.uniform(0.5, 1.5) * mean


class Scheduler:
    """One load."""

    def __init__(
        self,
        chunks: Sequence[Chunk],  # all, in the order of the files
        extents: Sequence[int],  # the size of each extent in bytes; its chunks are consecutive, at least one
        *,
        arena: Arena,
        pace: Pace,
        consumers: int = 1,
        local_max: int = 4,  # parallel reads of local files
        in_order: bool = False,  # whether extents become ready in order
        store: Sequence[bool] = (),  # per chunk, whether to write it to the local copy; empty for none
        give_up_seconds: float = 180.0,  # the load fails when nothing has moved for this long
        rng: random.Random | None = None,
        now: float,
    ) -> None:
        """Begins; the first actions come from `tick`."""
        self.statistics = LoadStatistics()
        self.pace, self.arena = pace, arena
        self.failed: Fail | None = None  # the action that ended the load, or None
        # Chunks that were not written to the local copy because memory was needed; see `store_dropped`.
        self.dropped: list[int] = []
        self._chunks, self._sizes = chunks, extents
        self._give_up, self._local_max = give_up_seconds, local_max
        self._rng = rng or random.Random()
        self._speeds = Speeds()
        self.cdn = CdnHealth()
        self._cdn_speeds = Speeds()
        self._cdn_flying = 0
        self._mixed: set[int] = set()  # chunks that are partly from the CDN, while the bucket delivers the rest
        self._skip = [0] * len(chunks)
        self._is_local = [chunk.is_local for chunk in chunks]
        self._members: list[list[int]] = [[] for _ in extents]  # of each extent, the chunks to fetch
        for number, chunk in enumerate(chunks):
            self._members[chunk.extent].append(number)
        counts = [len(members) for members in self._members]
        self._extents = Extents(extents, counts, arena=arena, consumers=consumers, in_order=in_order, now=now)
        # Extents without memory, and how many remote and local chunks they have.
        self._pending = deque(
            range(len(extents)) if in_order else quick_first(extents, pace.target, small_bytes=CHUNK_BYTES)
        )
        self._pending_kinds = [len(chunks) - sum(self._is_local), sum(self._is_local)]
        self._queues: tuple[list[int], list[int]] = ([], [])  # heaps; remote, local
        self._resting: list[tuple[float, int]] = []
        self._parked: dict[int, list[int]] = {}  # by segment, while its link is being renewed
        self._flights: dict[int, Flight] = {}
        self._flying = [0, 0]
        self._idle = list(range(max(pace.limit, local_max)))  # a heap
        self._lost: set[int] = set()
        self._retry_states: dict[int, RetryState] = {}
        self._renewed: dict[int, float] = {}  # when each segment's link was last renewed
        self._refused: Counter[int] = Counter()  # by segment, in a row
        self._left = len(chunks)
        self._again = 0  # chunks that are fetched again for the local copy, and not done
        self._moved = now
        self._accounted = self._looked = now  # times of the last event and of the last tick
        self._last_message = "no answer"
        self._to_store = list(store)
        self._stores: deque[int] = deque()  # chunks that wait for the tee, in order
        self._storing: int | None = None
        self._blocked = False  # whether the last dispatch lacked memory

    def __repr__(self) -> str:
        return (
            f"Scheduler({len(self._chunks) - self._left} of {len(self._chunks)} chunks, {len(self._flights)} flying, "
            f"{len(self._extents.ready)} of {len(self._sizes)} extents ready, {len(self._extents.offsets)} in memory, "
            f"{self.pace})"
        )

    @property
    def finished(self) -> bool:
        return not self._left

    @property
    def stored(self) -> bool:
        """Whether the local copy has everything except what was `dropped`."""
        return not self._stores and self._storing is None and (not self._again or self.failed is not None)

    def flying(self) -> list[int]:
        return list(self._flights)

    def flight(self, connection: int) -> tuple[int, int] | None:
        """The chunk that a connection fetches, and its offset in the chunk."""
        flight = self._flights.get(connection)
        return (flight.chunk, flight.skip) if flight else None

    @property
    def has_waiting(self) -> bool:
        """Whether a chunk waits for memory or for a connection."""
        return bool(self._pending or any(self._queues))

    # Events of consumers.

    def attached(self, consumer: int, now: float) -> list[Action]:
        """A consumer attached; it is told of every extent that is already complete."""
        return [*self._extents.attach(consumer, now), *self._dispatch(now)]

    def waiting(self, consumer: int, seen: int, now: float) -> list[Action]:
        """A consumer has seen `seen` complete extents and waits for the next."""
        self._extents.wait(consumer, seen, now)
        return self._dispatch(now)

    def released(self, consumer: int, extent: int, now: float) -> list[Action]:
        """A consumer has dropped every tensor of an extent."""
        self._extents.release(consumer, extent, now)
        return self._dispatch(now)

    def left(self, consumer: int, seen: int, now: float) -> list[Action]:
        """A consumer reads no more than `seen` complete extents, but may hold some of those for long."""
        self._extents.leave(consumer, seen, now)
        return self._dispatch(now)

    def detached(self, consumer: int, now: float) -> list[Action]:
        """A consumer is gone with everything that it held: it finished, or it died."""
        return self.left(consumer, 0, now)

    # Events of connections.

    def received(self, connection: int, count: int, now: float) -> None:
        """A connection has received `count` bytes since its request began."""
        flight = self._flights.get(connection)
        if flight is not None and count > flight.received:
            if flight.is_local:
                self.statistics.local_bytes += count - flight.received
            else:
                self.statistics.received_bytes += count - flight.received
                if flight.cdn:
                    self.statistics.cdn_bytes += count - flight.received
            flight.received, flight.moved, self._moved = count, now, now

    def done(self, connection: int, now: float, *, first_byte_seconds: float = 0.0) -> list[Action]:
        """A connection has delivered its chunk, complete and verified."""
        self.received(connection, self._flights[connection].size, now)
        flight = self._land(connection, now)
        number, chunk = flight.chunk, self._chunks[flight.chunk]
        if not flight.is_local:
            speeds = self._cdn_speeds if flight.cdn else self._speeds
            speeds.finished(flight, first_byte_seconds, now, chunk_bytes=chunk.size)
            self.pace.answered(busy=False, began=flight.began, now=now)
            if flight.cdn:
                self.cdn.succeeded()
            elif self._mixed:
                self._mixed.discard(number)
        self._moved = now
        self._retry_states.pop(number, None)
        self._refused.pop(chunk.segment, None)
        if chunk.extent in self._extents.orders:
            self._again -= 1
        else:
            self._left -= 1
            self.statistics.done_bytes += chunk.size
        stored = bool(self._to_store) and self._to_store[number] and not flight.is_local
        if stored:
            self._stores.append(number)
        ready = self._extents.add(chunk.extent, now, stored=stored)
        self.statistics.consumer_wait_seconds = self._extents.consumer_wait_seconds
        return [*ready, *self._store_next(), *self._dispatch(now)]

    def failed_fetch(self, connection: int, failure: Failure, now: float) -> list[Action]:
        """A connection has failed, or was stopped."""
        self.received(connection, failure.received, now)
        flight = self._land(connection, now)
        number, chunk = flight.chunk, self._chunks[flight.chunk]
        # A request cannot be empty: if only the result was lost, the last byte is fetched again.
        self._skip[number] = min(flight.skip + flight.received, chunk.size - 1)
        state = self._retry_states.setdefault(number, RetryState())
        if flight.received:
            state.failures = 0
            self._refused.pop(chunk.segment, None)
        if failure.kind != "cancelled" and not flight.cdn:
            self._last_message = failure.message or self._last_message
            self.statistics.retries += 1
            self.statistics.retry_causes[failure.kind] = self.statistics.retry_causes.get(failure.kind, 0) + 1
        if self.failed:
            return []
        if chunk.extent in self._extents.orders and not self._to_store:
            self._again -= 1  # it was for the local copy, which has ended
            self._extents.discard(chunk.extent)
            return []
        ended = self._react(flight, state, failure, now)
        if isinstance(ended, Fail):
            self.failed = ended
            return [ended]
        return [*([ended] if ended else []), *self._dispatch(now)]

    def lost(self, connections: Sequence[int], now: float) -> list[Action]:
        """The process that had these connections died; they are usable again after `regained`."""
        actions: list[Action] = []
        self._lost |= set(connections)
        self._idle = [connection for connection in self._idle if connection not in self._lost]
        heapq.heapify(self._idle)
        for connection in connections:
            if connection in self._flights:
                actions += self.failed_fetch(connection, Failure("lost", 0, "a fetching process died"), now)
        return actions

    def regained(self, connections: Sequence[int], now: float) -> list[Action]:
        """Lost connections are usable again, and idle."""
        for connection in self._lost.intersection(connections):
            heapq.heappush(self._idle, connection)
        self._lost -= set(connections)
        return self._dispatch(now)

    def renewed(self, segment: int, now: float) -> list[Action]:
        """A segment has a new link."""
        self._renewed[segment] = now
        for number in self._parked.pop(segment, ()):
            heapq.heappush(self._queues[0], number)
        return self._dispatch(now)

    # Events of the local copy.

    def stored_chunk(self, now: float) -> list[Action]:
        """The chunk of the last `StoreChunk` is written."""
        assert self._storing is not None
        extent = self._chunks[self._storing].extent
        self._storing = None
        self._extents.settle(extent)
        return [*self._store_next(), *self._dispatch(now)]

    def store_failed(self, now: float) -> list[Action]:
        """The local copy can no longer be written, and the tee no longer reads the arena."""
        pending = [*self._stores, *([self._storing] if self._storing is not None else [])]
        self._stores.clear()
        self._storing = None
        self._to_store = []
        self.dropped.clear()
        for number in pending:
            self.statistics.unstored_bytes += self._chunks[number].size
            self._extents.settle(self._chunks[number].extent)
        if self.finished:
            self._forget_again()
        return self._dispatch(now)

    def store_dropped(self, now: float) -> list[Action]:
        """Fetches again what was `dropped`, only for the local copy, as far as consumers leave room.

        Call it when the load is `finished` and `stored`. A `Fail` from then on ends only the local copy.
        """
        assert self.finished
        assert self.stored
        members: dict[int, list[int]] = {}
        for number in sorted(self.dropped):
            members.setdefault(self._chunks[number].extent, []).append(number)
            self.statistics.unstored_bytes -= self._chunks[number].size
            self._skip[number] = 0
        self._again = len(self.dropped)
        self._pending_kinds = [self._again, 0]
        self.dropped.clear()
        for extent, numbers in members.items():
            self._members[extent] = numbers
            self._extents.again(extent, len(numbers))
            self._pending.append(extent)
        self._moved = now
        return self._dispatch(now)

    # Time.

    def tick(self, now: float) -> list[Action]:
        """Time has passed: ends rests, stops slow connections, adapts the number of connections."""
        self._account(now)
        self._looked = now
        if self.failed:
            return []
        while self._resting and self._resting[0][0] <= now:
            _, number = heapq.heappop(self._resting)
            heapq.heappush(self._queues[self._is_local[number]], number)
        if not self._can_move():
            self._moved = now  # only consumers can move
        if now - self._moved > self._give_up and (self._left or self._again):
            self.failed = Fail("unavailable", None, self._last_message)
            return [self.failed]
        if self._flying[0] < self.pace.target:
            self.pace.idle()
        self.pace.observe(self.statistics.received_bytes, now)
        return [*self._stop_slow(now), *self._dispatch(now)]

    def deadline(self, now: float) -> float | None:
        """When to call `tick` next; None if only events matter."""
        if self.failed or not (self._left or self._again):
            return None
        # From the last tick, not from now: a steady stream of events must not postpone it.
        due = self._looked + (TICK_SECONDS if self._flights else IDLE_TICK_SECONDS)
        if self._resting:
            due = min(due, self._resting[0][0])
        return max(now, due)

    # Decisions.

    def _can_move(self) -> bool:
        """Whether anything can make progress without more memory."""
        return bool(self._flights or any(self._queues) or self._resting or self._parked)

    def _dispatch(self, now: float) -> list[Action]:
        if self.failed:
            return []
        actions: list[Action] = []
        self._blocked = False
        # Launching one kind can make room for the other; see `_admit`.
        while self._launch_all(1, self._local_max, actions, now) + self._launch_all(0, self.pace.target, actions, now):
            pass
        if self.failed:
            actions.append(self.failed)
        return actions

    def _launch_all(self, kind: int, most: int, actions: list[Action], now: float) -> int:
        """Launches queued chunks of one kind, 0 for remote and 1 for local; returns how many left the queue."""
        count = 0
        while self._idle and self._flying[kind] < most and (self._queues[kind] or self._admit(kind, now)):
            number = heapq.heappop(self._queues[kind])
            count += 1
            parked = None if kind else self._parked.get(self._chunks[number].segment)
            if parked is not None:
                parked.append(number)
            else:
                actions.append(self._launch(number, now))
        return count

    def _launch(self, number: int, now: float) -> Fetch:
        is_local, skip, chunk = self._is_local[number], self._skip[number], self._chunks[number]
        # The lowest idle connection is the warmest; local reads use the highest.
        connection = self._idle.pop() if is_local else heapq.heappop(self._idle)
        state = self._retry_states.get(number)
        takeovers = state.takeovers if state else 0
        cdn = chunk.cdn and not is_local and self.cdn.takes(number)
        size = chunk.size - skip
        self._flights[connection] = Flight(number, is_local, skip, size, now, takeovers, moved=now, cdn=cdn)
        self._flying[is_local] += 1
        self.statistics.requests += not is_local
        if cdn:
            self._cdn_flying += 1
            self.statistics.cdn_requests += 1
        self.statistics.connections_peak = max(self.statistics.connections_peak, self._flying[0])
        return Fetch(connection, number, self._extents.offsets[chunk.extent] + chunk.position, skip, is_local, cdn)

    def _land(self, connection: int, now: float) -> Flight:
        self._account(now)
        flight = self._flights.pop(connection)
        self._flying[flight.is_local] -= 1
        self._cdn_flying -= flight.cdn
        if connection not in self._lost:
            heapq.heappush(self._idle, connection)
        return flight

    def _admit(self, kind: int, now: float) -> bool:
        """Gives memory to more extents until one has a chunk of this kind."""
        # Within limits: chunks of the other kind would pile up in memory that is not being filled.
        while self._pending_kinds[kind] and len(self._queues[1 - kind]) < PILE_MAX:
            if self._extents.ahead_bytes > WINDOW_BYTES and self._extents.all_attached:
                return False
            extent = self._pending[0]
            if not self._place(extent, now):
                self._blocked = True
                return False
            self._pending.popleft()
            for number in self._members[extent]:
                heapq.heappush(self._queues[self._is_local[number]], number)
                self._pending_kinds[self._is_local[number]] -= 1
            if self._queues[kind]:
                return True
        return False

    def _place(self, extent: int, now: float) -> bool:
        """Gives memory to an extent; grows the arena as the last resort."""
        while not self._extents.place(extent):
            if self.failed:
                return False
            if self._drop_store():
                continue
            if not self._may_grow(now):
                return False
            # A consumer keeps its last tensor. If more is kept, growing extent by extent would take long.
            spare = WINDOW_BYTES if len(self._extents.offsets) > 1 else 0
            grown = self.arena.grow(max(self.arena.lacking_bytes(self._sizes[extent]), spare))
            if not grown:
                self.failed = Fail("memory", None, "the tensors that are kept fill all the memory that may be mapped")
                return False
            self.statistics.grown_bytes += grown
        return True

    def _may_grow(self, now: float) -> bool:
        """Whether only more memory can help: everything placed is fetched, and the consumers wait for more."""
        if self._can_move():
            return False
        if self.finished:
            return not self._extents.offsets  # the local copy can wait until consumers release memory
        if self._storing is not None and not self._extents.held(self._chunks[self._storing].extent):
            return False
        return self._extents.wait_for_memory(now)

    def _react(self, flight: Flight, state: RetryState, failure: Failure, now: float) -> Fail | Renew | None:
        """Decides about a failure: retry (None), renew the link, or end the load."""
        kind, number = failure.kind, flight.chunk
        if flight.cdn:
            self._return(flight, failure)
            return None
        if kind == "corrupt" and number in self._mixed:
            # Either source may have delivered the wrong bytes: fetch the whole chunk from the bucket.
            self._mixed.discard(number)
            self._skip[number] = 0
            heapq.heappush(self._queues[0], number)
            return None
        if kind == "refused":
            return self._refuse(flight, failure)
        if kind in _PERMANENT:
            return Fail(_PERMANENT[kind], number, failure.message)
        if kind in _SUSPECT and not self._try_suspect(number, state, kind):
            return Fail("integrity", number, failure.message)
        rest = 0.0
        if kind == "cancelled":
            state.takeovers += 1
        elif kind not in {"corrupt", "local"}:
            if kind == "busy":
                self.statistics.busy += 1
                self.pace.answered(busy=True, began=flight.began, now=now)
            rest = state.rest(failure.retry_after_seconds, self._rng)
        if rest:
            heapq.heappush(self._resting, (now + rest, number))
        else:
            heapq.heappush(self._queues[self._is_local[number]], number)
        return None

    def _return(self, flight: Flight, failure: Failure) -> None:
        """The CDN has failed to deliver a chunk: the bucket is next, at once."""
        number = flight.chunk
        if failure.kind != "lost":
            if failure.kind == "corrupt":
                self._skip[number] = 0
            if self._skip[number]:
                self._mixed.add(number)
            self.cdn.failed(number, "slow" if failure.kind == "cancelled" else failure.kind, failure.message)
            self.statistics.fallbacks += 1
        heapq.heappush(self._queues[0], number)

    def _try_suspect(self, number: int, state: RetryState, kind: str) -> bool:
        """Counts wrong bytes; returns whether to try again."""
        if kind == "range":
            state.misranged += 1
            return state.misranged < MISRANGED_MAX
        self.statistics.corrupt += 1
        self._skip[number] = 0
        if kind == "corrupt":
            state.corrupt += 1
            return state.corrupt < CORRUPT_MAX
        # This chunk of the local copy is wrong: use the original.
        self._is_local[number] = False
        if self._to_store:
            self._to_store[number] = True
        return self._chunks[number].remote

    def _refuse(self, flight: Flight, failure: Failure) -> Fail | Renew | None:
        """The link of a chunk's segment was refused: parks the chunk until the link is renewed."""
        segment = self._chunks[flight.chunk].segment
        renewed = self._renewed.get(segment)
        if segment in self._parked:
            self._parked[segment].append(flight.chunk)
            return None
        if renewed is not None and flight.began < renewed:
            heapq.heappush(self._queues[0], flight.chunk)  # it still had the old link
            return None
        self._refused[segment] += 1
        if self._refused[segment] > REFUSED_MAX:
            return Fail("credentials", flight.chunk, failure.message)
        self._parked[segment] = [flight.chunk]
        self.statistics.renewals += 1
        return Renew(segment)

    def _stop_slow(self, now: float) -> list[Action]:
        target, flights = self.pace.target, self._flights.items()
        remote = [(connection, flight) for connection, flight in flights if not flight.is_local and not flight.cdn]
        spare = not (self._queues[0] or self._pending_kinds[0]) and self._flying[0] <= target // 8
        to_stop = [*self._speeds.to_stop(remote, target, now, spare=spare)]
        if self._cdn_flying:
            through = [(connection, flight) for connection, flight in flights if flight.cdn]
            to_stop += self._cdn_speeds.to_stop(through, target, now, least=(BYTES_PER_SECOND_MIN, SLOW_SECONDS))
        for _, cause in to_stop:
            if cause is not None:
                self.statistics.hedges += 1
                self.statistics.hedge_causes[cause] = self.statistics.hedge_causes.get(cause, 0) + 1
        return [Stop(connection) for connection, _ in to_stop]

    def _store_next(self) -> list[Action]:
        if self._storing is not None or not self._stores:
            return []
        number = self._storing = self._stores.popleft()
        chunk = self._chunks[number]
        return [StoreChunk(number, self._extents.offsets[chunk.extent] + chunk.position)]

    def _drop_store(self) -> bool:
        """Stops writing the oldest extent that only the local copy holds; returns whether that freed memory."""
        if self.finished or self._extents.all_gone:
            return False  # no consumer waits: the disk may take its time
        busy = -1 if self._storing is None else self._chunks[self._storing].extent
        for number in self._stores:
            extent = self._chunks[number].extent
            if extent == busy or self._extents.held(extent) or extent not in self._extents.orders:
                continue
            mine = [n for n in self._stores if self._chunks[n].extent == extent]
            self._stores = deque(n for n in self._stores if self._chunks[n].extent != extent)
            self.dropped += mine
            for n in mine:
                self.statistics.unstored_bytes += self._chunks[n].size
                self._extents.settle(extent)
            return True
        return False

    def _forget_again(self) -> None:
        """Cancels what was to be fetched again for the local copy; what is in flight ends by itself."""
        self._pending.clear()
        self._pending_kinds = [0, 0]
        waiting = [*self._queues[0], *(n for _, n in self._resting), *(n for ns in self._parked.values() for n in ns)]
        self._queues[0].clear()
        self._resting.clear()
        self._parked.clear()
        self._again = len(self._flights)
        for number in waiting:
            self._extents.discard(self._chunks[number].extent)

    def _account(self, now: float) -> None:
        passed = max(0.0, now - self._accounted)
        self._accounted = now
        self.statistics.flying_seconds += passed * self._flying[0]
        if self._flying[0] > self._cdn_flying:
            self.statistics.bucket_seconds += passed
        if self._cdn_flying:
            self.statistics.cdn_seconds += passed
            self.statistics.cdn_flying_seconds += passed * self._cdn_flying
        if self._blocked and self._flying[0] < self.pace.target:
            self.statistics.memory_wait_seconds += passed
