"""The life of extents: which have memory, which are whole, who still has to look at them, who holds them. Pure.

An extent gets memory, is *ready* when all its chunks are there (and, if order matters, all extents before it are
ready), and is free again when every consumer has dropped every tensor on it and the local copy has its chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coldstream.engine.actions import Ready
from coldstream.engine.arena import Arena

# Somebody who holds everything and asks for nothing, while others wait: after so long the arena grows.
STUCK_SECONDS = 20.0


@dataclass(slots=True)
class _Consumer:
    attached: bool = False
    gone: bool = False  # it will look at nothing more; what it holds it may still hold
    seen: int = 0  # how many ready extents it has looked at
    moved: float = 0.0  # when it last said anything
    waits_since: float | None = None


class Extents:
    """All extents of a load.

    Attributes:
        ready: Those that have been ready, in the order in which they became so.
        ahead_bytes: Bytes of those that not every consumer has looked at.
        consumer_wait_seconds: How long consumers waited for an extent, together.
    """

    def __init__(
        self, sizes: Sequence[int], chunks: Sequence[int], *, arena: Arena, consumers: int, in_order: bool, now: float
    ) -> None:
        """Begins, with nothing in memory.

        Args:
            sizes: Of each extent, in bytes.
            chunks: How many chunks each has.
            arena: Where they go.
            consumers: How many will look at each.
            in_order: Whether they become ready in order.
            now: The time.
        """
        self.ready: list[int] = []
        self.ahead_bytes = 0
        self.consumer_wait_seconds = 0.0
        self._sizes, self._arena, self._in_order = sizes, arena, in_order
        self._missing = list(chunks)  # chunks that are not there yet
        self._offset: dict[int, int] = {}  # of those that have memory
        self._order: dict[int, int] = {}  # of those that have been ready
        self._next = 0  # with `in_order`, the one that becomes ready next
        self._holders: dict[int, set[int]] = {}  # the consumers that have not dropped it
        self._unstored: dict[int, int] = {}  # chunks that the local copy still has to read
        self._ahead: set[int] = set()
        self._looked = 0  # how many of `ready` everybody has looked at
        self._consumers = [_Consumer(moved=now) for _ in range(consumers)]

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def in_memory(self) -> int:
        """How many have memory."""
        return len(self._offset)

    @property
    def all_attached(self) -> bool:
        """Whether every consumer is there, or was."""
        return all(consumer.attached for consumer in self._consumers)

    @property
    def all_gone(self) -> bool:
        """Whether nobody will look at anything any more."""
        return all(consumer.gone for consumer in self._consumers)

    def offset(self, extent: int) -> int:
        """Where it lies in the arena; it has memory."""
        return self._offset[extent]

    def was_ready(self, extent: int) -> bool:
        """Whether consumers were told of it."""
        return extent in self._order

    def held(self, extent: int) -> bool:
        """Whether a consumer holds it."""
        return bool(self._holders.get(extent))

    # Memory.

    def place(self, extent: int) -> bool:
        """Gives it memory, if there is any."""
        start = self._arena.allocate(self._sizes[extent])
        if start is None:
            return False
        self._offset[extent] = start
        return True

    def again(self, extent: int, chunks: int) -> None:
        """It was ready and free, and so many of its chunks are fetched once more, for the local copy."""
        self._missing[extent] = chunks

    def wait_for_memory(self, now: float) -> bool:
        """Whether consumers wait for another extent, and none of them is about to drop any."""
        if not self.all_attached:
            return False
        waiting = [c.waits_since is not None or now - c.moved > STUCK_SECONDS for c in self._consumers if not c.gone]
        return all(waiting) and (not waiting or any(c.waits_since is not None for c in self._consumers))

    # Chunks.

    def add(self, extent: int, now: float, *, stored: bool) -> list[Ready]:
        """One more of its chunks is there.

        Args:
            extent: Which.
            now: The time.
            stored: Whether the local copy will read the chunk: `settle` says when it has.
        """
        self._missing[extent] -= 1
        if stored:
            self._unstored[extent] = self._unstored.get(extent, 0) + 1
        if extent in self._order:
            self._free_if_unheld(extent)
            return []
        whole: list[Ready] = []
        if not self._in_order:
            if not self._missing[extent]:
                whole.append(self._become_ready(extent))
        else:
            while self._next < len(self._sizes) and not self._missing[self._next]:
                whole.append(self._become_ready(self._next))
                self._next += 1
        if whole:
            for consumer in self._consumers:
                if consumer.waits_since is not None:
                    self.consumer_wait_seconds += max(0.0, now - consumer.waits_since)
                    consumer.waits_since, consumer.moved = None, now
            for ready in whole:
                self._free_if_unheld(ready.extent)
        return whole

    def discard(self, extent: int) -> None:
        """One of the chunks that were fetched again will not come."""
        self._missing[extent] -= 1
        self._free_if_unheld(extent)

    def settle(self, extent: int) -> None:
        """The local copy has read one of its chunks, or never will."""
        self._unstored[extent] -= 1
        if not self._unstored[extent]:
            del self._unstored[extent]
            self._free_if_unheld(extent)

    # Consumers.

    def attach(self, consumer: int, now: float) -> list[Ready]:
        """A consumer is there; what it is told of first."""
        found = self._consumers[consumer]
        found.attached, found.moved = True, now
        # It holds all of these: nothing is free before everybody has dropped it.
        return [Ready(extent, self._offset[extent], order) for order, extent in enumerate(self.ready)]

    def wait(self, consumer: int, seen: int, now: float) -> None:
        """A consumer has looked at `seen` ready extents and waits for the next."""
        found = self._consumers[consumer]
        found.seen, found.moved = max(found.seen, seen), now
        if found.seen >= len(self.ready) and found.waits_since is None:
            found.waits_since = now
        self._look()

    def release(self, consumer: int, extent: int, now: float) -> None:
        """A consumer has dropped every tensor of an extent."""
        found = self._consumers[consumer]
        # It looks at them in order.
        found.seen, found.moved = max(found.seen, self._order[extent] + 1), now
        self._look()
        self._drop(consumer, extent)

    def leave(self, consumer: int, seen: int, now: float) -> None:
        """A consumer looks at nothing beyond `seen` ready extents; what it holds of those it releases by and by."""
        self._consumers[consumer] = _Consumer(attached=True, gone=True, moved=now)
        self._look()
        for extent in self.ready[seen:]:
            self._drop(consumer, extent)

    def _become_ready(self, extent: int) -> Ready:
        order = self._order[extent] = len(self.ready)
        self.ready.append(extent)
        self._holders[extent] = {n for n, consumer in enumerate(self._consumers) if not consumer.gone}
        if self._holders[extent]:
            self._ahead.add(extent)
            self.ahead_bytes += self._sizes[extent]
        return Ready(extent, self._offset[extent], order)

    def _look(self) -> None:
        """Extents that every consumer has looked at do not count as ahead any more, held or not."""
        seen = min((consumer.seen for consumer in self._consumers if not consumer.gone), default=len(self.ready))
        while self._looked < min(seen, len(self.ready)):
            extent = self.ready[self._looked]
            self._looked += 1
            if extent in self._ahead:
                self._ahead.remove(extent)
                self.ahead_bytes -= self._sizes[extent]

    def _drop(self, consumer: int, extent: int) -> None:
        holders = self._holders.get(extent)
        if holders is not None:
            holders.discard(consumer)
            self._free_if_unheld(extent)

    def _free_if_unheld(self, extent: int) -> None:
        if extent not in self._order or self._missing[extent]:
            return
        if self._holders.get(extent) or self._unstored.get(extent) or extent not in self._offset:
            return
        self._holders.pop(extent, None)
        self._arena.free(self._offset.pop(extent))
