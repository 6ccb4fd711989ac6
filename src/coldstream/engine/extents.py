"""Tracks extents: which have memory, which are complete, which consumers still have to see or to release them. Pure.

An extent gets memory, is *ready* when all its chunks are done (and, if order matters, all extents before it are ready),
and is free again when every consumer has dropped every tensor on it and the local copy has its chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coldstream.engine.actions import Ready
from coldstream.engine.arena import Arena

# If one consumer holds everything and requests nothing while others wait this long, the arena grows.
STUCK_SECONDS = 20.0


@dataclass(slots=True)
class _Consumer:
    attached: bool = False
    gone: bool = False  # it reads no more, but may still hold extents
    seen: int = 0  # how many ready extents it has seen
    moved: float = 0.0  # when it last sent anything
    waits_since: float | None = None


class Extents:
    """All extents of a load."""

    def __init__(
        self, sizes: Sequence[int], chunks: Sequence[int], *, arena: Arena, consumers: int, in_order: bool, now: float
    ) -> None:
        """`sizes` and `chunks` are the bytes and the number of chunks of each extent."""
        self.ready: list[int] = []  # extents in the order in which they became ready
        self.ahead_bytes = 0  # bytes of those that not every consumer has seen
        self.consumer_wait_seconds = 0.0  # how long all consumers together waited for an extent
        self._sizes, self._arena, self._in_order = sizes, arena, in_order
        self._missing = list(chunks)  # chunks that are not done yet
        self.offsets: dict[int, int] = {}  # of extents that have memory
        self.orders: dict[int, int] = {}  # places in `ready`
        self._next = 0  # with `in_order`, the one that becomes ready next
        self._holders: dict[int, set[int]] = {}  # consumers that have not dropped it
        self._unstored: dict[int, int] = {}  # chunks that the tee still has to read
        self._ahead: set[int] = set()
        self._seen_by_all = 0  # how many of `ready` every consumer has seen
        self._consumers = [_Consumer(moved=now) for _ in range(consumers)]

    @property
    def all_attached(self) -> bool:
        return all(consumer.attached for consumer in self._consumers)

    @property
    def all_gone(self) -> bool:
        """Whether no consumer will read any more."""
        return all(consumer.gone for consumer in self._consumers)

    def held(self, extent: int) -> bool:
        return bool(self._holders.get(extent))

    # Memory.

    def place(self, extent: int) -> bool:
        """Gives it memory, if some is free."""
        start = self._arena.allocate(self._sizes[extent])
        if start is None:
            return False
        self.offsets[extent] = start
        return True

    def again(self, extent: int, chunks: int) -> None:
        """It was ready and free; some of its chunks are fetched again, for the local copy."""
        self._missing[extent] = chunks

    def wait_for_memory(self, now: float) -> bool:
        """Whether consumers wait for an extent, and none of them is about to release one."""
        if not self.all_attached:
            return False
        waiting = [c.waits_since is not None or now - c.moved > STUCK_SECONDS for c in self._consumers if not c.gone]
        return all(waiting) and (not waiting or any(c.waits_since is not None for c in self._consumers))

    # Chunks.

    def add(self, extent: int, now: float, *, stored: bool) -> list[Ready]:
        """One more of its chunks is done. If `stored`, the tee reads it, and `settle` follows."""
        self._missing[extent] -= 1
        if stored:
            self._unstored[extent] = self._unstored.get(extent, 0) + 1
        if extent in self.orders:
            self._free_if_unheld(extent)
            return []
        complete: list[Ready] = []
        if not self._in_order:
            if not self._missing[extent]:
                complete.append(self._become_ready(extent))
        else:
            while self._next < len(self._sizes) and not self._missing[self._next]:
                complete.append(self._become_ready(self._next))
                self._next += 1
        if complete:
            for consumer in self._consumers:
                if consumer.waits_since is not None:
                    self.consumer_wait_seconds += max(0.0, now - consumer.waits_since)
                    consumer.waits_since, consumer.moved = None, now
            for ready in complete:
                self._free_if_unheld(ready.extent)
        return complete

    def discard(self, extent: int) -> None:
        """One of the chunks to fetch again was cancelled."""
        self._missing[extent] -= 1
        self._free_if_unheld(extent)

    def settle(self, extent: int) -> None:
        """The tee has read one of its chunks, or never will."""
        self._unstored[extent] -= 1
        if not self._unstored[extent]:
            del self._unstored[extent]
            self._free_if_unheld(extent)

    # Consumers.

    def attach(self, consumer: int, now: float) -> list[Ready]:
        """A consumer attached; returns what is ready."""
        state = self._consumers[consumer]
        state.attached, state.moved = True, now
        # It holds all of these: an extent is freed only after every consumer has dropped it.
        return [Ready(extent, self.offsets[extent], order) for order, extent in enumerate(self.ready)]

    def wait(self, consumer: int, seen: int, now: float) -> None:
        """A consumer has seen `seen` ready extents and waits for the next."""
        state = self._consumers[consumer]
        state.seen, state.moved = max(state.seen, seen), now
        if state.seen >= len(self.ready) and state.waits_since is None:
            state.waits_since = now
        self._update_ahead()

    def release(self, consumer: int, extent: int, now: float) -> None:
        """A consumer has dropped every tensor of an extent."""
        state = self._consumers[consumer]
        # It sees them in order.
        state.seen, state.moved = max(state.seen, self.orders[extent] + 1), now
        self._update_ahead()
        self._drop(consumer, extent)

    def leave(self, consumer: int, seen: int, now: float) -> None:
        """A consumer reads no more than `seen` ready extents; it releases those that it holds later."""
        self._consumers[consumer] = _Consumer(attached=True, gone=True, moved=now)
        self._update_ahead()
        for extent in self.ready[seen:]:
            self._drop(consumer, extent)

    def _become_ready(self, extent: int) -> Ready:
        order = self.orders[extent] = len(self.ready)
        self.ready.append(extent)
        self._holders[extent] = {n for n, consumer in enumerate(self._consumers) if not consumer.gone}
        if self._holders[extent]:
            self._ahead.add(extent)
            self.ahead_bytes += self._sizes[extent]
        return Ready(extent, self.offsets[extent], order)

    def _update_ahead(self) -> None:
        """Extents that every consumer has seen do not count as ahead any more, held or not."""
        seen = min((consumer.seen for consumer in self._consumers if not consumer.gone), default=len(self.ready))
        while self._seen_by_all < min(seen, len(self.ready)):
            extent = self.ready[self._seen_by_all]
            self._seen_by_all += 1
            if extent in self._ahead:
                self._ahead.remove(extent)
                self.ahead_bytes -= self._sizes[extent]

    def _drop(self, consumer: int, extent: int) -> None:
        holders = self._holders.get(extent)
        if holders is not None:
            holders.discard(consumer)
            self._free_if_unheld(extent)

    def _free_if_unheld(self, extent: int) -> None:
        if extent not in self.orders or self._missing[extent]:
            return
        if self._holders.get(extent) or self._unstored.get(extent) or extent not in self.offsets:
            return
        self._holders.pop(extent, None)
        self._arena.free(self.offsets.pop(extent))
