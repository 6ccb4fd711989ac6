"""The allocator of extents, against a naive model of it."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from coldstream.engine.arena import PAGE_BYTES, Arena


def pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def test_extents_lie_behind_each_other_on_pages() -> None:
    arena = Arena(3 * PAGE_BYTES)
    assert arena.allocate(1) == 0
    assert arena.allocate(PAGE_BYTES + 1) == PAGE_BYTES
    assert arena.allocate(1) is None
    assert arena.used_bytes == arena.touched_bytes == 3 * PAGE_BYTES


def test_the_tightest_hole_is_taken_and_of_equals_the_one_freed_last() -> None:
    arena = Arena(1 << 30)
    starts = [arena.allocate(size * PAGE_BYTES) for size in (4, 1, 2, 1, 2, 1, 2, 1)]
    for index in (0, 4, 2, 6):
        start = starts[index]
        assert start is not None
        arena.free(start)
    assert arena.allocate(2 * PAGE_BYTES) == starts[6]
    assert arena.allocate(PAGE_BYTES) == starts[2]
    assert arena.allocate(3 * PAGE_BYTES) == starts[0]


def test_neighbours_become_one_hole() -> None:
    arena = Arena(3 * PAGE_BYTES)
    starts = [arena.allocate(PAGE_BYTES) for _ in range(3)]
    for index in (0, 2, 1):
        start = starts[index]
        assert start is not None
        arena.free(start)
    assert arena.allocate(3 * PAGE_BYTES) == 0


def test_a_hole_at_the_end_is_extended() -> None:
    arena = Arena(4 * PAGE_BYTES)
    arena.allocate(PAGE_BYTES)
    last = arena.allocate(PAGE_BYTES)
    assert last is not None
    arena.free(last)
    assert arena.allocate(3 * PAGE_BYTES) == PAGE_BYTES
    assert arena.touched_bytes == 4 * PAGE_BYTES


@pytest.mark.parametrize("limit", [0, 1, PAGE_BYTES, 5000])
def test_what_it_grows_by_fits(limit: int) -> None:
    """Also when neither the limit nor the size are whole pages."""
    arena = Arena(limit)
    while arena.allocate(1) is not None:
        pass
    assert arena.allocate(10 * PAGE_BYTES + 1) is None
    assert arena.grow(10 * PAGE_BYTES + 1) == 11 * PAGE_BYTES
    assert arena.allocate(10 * PAGE_BYTES + 1) is not None


def test_equal_extents_that_come_and_go_touch_no_more_than_are_used() -> None:
    arena, rng, used = Arena(1 << 40), random.Random(1), []
    for _ in range(5000):
        if used and (len(used) >= 20 or rng.random() < 0.5):
            arena.free(used.pop(rng.randrange(len(used))))
        else:
            used.append(arena.allocate(8 << 20))
    assert arena.touched_bytes <= 20 * (8 << 20)


def test_free_memory_is_given_back_once_and_in_parts() -> None:
    arena = Arena(8 * PAGE_BYTES)
    first, second, third = (arena.allocate(size * PAGE_BYTES) for size in (3, 1, 2))
    assert first is not None
    assert second is not None
    arena.free(first)
    assert arena.take_unneeded(2 * PAGE_BYTES) == (first, first + 2 * PAGE_BYTES)
    arena.free(second)
    assert arena.take_unneeded(2 * PAGE_BYTES) == (first + 2 * PAGE_BYTES, second)
    assert arena.take_unneeded(2 * PAGE_BYTES) == (second, third)
    assert arena.take_unneeded(2 * PAGE_BYTES) is None


class Machine(RuleBasedStateMachine):
    """A list of pages, and who has each."""

    extents = Bundle("extents")

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(40 * PAGE_BYTES)
        self.owners: list[int | None] = []
        self.sizes: dict[int, int] = {}

    @rule(target=extents, size=st.integers(1, 12 * PAGE_BYTES))
    def allocate(self, size: int) -> object:
        touched = self.arena.touched_bytes
        count = pages(size) // PAGE_BYTES
        holes = [
            first
            for first in range(len(self.owners) - count + 1)
            if all(owner is None for owner in self.owners[first : first + count])
        ]
        start = self.arena.allocate(size)
        if start is None:
            assert not holes
            trailing = next((n for n, owner in enumerate(reversed(self.owners)) if owner is not None), len(self.owners))
            assert touched + (count - trailing) * PAGE_BYTES > self.arena.limit_bytes
            lacking = self.arena.lacking_bytes(size)
            for grown, is_enough in ((lacking - PAGE_BYTES, False), (lacking, True)):
                arena = deepcopy(self.arena)
                arena.grow(grown)
                assert (arena.allocate(size) is not None) == is_enough
            return multiple()
        first = start // PAGE_BYTES
        assert first in holes if holes else start + pages(size) == self.arena.touched_bytes
        self.owners += [None] * (first + count - len(self.owners))
        assert all(owner is None for owner in self.owners[first : first + count])
        self.owners[first : first + count] = [start] * count
        self.sizes[start] = count
        return start

    @rule(start=consumes(extents))
    def free(self, start: int) -> None:
        self.arena.free(start)
        first = start // PAGE_BYTES
        count = self.sizes.pop(start)
        self.owners[first : first + count] = [None] * count

    @rule(size=st.integers(1, 5))
    def take_unneeded(self, size: int) -> None:
        unneeded = self.arena.take_unneeded(size * PAGE_BYTES)
        if unneeded is not None:
            start, stop = unneeded
            assert 0 < stop - start <= size * PAGE_BYTES
            owners = self.owners[start // PAGE_BYTES : stop // PAGE_BYTES]
            assert owners == [None] * len(owners), "memory in use is given back"

    @rule(size=st.integers(0, 3 * PAGE_BYTES))
    def grow(self, size: int) -> None:
        before = self.arena.limit_bytes
        assert self.arena.grow(size) == self.arena.limit_bytes - before == pages(size)

    @invariant()
    def agrees(self) -> None:
        assert self.arena.touched_bytes == len(self.owners) * PAGE_BYTES <= self.arena.limit_bytes
        assert self.arena.used_bytes == sum(self.sizes.values()) * PAGE_BYTES
        assert repr(self.arena).startswith(f"Arena({len(self.sizes)} extents")


TestArena = Machine.TestCase
TestArena.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
