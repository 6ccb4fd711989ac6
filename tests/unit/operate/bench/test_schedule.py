from __future__ import annotations

from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from coldstream.operate.bench.schedule import rounds

names = st.lists(st.text(min_size=1), min_size=1, max_size=9, unique=True)


@given(names, st.integers(0, 12), st.integers())
def test_each_runs_once_a_round_and_never_twice_in_a_row(names: list[str], runs: int, seed: int) -> None:
    found = rounds(names, runs, seed)
    assert len(found) == runs
    assert all(sorted(order) == sorted(names) for order in found)
    if len(names) > 1:
        assert all(one != other for one, other in pairwise(chain.from_iterable(found)))


@given(names, st.integers(0, 12), st.integers())
def test_equal_seeds_give_equal_orders(names: list[str], runs: int, seed: int) -> None:
    assert rounds(names, runs, seed) == rounds(names, runs, seed)


def test_nobody_is_always_first() -> None:
    assert len({order[0] for order in rounds("abcd", 40, 0)}) == 4


def test_nothing_is_no_order() -> None:
    assert rounds([], 2, 0) == [[], []]
