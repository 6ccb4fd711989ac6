"""From when on R2 costs less, and the chart of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coldstream.operate.cost.bill import BreakEven, break_evens, curve
from coldstream.operate.cost.prices import overridden, prices
from coldstream.tune.gpus import parse_gpus
from tests.unit.operate.cost.plans import GB, by_key, plan


def evens(made: object, with_prices: object = None) -> dict[str, BreakEven]:
    return {even.against: even for even in break_evens(made, with_prices or prices())}  # type: ignore[arg-type]


def test_the_hub_is_cheaper_until_gpus_wait_too_long_for_it() -> None:
    """160 GB cost 2.25 a month. A second of a start costs 3.60 / 3600 = 0.001, and R2 saves 90 - 10 = 80 of them.

    2.25 / 0.08 = 28.125 starts in the month, 0.9375 a day.
    """
    made = plan(
        16 * GB, 10, gpus=parse_gpus("L4"), gpu_dollars_per_hour=3.6, load_seconds_override=10, hub_seconds_override=90
    )
    found = evens(made)["hub"]
    assert found.when == "from"
    assert found.launches_per_day == pytest.approx(0.9375, rel=1e-6)
    assert evens(plan(16 * GB, 10))["hub"].when == "never"


def test_same_region_is_always_dearer_at_list_prices() -> None:
    found = evens(plan(16 * GB, 10))
    assert {found[key].when for key in ("s3-same-region", "s3-other-cloud", "gcs-other-cloud")} == {"always"}


def test_infrequent_access_is_cheaper_for_what_is_hardly_read() -> None:
    """1,000 GB, never replaced: 14.85 against 10.00 and at least 0.90 for reads: cheaper by 3.95 until it is read.

    A start reads 100 GB, a dollar of retrieval: the fourth start of the month, 4/30 a day, is one too many.
    """
    made = plan(100 * GB, 10, updates_per_month=0)
    found = evens(made)["r2-infrequent-access"]
    assert found.when == "from"
    assert found.launches_per_day == pytest.approx(3.95 / 30, rel=0.02)


def test_where_reading_costs_more_in_r2_it_is_cheaper_until(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"providers": {"s3": {"class_b_per_million": 0.01}}}')
    found = evens(plan(16 * GB, 10), overridden(path))["s3-same-region"]
    assert found.when == "until"
    assert found.launches_per_day is not None
    # Ten million free reads are 5,192 starts of 1,926 reads, 173 a day.
    assert 173 < found.launches_per_day < 400


def test_the_curve_holds_the_plan_itself() -> None:
    made = plan(16 * GB, 10, launches_per_day=100)
    points = curve(made, prices())
    assert points[100] == {key: bill.dollars for key, bill in by_key(made).items()}
    launches = [*points]
    assert launches == sorted(launches)
    assert (launches[0], launches[-1]) == pytest.approx((0.1, 1000))


@pytest.mark.parametrize("launches", [1e-3, 100, 1e7])
def test_charts_of_anything(launches: float) -> None:
    pytest.importorskip("matplotlib")
    from coldstream.operate.cost.bill import cost_page

    made = replace(plan(GB), launches_per_day=launches)
    report = cost_page(made, prices(), "<b>& x $y$", ["a < b"])
    assert report.png().startswith(b"\x89PNG")
    page = report.html()
    assert "<svg" in page
    assert "<b>" not in page
    assert "a &lt; b" in page
    assert page.count("<tr>") == 8
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
