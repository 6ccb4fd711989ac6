"""Units as they are billed."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.operate.cost.bill import PLACES, Usage, billed_units, charged, exact, tiered
from coldstream.operate.cost.prices import Tier, prices

GB, MILLION = 10**9, 10**6


@pytest.mark.parametrize(
    ("stored", "units", "dollars"),
    [
        (0, 0, 0),
        (10 * GB, 0, 0),  # all of it is free
        (10 * GB + 1, 1, 0.015),  # a byte more is a GB more
        (11 * GB, 1, 0.015),
        (11 * GB + 1, 2, 0.030),
        (10 * GB + 100_000_000, 1, 0.015),
        (160 * GB, 150, 2.25),  # 160 - 10 = 150; 150 x 0.015
        (1000 * GB, 990, 14.85),  # the example on Cloudflare's own page
    ],
)
def test_storage_in_r2(stored: int, units: int, dollars: float) -> None:
    usage = Usage(stored_bytes=Fraction(stored), class_a=0, class_b=0, read_bytes=Fraction(0))
    found = charged(usage, prices(), PLACES[0]).storage
    assert found.billed == units
    assert found.dollars == pytest.approx(dollars)


@pytest.mark.parametrize(
    ("a", "b", "dollars_a", "dollars_b"),
    [
        (MILLION, 10 * MILLION, 0, 0),
        (MILLION + 1, 10 * MILLION + 1, 4.50, 0.36),  # one request more is a million more
        (2 * MILLION, 11 * MILLION, 4.50, 0.36),
        (2 * MILLION + 1, 11 * MILLION + 1, 9.00, 0.72),
        (0, 300 * MILLION, 0, 104.40),  # 290 x 0.36, as on Cloudflare's page
    ],
)
def test_operations_in_r2(a: int, b: int, dollars_a: float, dollars_b: float) -> None:
    usage = Usage(stored_bytes=Fraction(0), class_a=a, class_b=b, read_bytes=Fraction(0))
    found = charged(usage, prices(), PLACES[0])
    assert found.class_a.dollars == pytest.approx(dollars_a)
    assert found.class_b.dollars == pytest.approx(dollars_b)


def test_infrequent_access_has_nothing_free_and_rounds_as_well() -> None:
    """Cloudflare's own example: 1,000 GB, 1,000 writes, a million reads, 1,000 GB retrieved.

    1,000 x 0.01 = 10; a thousand writes are a million, 9.00; a million reads 0.90; 1,000 GB x 0.01 = 10: 29.90.
    """
    usage = Usage(stored_bytes=Fraction(1000 * GB), class_a=1000, class_b=MILLION, read_bytes=Fraction(1000 * GB))
    found = charged(usage, prices(), PLACES[1])
    lines = (found.storage, found.class_a, found.class_b, found.retrieval, found.egress)
    assert [line.dollars for line in lines] == pytest.approx([10, 9, 0.9, 10, 0])
    assert found.dollars == pytest.approx(29.90)
    # A byte of a GB is retrieved as a GB.
    more = charged(
        Usage(stored_bytes=Fraction(0), class_a=0, class_b=1, read_bytes=Fraction(GB + 1)), prices(), PLACES[1]
    )
    assert more.retrieval.billed == 2


@pytest.mark.parametrize(("updates", "gb"), [(0, 100), (1, 100), (4, 400)])
def test_what_is_replaced_in_infrequent_access_is_billed_for_thirty_days(updates: int, gb: int) -> None:
    """100 GB replaced four times a month: at any time four versions are within their thirty days."""
    usage = Usage(
        stored_bytes=Fraction(100 * GB), class_a=0, class_b=0, read_bytes=Fraction(0), updates=Fraction(updates)
    )
    assert charged(usage, prices(), PLACES[1]).storage.billed == gb
    assert charged(usage, prices(), PLACES[0]).storage.billed == 90


def test_s3_is_not_rounded_and_its_gb_is_larger() -> None:
    """160 x 10^9 bytes are 149.0116 GiB; x 0.023 = 3.4273. Nothing is free but 100 GiB of egress.

    48,000 x 10^9 bytes are 44,703.48 GiB; less 100: 10,240 x 0.09 + 34,363.48 x 0.085 = 921.60 + 2,920.90 = 3,842.50.
    """
    usage = Usage(stored_bytes=Fraction(160 * GB), class_a=2000, class_b=1, read_bytes=Fraction(48_000 * GB))
    near, far = (charged(usage, prices(), place) for place in PLACES[2:4])
    assert near.storage.dollars == pytest.approx(3.4273, abs=1e-4)
    assert near.class_a.dollars == pytest.approx(0.01)
    assert near.class_b.dollars == pytest.approx(0.4e-6)
    assert near.egress.dollars == 0
    assert far.egress.dollars == pytest.approx(3842.50, abs=0.005)


def test_tiers() -> None:
    tiers = (Tier(3.0, 10), Tier(2.0, 20), Tier(1.0))
    assert [tiered(Fraction(units), tiers) for units in (0, 5, 10, 15, 20, 25)] == [0, 15, 30, 40, 50, 55]


def test_numbers_are_what_was_written() -> None:
    assert exact(0.1) * 30 == 3


@given(st.integers(0, 10**14), st.integers(0, 10**11), st.integers(1, 10**9))
def test_rounding_up_adds_less_than_a_unit(amount: int, free: int, unit: int) -> None:
    plain = billed_units(Fraction(amount), unit=unit, free=free, rounded_up=False)
    up = billed_units(Fraction(amount), unit=unit, free=free, rounded_up=True)
    assert plain <= up < plain + 1
    assert up.denominator == 1
    assert (up == 0) == (amount <= free)


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_more_never_costs_less(first: int, second: int) -> None:
    few, many = sorted((first, second))
    for place in PLACES:
        sums = [
            charged(
                Usage(stored_bytes=Fraction(size), class_a=size // GB, class_b=size // GB, read_bytes=Fraction(size)),
                prices(),
                place,
            ).dollars
            for size in (few, many)
        ]
        assert sums[0] <= sums[1] * (1 + 1e-12)
