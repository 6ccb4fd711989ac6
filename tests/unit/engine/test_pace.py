"""How many connections, from what arrives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.engine.pace import HELD_SECONDS, TARGET_MIN, Pace, first_connections

Rate = Callable[[int], float]


def drive(pace: Pace, rate: Rate, *, seconds: float, now: float = 0.0, idle: bool = False) -> list[int]:
    """Ticks as the streamer does, with what so many connections bring; the targets."""
    received, targets = 0.0, []
    for _ in range(int(seconds / 0.05)):
        now += 0.05
        received += 0.05 * rate(pace.target)
        if idle:
            pace.idle()
        pace.observe(int(received), now)
        targets.append(pace.target)
    return targets


def storm(pace: Pace, count: int, now: float) -> None:
    for _ in range(count):
        pace.answered(busy=True, began=now, now=now)


def test_it_doubles_while_that_helps() -> None:
    targets = drive(Pace(first=16, limit=200), lambda n: 30e6 * n, seconds=3)
    assert list(dict.fromkeys(targets)) == [16, 32, 64, 128, 200]


def test_a_far_bucket_gets_many_connections_at_once() -> None:
    assert first_connections(0.0) == first_connections(0.02) == 8
    assert first_connections(0.06) == 64
    assert first_connections(0.001) == 4


def test_above_what_a_far_bucket_gets_it_feels_its_way() -> None:
    """Twice as many at once could provoke a burst of 503s."""
    targets = drive(Pace(first=64, limit=1024), lambda n: 46e6 * n, seconds=5)
    assert list(dict.fromkeys(targets))[:5] == [64, 72, 88, 120, 184]
    assert targets[-1] == 1024
    targets = drive(Pace(first=64, limit=1024), lambda n: min(46e6 * n, 2.5e9), seconds=30)
    assert max(targets) <= 72


def test_it_stays_where_more_does_not_help() -> None:
    pace = Pace(first=16, limit=512)
    targets = drive(pace, lambda n: min(30e6 * n, 600e6), seconds=60)
    assert pace.saturated
    assert max(targets) <= 64
    assert targets[-1] <= 32
    # It asks ever more rarely.
    assert len([1 for a, b in pairwise(targets[600:]) if b > a]) <= 4


def test_without_work_it_learns_nothing() -> None:
    assert set(drive(Pace(first=16, limit=512), lambda n: 30e6 * n, seconds=10, idle=True)) == {16}


def test_a_far_bucket_gets_time_to_connect() -> None:
    """Nothing arrives at first, so nothing is judged."""
    pace = Pace(first=16, limit=64)
    assert set(drive(pace, lambda n: 0.0, seconds=1.5)) == {16}
    assert not pace.saturated


def test_one_busy_answer_is_an_accident() -> None:
    pace = Pace(first=64, limit=64)
    for number in range(2000):
        pace.answered(busy=number % 8 == 0, began=number / 100, now=number / 100)
    assert pace.target == 64


def test_a_storm_halves_it_once_for_each_round_trip() -> None:
    pace = Pace(first=64, limit=64)
    storm(pace, 8, now=1.0)
    assert pace.target == 32
    for _ in range(500):
        pace.answered(busy=True, began=0.5, now=1.2)
    assert pace.target == 32, "what was sent before the step down says nothing"
    for second in range(2, 20):
        storm(pace, 60, now=second)
    assert pace.target == TARGET_MIN
    assert pace.throttled >= 4


def test_a_step_that_overloads_the_bucket_is_undone() -> None:
    pace = Pace(first=64, limit=1024)
    assert drive(pace, lambda n: 46e6 * n, seconds=0.85)[-1] == 120
    storm(pace, 8, now=1.3)
    assert pace.target == 88
    storm(pace, 8, now=1.4)
    assert pace.target == 44, "the bucket is overloaded by the number before it too"


def test_after_a_storm_it_waits_and_comes_up_again() -> None:
    pace = Pace(first=64, limit=64)
    for step in range(5):
        storm(pace, 12, now=1.0 + step)
    assert pace.target == TARGET_MIN
    targets = drive(pace, lambda n: 30e6 * n, seconds=60, now=5.0)
    held = int(HELD_SECONDS / 0.05)
    assert set(targets[: held - 1]) == {TARGET_MIN}
    assert targets[-1] == 64
    assert max(targets[: held + 60]) >= 32


def test_few_connections_are_never_made_more_by_a_storm() -> None:
    pace = Pace(first=1, limit=2)
    storm(pace, 100, now=1.0)
    assert pace.target == 1


def test_a_lower_limit_holds_at_once_and_a_higher_one_is_reached_again() -> None:
    pace = Pace(first=64, limit=512)
    pace.limit_to(32)
    assert pace.target == 32
    assert max(drive(pace, lambda n: 30e6 * n, seconds=10)) == 32
    pace.limit_to(512)
    assert drive(pace, lambda n: 30e6 * n, seconds=60, now=10.0)[-1] == 512


events = st.lists(
    st.tuples(
        st.sampled_from(["ok", "busy", "old", "idle", "tick", "limit"]), st.floats(0, 3), st.integers(0, 1 << 32)
    ),
    max_size=200,
)


@settings(max_examples=150, deadline=None)
@given(first=st.integers(1, 64), limit=st.integers(1, 256), happened=events)
def test_the_target_stays_within_its_bounds(first: int, limit: int, happened: list[tuple[str, float, int]]) -> None:
    pace, now, received = Pace(first=first, limit=limit), 100.0, 0
    for kind, passed, count in happened:
        before = pace.target
        now, received = now + passed, received + count
        if kind == "tick":
            pace.observe(received, now)
            assert pace.target <= max(2 * before, before + 1)
        elif kind == "idle":
            pace.idle()
        elif kind == "limit":
            limit = 1 + count % 256
            pace.limit_to(limit)
            before = min(before, limit)
        else:
            pace.answered(busy=kind != "ok", began=now - (10 if kind == "old" else 0), now=now)
            assert pace.target <= before
        assert 1 <= pace.target <= limit
        assert pace.target >= min(before, TARGET_MIN) or kind == "tick"
