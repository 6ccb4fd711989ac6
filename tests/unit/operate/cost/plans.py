"""Plans that tests share."""

from __future__ import annotations

from typing import Any

from coldstream.operate.cost.bill import Bill, bills
from coldstream.operate.cost.prices import Prices, prices
from coldstream.operate.cost.workload import CostPlan, alike, make_plan

GB = 10**9


def plan(size: int, count: int = 1, **options: Any) -> CostPlan:
    """Of models that nobody looks at, launched once a day unless `options` say otherwise."""
    return make_plan([alike(count, size)], prices(), **{"launches_per_day": 1.0, **options})


def by_key(made: CostPlan, with_prices: Prices | None = None) -> dict[str, Bill]:
    return {bill.key: bill for bill in bills(made, with_prices or prices())}
