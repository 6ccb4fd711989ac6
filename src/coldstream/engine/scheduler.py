"""What is fetched when, on which connection, into which memory, and what happens when it fails. Pure.

Events come in as method calls with the time, actions come out as a list: the streamer carries them out, a test in
virtual time checks them. No clock, no socket, no memory is touched here.

A chunk is *pending* (its extent has no memory yet), *queued*, *flying* on a connection, resting until a time after a
failure, *parked* until its segment has a new link, or *done*. Extents get memory about in the order of the files; what
becomes of them then is in `extents`, which connections are slow in `slow`, how many there should be in `pace`.

Whoever fetches a chunk is alone in writing to its place. A connection that is slow or silent is stopped, and once it
has said how far it came, another goes on from there: nothing that has arrived is fetched twice, and no late writer can
spoil bytes that were verified, as with two requests racing for one place.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from coldstream.engine.actions import Action, Chunk, Fail, Failure, Fetch, Renew, Stop, StoreChunk
from coldstream.engine.arena import Arena
from coldstream.engine.backoff import CORRUPT_MAX, MISRANGED_MAX, PERMANENT, Trouble
from coldstream.engine.cdn_choice import BYTES_PER_SECOND_MIN, SLOW_SECONDS, Cdn
from coldstream.engine.extents import Extents
from coldstream.engine.hedging import Flight, Speeds
from coldstream.engine.pace import Pace

CHUNK_BYTES = 8 << 20
# How far ready extents may be ahead of a consumer that is there: enough to ride out its pauses, small enough for
# memory to be reused while it is warm.
WINDOW_BYTES = 16 * CHUNK_BYTES
TICK_SECONDS = 0.05
# With nothing flying, only a consumer that is stuck, or a load that has to be given up, is found by looking.
IDLE_TICK_SECONDS = 0.5
# Chunks of one kind, local or remote, that may have memory and wait while the other kind is looked for.
PILE_MAX = 16
REFUSED_MAX = 3
_SUSPECT = {"corrupt", "local", "range"}


@dataclass(slots=True)
class Counts:
    """What happened, for the report. Seconds are integrals over the load's time."""

    received_bytes: int = 0
    here_bytes: int = 0
    done_bytes: int = 0
    requests: int = 0
    retries: int = 0
    retries_by: dict[str, int] = field(default_factory=dict)  # by `Failure.kind`
    busy: int = 0
    takeovers: int = 0
    takeovers_by: dict[str, int] = field(default_factory=dict)  # by `slow.CAUSES`
    corrupt: int = 0
    renewals: int = 0
    connections_peak: int = 0
    grown_bytes: int = 0
    flying_seconds: float = 0.0
    consumer_wait_seconds: float = 0.0
    memory_wait_seconds: float = 0.0
    rest_seconds: float = 0.0
    unstored_bytes: int = 0
    # Of what was received, that which came through the CDN; the rest is the bucket's. `fallbacks` are chunks that the
    # CDN was asked for and the bucket gave, the seconds those in which the CDN, or the bucket, was at work.
    cdn_bytes: int = 0
    cdn_requests: int = 0
    cdn_seconds: float = 0.0
    cdn_flying_seconds: float = 0.0
    bucket_seconds: float = 0.0
    fallbacks: int = 0


