"""How many launches make R2 cheaper than another place, and the cost over the launches. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from coldstream.operate.cost.bill import PLACES, R2, Bill, bill
from coldstream.operate.cost.prices import Prices
from coldstream.operate.cost.workload import CostPlan

_FEWEST, _MOST = 0.01, 100_000.0
_STEPS = 71
_BISECTIONS = 30
# Less than this is the same.
_DOLLARS = 1e-6
_POINTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """When R2 costs less than another place.

    Attributes:
        against: The key of the other place.
        label: The other place, for people.
        when: "always", "never", or "from" or "until" a number of launches.
        launches_per_day: That number, with "from" and "until".
    """

    against: str
    label: str
    when: str
    launches_per_day: float | None

    @property
    def text(self) -> str:
        """The condition in a few words."""
        return (
            self.when if self.launches_per_day is None else f"{self.when} {count_text(self.launches_per_day)} per day"
        )


@dataclass(frozen=True, slots=True)
class CostPoint:
    """The monthly cost at each place, by its key, for one number of launches."""

    launches_per_day: float
    dollars: dict[str, float]


def break_evens(plan: CostPlan, prices: Prices) -> tuple[BreakEven, ...]:
    """Compares R2 with each other place, varying only the launches of the plan."""
    ours = next(place for place in PLACES if place.key == R2)

    def saved(against: int, launches: float) -> float:
        there = replace(plan, launches_per_day=launches)
        return bill(there, prices, PLACES[against]).dollars - bill(there, prices, ours).dollars

    evens = []
    for number, place in enumerate(PLACES):
        if place.key == R2:
            continue
        when, launches = _sign(lambda launches, number=number: saved(number, launches))  # type: ignore[misc]
        evens.append(BreakEven(against=place.key, label=place.label, when=when, launches_per_day=launches))
    return tuple(evens)


def curve(plan: CostPlan, prices: Prices) -> tuple[CostPoint, ...]:
    """The monthly cost from at most one launch in ten days to ten times the plan's launches."""
    first = min(0.1, plan.launches_per_day / 10)
    last = max(1000.0, plan.launches_per_day * 10)
    steps = [first * (last / first) ** (step / (_POINTS - 1)) for step in range(_POINTS)]
    return tuple(
        CostPoint(
            launches,
            {place.key: bill(replace(plan, launches_per_day=launches), prices, place).dollars for place in PLACES},
        )
        for launches in sorted({*steps, plan.launches_per_day})
    )


def cost_table(bills: Sequence[Bill], evens: Sequence[BreakEven]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the bills as text; the GPUs' column is left out if their time has no price."""
    has_gpus = any(bill.gpu_dollars is not None for bill in bills)
    gpus = ["GPUS"] if has_gpus else []
    heading = ["PER MONTH", "STORAGE", "CLASS A", "CLASS B", "RETRIEVAL", "EGRESS", *gpus, "TOTAL", "R2 COSTS LESS"]
    less = {even.against: even.text for even in evens}
    rows = []
    for month in bills:
        amounts = [
            line.dollars for line in (month.storage, month.class_a, month.class_b, month.retrieval, month.egress)
        ]
        amounts += [month.gpu_dollars or 0.0] if has_gpus else []
        rows.append([month.label, *map(dollars_text, [*amounts, month.dollars]), less.get(month.key, "-")])
    return heading, rows


def dollars_text(amount: float) -> str:
    """An amount in dollars and cents."""
    # A tenth of a cent must not look like nothing.
    return "<$0.01" if 0 < amount < 0.005 else f"${amount:,.2f}"


def count_text(count: float) -> str:
    """A number of launches: whole, or in two digits if it is small."""
    return f"{count:,.0f}" if count >= 99.5 else f"{count:.2g}"


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
