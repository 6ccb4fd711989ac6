"""Usage into units as they are billed. Pure, and exact: a byte more than ten GB is a GB more on the bill."""

from __future__ import annotations

import math
from fractions import Fraction

from coldstream.operate.cost.prices import Tiers


def exact(number: float) -> Fraction:
    """What was written, not the binary float nearest to it: 0.1 launches a day are three in thirty days."""
    return Fraction(str(number))


def billed_units(amount: Fraction, *, unit: Fraction | int, free: Fraction | int, rounded_up: bool) -> Fraction:
    """How many units are paid for.

    Args:
        amount: Bytes, or requests.
        unit: So many of them are one.
        free: So many of them are not billed.
        rounded_up: Whether a part of a unit counts as a whole one (R2: docs r2/pricing, "billable unit rounding").
    """
    units = max(Fraction(0), amount - free) / unit
    return Fraction(math.ceil(units)) if rounded_up else units


def tiered(units: Fraction, tiers: Tiers) -> float:
    """What so many units cost; each tier's price is for what lies in it."""
    dollars, below = 0.0, Fraction(0)
    for tier in tiers:
        end = units if tier.up_to_gb is None else min(units, exact(tier.up_to_gb))
        dollars += float(max(Fraction(0), end - below)) * tier.dollars
        below = max(below, end)
    return dollars
