"""From which number of launches on one place costs less than another. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from coldstream.operate.cost.bill import PLACES, R2, bill
from coldstream.operate.cost.prices import Prices
from coldstream.operate.cost.workload import Plan

_FEWEST, _MOST = 0.01, 100_000.0
_STEPS = 71
_BISECTIONS = 30
# Less than this is the same.
_DOLLARS = 1e-6
_POINTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """R2 against another place.

    Attributes:
        against: The other's key.
        label: For people.
        when: "always", "from" (so many launches on), "until" (so many), "never": when R2 costs less.
        launches_per_day: With "from" and "until".
    """

    against: str
    label: str
    when: str
    launches_per_day: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """One number of launches, and what a month of them costs at each place, by its key."""

    launches_per_day: float
    dollars: dict[str, float]


def break_evens(plan: Plan, prices: Prices) -> tuple[BreakEven, ...]:
    """R2 against each other place, everything in the plan but its launches being the same."""
    ours = next(place for place in PLACES if place.key == R2)

    def saved(against: int, launches: float) -> float:
        there = replace(plan, launches_per_day=launches)
        return bill(there, prices, PLACES[against]).dollars - bill(there, prices, ours).dollars

    found = []
    for number, place in enumerate(PLACES):
        if place.key == R2:
            continue
        when, launches = _sign(lambda launches, number=number: saved(number, launches))  # type: ignore[misc]
        found.append(BreakEven(against=place.key, label=place.label, when=when, launches_per_day=launches))
    return tuple(found)


def curve(plan: Plan, prices: Prices) -> tuple[Point, ...]:
    """What the month costs with fewer launches and with more, from one in ten days or less to ten times the plan's."""
    first = min(0.1, plan.launches_per_day / 10)
    last = max(1000.0, plan.launches_per_day * 10)
    steps = [first * (last / first) ** (step / (_POINTS - 1)) for step in range(_POINTS)]
    return tuple(
        Point(
            launches,
            {place.key: bill(replace(plan, launches_per_day=launches), prices, place).dollars for place in PLACES},
        )
        for launches in sorted({*steps, plan.launches_per_day})
    )


def _sign(saved: Callable[[float], float]) -> tuple[str, float | None]:
    """When something is saved. Bills rise in steps: what holds from a number on holds for all larger ones."""
    grid = [_FEWEST * (_MOST / _FEWEST) ** (step / (_STEPS - 1)) for step in range(_STEPS)]
    positive = [saved(launches) > _DOLLARS for launches in grid]
    if all(positive):
        return "always", None
    if not any(positive):
        return "never", None
    last = positive[-1]
    # The last change on the way up.
    change = next(index for index in range(_STEPS - 1, 0, -1) if positive[index - 1] != last)
    low, high = grid[change - 1], grid[change]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if (saved(middle) > _DOLLARS) == last else (middle, high)
    return ("from" if last else "until"), high