class Scheduler:
    """One load.

    Attributes:
        counts: See `Counts`.
        pace: Decides the number of connections.
        arena: Decides the place of extents.
        cdn: How the CDN has done.
        failed: The action that ended it, or None.
        dropped: Chunks that the local copy was not given, for want of memory; see `store_dropped`.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        extents: Sequence[int],
        *,
        arena: Arena,
        pace: Pace,
        consumers: int = 1,
        local_max: int = 4,
        in_order: bool = False,
        store: Sequence[bool] = (),
        give_up_seconds: float = 180.0,
        rng: random.Random | None = None,
        now: float,
    ) -> None:
        """Begins; the first actions come from `tick`.

        Args:
            chunks: All, in the order of the files.
            extents: The size of each extent in bytes; its chunks are consecutive, and it has one at least.
            arena: Where extents go.
            pace: How many connections there should be.
            consumers: How many will look at every extent.
            local_max: How many reads of local files run at once.
            in_order: Whether extents become ready in order.
            store: Per chunk, whether it is wanted in the local copy; empty: none is.
            give_up_seconds: How long nothing may move before the load fails.
            rng: For jitter.
            now: The time.
        """
        self.counts = Counts()
        self.pace, self.arena = pace, arena
        self.failed: Fail | None = None
        self.dropped: list[int] = []
        self._chunks, self._sizes = chunks, extents
        self._give_up, self._local_max = give_up_seconds, local_max
        self._rng = rng or random.Random()
        self._speeds = Speeds()
        self.cdn = Cdn()
        self._cdn_speeds = Speeds()
        self._cdn_flying = 0
        self._mixed: set[int] = set()  # chunks whose bytes in place are the CDN's, while the bucket brings the rest
        self._skip = [0] * len(chunks)
        self._here = [chunk.here for chunk in chunks]
        self._members: list[list[int]] = [[] for _ in extents]  # of each extent, the chunks that it is fetched for
        for number, chunk in enumerate(chunks):
            self._members[chunk.extent].append(number)
        self._extents = Extents(
            extents,
            [len(members) for members in self._members],
            arena=arena,
            consumers=consumers,
            in_order=in_order,
            now=now,
        )
        # Extents without memory, and how many chunks of each kind, remote and here, they have.
        self._pending = deque(range(len(extents)) if in_order else quick_first(extents, pace.target))
        self._pending_kinds = [len(chunks) - sum(self._here), sum(self._here)]
        self._queues: tuple[list[int], list[int]] = ([], [])  # heaps; remote, here
        self._resting: list[tuple[float, int]] = []
        self._parked: dict[int, list[int]] = {}  # by the segment whose link is being renewed
        self._flights: dict[int, Flight] = {}
        self._flying = [0, 0]
        self._idle = list(range(max(pace.limit, local_max)))  # a heap
        self._lost: set[int] = set()
        self._trouble: dict[int, Trouble] = {}
        self._renewed: dict[int, float] = {}  # when each segment last got a new link
        self._refused: Counter[int] = Counter()  # by segment, in a row
        self._left = len(chunks)
        self._again = 0  # chunks that are fetched for the local copy alone, and not done
        self._moved = now
        self._accounted = self._looked = now  # the last of any event, the last tick
        self._last_message = "no answer"
        self._wanted = list(store)
        self._stores: deque[int] = deque()  # chunks to be stored, in order
        self._storing: int | None = None
        self._blocked = False  # for want of memory, at the last dispatch

    def __repr__(self) -> str:
        return (
            f"Scheduler({len(self._chunks) - self._left} of {len(self._chunks)} chunks, {len(self._flights)} flying, "
            f"{len(self._extents.ready)} of {len(self._sizes)} extents ready, {self._extents.in_memory} in memory, "
            f"{self.pace})"
        )

    @property
    def finished(self) -> bool:
        """Whether every chunk is done."""
        return not self._left

    @property
    def stored(self) -> bool:
        """Whether nothing is left to be written to the local copy, but what is `dropped`."""
        return not self._stores and self._storing is None and (not self._again or self.failed is not None)

    def flying(self) -> list[int]:
        """The connections that fetch."""
        return list(self._flights)

    def flight(self, connection: int) -> tuple[int, int] | None:
        """The chunk that a connection fetches, and where it began."""
        flight = self._flights.get(connection)
        return (flight.chunk, flight.skip) if flight else None

    # Events of consumers.

    def attached(self, consumer: int, now: float) -> list[Action]:
        """A consumer is there; it is told of every extent that is ready already."""
        return [*self._extents.attach(consumer, now), *self._dispatch(now)]

    def waiting(self, consumer: int, seen: int, now: float) -> list[Action]:
        """A consumer has looked at `seen` ready extents and waits for the next."""
        self._extents.wait(consumer, seen, now)
        return self._dispatch(now)

    def released(self, consumer: int, extent: int, now: float) -> list[Action]:
        """A consumer has dropped every tensor of an extent."""
        self._extents.release(consumer, extent, now)
        return self._dispatch(now)

    def left(self, consumer: int, seen: int, now: float) -> list[Action]:
        """A consumer looks at nothing beyond `seen` ready extents, but may hold some of those for long."""
        self._extents.leave(consumer, seen, now)
        return self._dispatch(now)

    def detached(self, consumer: int, now: float) -> list[Action]:
        """A consumer is gone, with all that it held: it finished, or it died."""
        return self.left(consumer, 0, now)

    # Events of connections.

    def received(self, connection: int, count: int, now: float) -> None:
        """A connection has received `count` bytes since its request began."""
        flight = self._flights.get(connection)
        if flight is not None and count > flight.received:
            if flight.here:
                self.counts.here_bytes += count - flight.received
            else:
                self.counts.received_bytes += count - flight.received
                if flight.cdn:
                    self.counts.cdn_bytes += count - flight.received
            flight.received, flight.moved, self._moved = count, now, now

    def done(self, connection: int, now: float, *, first_byte_seconds: float = 0.0) -> list[Action]:
        """A connection has brought its chunk, whole and verified."""
        self.received(connection, self._flights[connection].size, now)
        flight = self._land(connection, now)
        number, chunk = flight.chunk, self._chunks[flight.chunk]
        if not flight.here:
            speeds = self._cdn_speeds if flight.cdn else self._speeds
            speeds.finished(flight, first_byte_seconds, now, chunk_bytes=chunk.size)
            self.pace.answered(busy=False, began=flight.began, now=now)
            if flight.cdn:
                self.cdn.succeeded()
            elif self._mixed:
                self._mixed.discard(number)
        self._moved = now
        self._trouble.pop(number, None)
        self._refused.pop(chunk.segment, None)
        if self._extents.was_ready(chunk.extent):
            self._again -= 1
        else:
            self._left -= 1
            self.counts.done_bytes += chunk.size
        stored = bool(self._wanted) and self._wanted[number] and not flight.here
        if stored:
            self._stores.append(number)
        ready = self._extents.add(chunk.extent, now, stored=stored)
        self.counts.consumer_wait_seconds = self._extents.consumer_wait_seconds
        return [*ready, *self._store_next(), *self._dispatch(now)]

    def failed_fetch(self, connection: int, failure: Failure, now: float) -> list[Action]:
        """A connection has not brought what it should, or was stopped."""
        self.received(connection, failure.received, now)
        flight = self._land(connection, now)
        number, chunk = flight.chunk, self._chunks[flight.chunk]
        # Nothing at all cannot be asked for: when only the answer was lost, the last byte is fetched again.
        self._skip[number] = min(flight.skip + flight.received, chunk.size - 1)
        trouble = self._trouble.setdefault(number, Trouble())
        if flight.received:
            trouble.failures = 0
            self._refused.pop(chunk.segment, None)
        if failure.kind != "cancelled" and not flight.cdn:
            self._last_message = failure.message or self._last_message
            self.counts.retries += 1
            _count(self.counts.retries_by, failure.kind)
        if self.failed:
            return []
        if self._extents.was_ready(chunk.extent) and not self._wanted:
            self._again -= 1  # the local copy that it was for has ended
            self._extents.discard(chunk.extent)
            return []
        ended = self._react(flight, trouble, failure, now)
        if isinstance(ended, Fail):
            self.failed = ended
            return [ended]
        return [*([ended] if ended else []), *self._dispatch(now)]

    def lost(self, connections: Sequence[int], now: float) -> list[Action]:
        """These connections are gone, with the process that had them; they can be used again after `found`."""
        actions: list[Action] = []
        self._lost |= set(connections)
        self._idle = [connection for connection in self._idle if connection not in self._lost]
        heapq.heapify(self._idle)
        for connection in connections:
            if connection in self._flights:
                actions += self.failed_fetch(connection, Failure("lost", 0, "a fetching process died"), now)
        return actions

    def found(self, connections: Sequence[int], now: float) -> list[Action]:
        """Connections that were lost are there again, idle."""
        for connection in self._lost.intersection(connections):
            heapq.heappush(self._idle, connection)
        self._lost -= set(connections)
        return self._dispatch(now)

    def renewed(self, segment: int, now: float) -> list[Action]:
        """There is a new link for a segment."""
        self._renewed[segment] = now
        for number in self._parked.pop(segment, ()):
            heapq.heappush(self._queues[0], number)
        return self._dispatch(now)

    # Events of the local copy.

    def stored_chunk(self, now: float) -> list[Action]:
        """The chunk of the last `Store` is written."""
        assert self._storing is not None
        extent = self._chunks[self._storing].extent
        self._storing = None
        self._extents.settle(extent)
        return [*self._store_next(), *self._dispatch(now)]

    def store_failed(self, now: float) -> list[Action]:
        """The local copy cannot be written any more, and nobody reads the arena for it."""
        pending = [*self._stores, *([self._storing] if self._storing is not None else [])]
        self._stores.clear()
        self._storing = None
        self._wanted = []
        self.dropped.clear()
        for number in pending:
            self.counts.unstored_bytes += self._chunks[number].size
            self._extents.settle(self._chunks[number].extent)
        if self.finished:
            self._forget_again()
        return self._dispatch(now)

    def store_dropped(self, now: float) -> list[Action]:
        """Fetches again what was `dropped`, for the local copy alone, where consumers leave room.

        To be called once all is `finished` and `stored`. A `Fail` from then on ends only this.
        """
        assert self.finished
        assert self.stored
        members: dict[int, list[int]] = {}
        for number in sorted(self.dropped):
            members.setdefault(self._chunks[number].extent, []).append(number)
            self.counts.unstored_bytes -= self._chunks[number].size
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
        """Time has passed: rests end, slow connections are found, the number of connections is looked at."""
        self._account(now)
        self._looked = now
        if self.failed:
            return []
        while self._resting and self._resting[0][0] <= now:
            _, number = heapq.heappop(self._resting)
            heapq.heappush(self._queues[self._here[number]], number)
        if not self._can_move():
            self._moved = now  # it is for the consumers to move
        if now - self._moved > self._give_up and (self._left or self._again):
            self.failed = Fail("unavailable", None, self._last_message)
            return [self.failed]
        if self._flying[0] < self.pace.target:
            self.pace.idle()
        self.pace.observe(self.counts.received_bytes, now)
        return [*self._stop_slow(now), *self._dispatch(now)]

    def deadline(self, now: float) -> float | None:
        """When `tick` should be called next; None when only events matter."""
        if self.failed or not (self._left or self._again):
            return None
        # From the last tick on, not from now: events that come all the time must not put it off.
        due = self._looked + (TICK_SECONDS if self._flights else IDLE_TICK_SECONDS)
        if self._resting:
            due = min(due, self._resting[0][0])
        return max(now, due)

    # What follows from them.

    def _can_move(self) -> bool:
        """Whether anything can come without more memory."""
        return bool(self._flights or any(self._queues) or self._resting or self._parked)

    def _dispatch(self, now: float) -> list[Action]:
        if self.failed:
            return []
        actions: list[Action] = []
        self._blocked = False
        # Again and again: each kind that is launched may make room for the other; see `_admit`.
        while self._launch_all(1, self._local_max, actions, now) + self._launch_all(0, self.pace.target, actions, now):
            pass
        if self.failed:
            actions.append(self.failed)
        return actions

    def _launch_all(self, here: int, most: int, actions: list[Action], now: float) -> int:
        """Launches what there is of one kind; how many chunks have left its queue."""
        count = 0
        while self._idle and self._flying[here] < most and (self._queues[here] or self._admit(here, now)):
            number = heapq.heappop(self._queues[here])
            count += 1
            parked = None if here else self._parked.get(self._chunks[number].segment)
            if parked is not None:
                parked.append(number)
            else:
                actions.append(self._launch(number, now))
        return count

    def _launch(self, number: int, now: float) -> Fetch:
        here, skip, chunk = self._here[number], self._skip[number], self._chunks[number]
        # The lowest free connection is the warmest; local reads stay out of its way.
        connection = self._idle.pop() if here else heapq.heappop(self._idle)
        trouble = self._trouble.get(number)
        takeovers = trouble.takeovers if trouble else 0
        cdn = chunk.cdn and not here and self.cdn.takes(number)
        self._flights[connection] = Flight(number, here, skip, chunk.size - skip, now, takeovers, moved=now, cdn=cdn)
        self._flying[here] += 1
        self.counts.requests += not here
        if cdn:
            self._cdn_flying += 1
            self.counts.cdn_requests += 1
        self.counts.connections_peak = max(self.counts.connections_peak, self._flying[0])
        return Fetch(connection, number, self._extents.offset(chunk.extent) + chunk.position, skip, here, cdn)

    def _land(self, connection: int, now: float) -> Flight:
        self._account(now)
        flight = self._flights.pop(connection)
        self._flying[flight.here] -= 1
        self._cdn_flying -= flight.cdn
        if connection not in self._lost:
            heapq.heappush(self._idle, connection)
        return flight

    def _admit(self, here: int, now: float) -> bool:
        """Gives memory to further extents until one has a chunk for this kind of connection."""
        # Not for the sake of one kind alone: the other's chunks would pile up in memory that nobody fills.
        while self._pending_kinds[here] and len(self._queues[1 - here]) < PILE_MAX:
            if self._extents.ahead_bytes > WINDOW_BYTES and self._extents.all_attached:
                return False
            extent = self._pending[0]
            if not self._place(extent, now):
                self._blocked = True
                return False
            self._pending.popleft()
            for number in self._members[extent]:
                heapq.heappush(self._queues[self._here[number]], number)
                self._pending_kinds[self._here[number]] -= 1
            if self._queues[here]:
                return True
        return False

    def _place(self, extent: int, now: float) -> bool:
        """Gives memory to an extent; grows the arena if nothing else helps."""
        while not self._extents.place(extent):
            if self.failed:
                return False
            if self._drop_store():
                continue
            if not self._may_grow(now):
                return False
            # By more than this extent, or the load would go on one by one.
            grown = self.arena.grow(max(self._sizes[extent], WINDOW_BYTES))
            if not grown:
                self.failed = Fail("memory", None, "the tensors that are kept fill all the memory that may be mapped")
                return False
            self.counts.grown_bytes += grown
        return True

    def _may_grow(self, now: float) -> bool:
        """Whether nothing can move but by more memory: all is fetched, and whoever is to consume it waits for more."""
        if self._can_move():
            return False
        if self.finished:
            return not self._extents.in_memory  # the local copy can wait for consumers to let go
        if self._storing is not None and not self._extents.held(self._chunks[self._storing].extent):
            return False
        return self._extents.wait_for_memory(now)

    def _react(self, flight: Flight, trouble: Trouble, failure: Failure, now: float) -> Fail | Renew | None:
        """What to do about a failure: rest and try again (None), ask for a new link, or end the load."""
        kind, number = failure.kind, flight.chunk
        if flight.cdn:
            self._return(flight, failure)
            return None
        if kind == "corrupt" and number in self._mixed:
            # Whose bytes were wrong is not known: all of it once more, from the bucket alone.
            self._mixed.discard(number)
            self._skip[number] = 0
            heapq.heappush(self._queues[0], number)
            return None
        if kind == "refused":
            return self._refuse(flight, failure)
        if kind in PERMANENT:
            return Fail(PERMANENT[kind], number, failure.message)
        if kind in _SUSPECT and not self._try_suspect(number, trouble, kind):
            return Fail("integrity", number, failure.message)
        rest = 0.0
        if kind == "cancelled":
            trouble.takeovers += 1
        elif kind not in {"corrupt", "local"}:
            if kind == "busy":
                self.counts.busy += 1
                self.pace.answered(busy=True, began=flight.began, now=now)
            rest = trouble.rest(failure.retry_after_seconds, self._rng)
            self.counts.rest_seconds += rest
        if rest:
            heapq.heappush(self._resting, (now + rest, number))
        else:
            heapq.heappush(self._queues[self._here[number]], number)
        return None

    def _return(self, flight: Flight, failure: Failure) -> None:
        """The CDN has not brought a chunk: the bucket is asked next, at once."""
        number = flight.chunk
        if failure.kind != "lost":
            if failure.kind == "corrupt":
                self._skip[number] = 0
            if self._skip[number]:
                self._mixed.add(number)
            self.cdn.failed(number, "slow" if failure.kind == "cancelled" else failure.kind, failure.message)
            self.counts.fallbacks += 1
        heapq.heappush(self._queues[0], number)

    def _try_suspect(self, number: int, trouble: Trouble, kind: str) -> bool:
        """Notes that bytes were not what they should be; whether it is worth another attempt."""
        if kind == "range":
            trouble.misranged += 1
            return trouble.misranged < MISRANGED_MAX
        self.counts.corrupt += 1
        self._skip[number] = 0
        if kind == "corrupt":
            trouble.corrupt += 1
            return trouble.corrupt < CORRUPT_MAX
        # The copy on this machine is not to be trusted with this chunk; the original is.
        self._here[number] = False
        if self._wanted:
            self._wanted[number] = True
        return self._chunks[number].remote

    def _refuse(self, flight: Flight, failure: Failure) -> Fail | Renew | None:
        """The link of a chunk's segment was refused: it waits for a new one."""
        segment = self._chunks[flight.chunk].segment
        renewed = self._renewed.get(segment)
        if segment in self._parked:
            self._parked[segment].append(flight.chunk)
            return None
        if renewed is not None and flight.began < renewed:
            heapq.heappush(self._queues[0], flight.chunk)  # it had the old link
            return None
        self._refused[segment] += 1
        if self._refused[segment] > REFUSED_MAX:
            return Fail("credentials", flight.chunk, failure.message)
        self._parked[segment] = [flight.chunk]
        self.counts.renewals += 1
        return Renew(segment)

    def _stop_slow(self, now: float) -> list[Action]:
        target, flights = self.pace.target, self._flights.items()
        remote = [(connection, flight) for connection, flight in flights if not flight.here and not flight.cdn]
        found = [*self._speeds.to_stop(remote, target, now)]
        if self._cdn_flying:
            through = [(connection, flight) for connection, flight in flights if flight.cdn]
            found += self._cdn_speeds.to_stop(through, target, now, least=(BYTES_PER_SECOND_MIN, SLOW_SECONDS))
        for _, cause in found:
            if cause is not None:
                self.counts.takeovers += 1
                _count(self.counts.takeovers_by, cause)
        return [Stop(connection) for connection, _ in found]

    def _store_next(self) -> list[Action]:
        if self._storing is not None or not self._stores:
            return []
        number = self._storing = self._stores.popleft()
        chunk = self._chunks[number]
        return [StoreChunk(number, self._extents.offset(chunk.extent) + chunk.position)]

    def _drop_store(self) -> bool:
        """Gives up writing the oldest extent that only the local copy holds; whether memory is free for it."""
        if self.finished or self._extents.all_gone:
            return False  # nobody is in a hurry: the disk may take its time
        busy = -1 if self._storing is None else self._chunks[self._storing].extent
        for number in self._stores:
            extent = self._chunks[number].extent
            if extent == busy or self._extents.held(extent) or not self._extents.was_ready(extent):
                continue
            mine = [n for n in self._stores if self._chunks[n].extent == extent]
            self._stores = deque(n for n in self._stores if self._chunks[n].extent != extent)
            self.dropped += mine
            for n in mine:
                self.counts.unstored_bytes += self._chunks[n].size
                self._extents.settle(extent)
            return True
        return False

    def _forget_again(self) -> None:
        """What was to be fetched for the local copy alone is not wanted any more; what flies ends by itself."""
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
        self.counts.flying_seconds += passed * self._flying[0]
        if self._flying[0] > self._cdn_flying:
            self.counts.bucket_seconds += passed
        if self._cdn_flying:
            self.counts.cdn_seconds += passed
            self.counts.cdn_flying_seconds += passed * self._cdn_flying
        if self._blocked and self._flying[0] < self.pace.target:
            self.counts.memory_wait_seconds += passed


def _count(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1


def quick_first(sizes: Sequence[int], count: int) -> list[int]:
    """The order in which extents get memory: some small ones, so that there soon is a tensor, then all others.

    A model often begins with its embedding, half a gigabyte in one piece.

    Args:
        sizes: Of the extents, in bytes, in the order of the files.
        count: How many to put in front, at most.
    """
    first = [extent for extent, size in enumerate(sizes) if size <= CHUNK_BYTES][:count]
    chosen = set(first)
    return [*first, *(extent for extent in range(len(sizes)) if extent not in chosen)]
