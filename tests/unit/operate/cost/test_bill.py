"""Bills by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from coldstream.errors import UsageError
from coldstream.operate.cost.bill import usage_of
from coldstream.operate.cost.prices import prices
from coldstream.operate.cost.workload import Content, alike, chunks_of, load_seconds, make_plan, writes_of_upload
from coldstream.tune.gpus import parse_gpus
from tests.unit.operate.cost.plans import GB, by_key, plan


def test_ten_models_of_16_gb_and_100_launches_a_day() -> None:
    """The example of docs/cost.md.

    Reads: 16 x 10^9 / 2^23 = 1,907.3, so 1,908 chunks, and 4 of headers; 2 + 2 x 4 + 1,908 + 8 = 1,926 for each start.
    3,000 starts: 5,778,000, below the ten million that are free. Writes: 3 shards of 5 GB in 75 parts, one of 1 GB in
    15, 8 small ones in 1, and 3 more for each of 12 files: 284, ten times, below the free million.
    Storage: 160 GB, 10 free, 150 x 0.015 = 2.25.
    """
    found = by_key(plan(16 * GB, 10, launches_per_day=100))
    r2 = found["r2"]
    assert r2.class_b.used == 3000 * 1926
    assert r2.class_a.used == 2840
    assert r2.storage.dollars == pytest.approx(2.25)
    assert r2.dollars == pytest.approx(2.25)
    # 160 x 0.01, a million writes 9.00, six million reads 5.40, 48,000 GB retrieved at 0.01.
    assert found["r2-infrequent-access"].dollars == pytest.approx(1.60 + 9.00 + 5.40 + 480)
    # 149.01 GiB x 0.023 = 3.43; 5.778 million x 0.40 = 2.31; 0.00284 x 5 = 0.01.
    assert found["s3-same-region"].dollars == pytest.approx(3.4273 + 2.3112 + 0.0142, abs=1e-3)
    assert found["s3-other-cloud"].dollars == pytest.approx(found["s3-same-region"].dollars + 3842.50, abs=0.005)
    # (149.01 - 5) x 0.02 = 2.88; (5.778 - 0.05) million x 0.40 = 2.29; the writes are within the free 5,000.
    assert found["gcs-same-region"].dollars == pytest.approx(2.8802 + 2.2912, abs=1e-3)
    # 10,240 GiB x 0.12 + 34,363.48 x 0.11 = 1,228.80 + 3,779.98.
    assert found["gcs-other-cloud"].egress.dollars == pytest.approx(5008.78, abs=0.005)
    assert found["hub"].dollars == 0


def test_gpus_that_wait_are_in_the_sum() -> None:
    """300 starts, 2 GPUs at 3.60 an hour: a second of every start is 300 x 2 x 3.60 / 3600 = 0.60 dollars."""
    made = plan(
        1 * GB,
        launches_per_day=10,
        gpus=parse_gpus("L4:2"),
        gpu_dollars_per_hour=3.6,
        load_seconds_override=5,
        hub_seconds_override=50,
    )
    assert made.dollars_of_a_second == pytest.approx(0.60)
    found = by_key(made)
    assert found["r2"].gpu_dollars == pytest.approx(3.0)
    assert found["hub"].gpu_dollars == pytest.approx(30.0)
    assert found["r2"].provider_dollars == 0
    assert found["r2"].dollars == pytest.approx(3.0)


def test_a_gpu_s_price_is_looked_up_or_left_out() -> None:
    assert plan(GB, gpus=parse_gpus("L4")).start.dollars_per_hour == prices().gpus.dollars_per_hour["L4"]
    assert plan(GB, gpus=parse_gpus("B300")).dollars_of_a_second is None
    assert by_key(plan(GB))["r2"].gpu_dollars is None


def test_what_a_start_waits() -> None:
    """64 connections of 30 MB/s give 1.92 GB/s: 16 GB in 8.33 s, and half a second around it.

    From the Hub 16 GB at 200 MB/s take 80 s, and 16 from the disk, and half a second
    likewise. Half of the starts find it there: 16 s.
    """
    assert load_seconds(16 * GB) == pytest.approx(8.8333, abs=1e-3)
    start = plan(16 * GB).start
    assert (start.seconds, start.hub_seconds) == pytest.approx((8.8333, 96.5), abs=1e-3)
    half = plan(16 * GB, cached_share=0.5).start
    # A disk slower than the bucket helps nobody who loads from the bucket.
    assert (half.seconds, half.hub_seconds) == pytest.approx((8.8333, 56.25), abs=1e-3)


def test_reads_of_starts_that_find_the_model_on_disk() -> None:
    """12 chunks in 3 shards, 2 small files: 2 manifests, 6 headers, 9 chunks of data, 2 files; or the first 8 alone."""
    content = Content(name="m", stored_bytes=0, loaded_bytes=0, chunks=12, shards=3, small_files=2, writes=0)
    assert content.reads() == 2 + 6 + 9 + 2
    assert content.reads(Fraction(0)) == 8
    assert content.reads(Fraction(1, 2)) == 8 + 5.5
    assert replace(content, copied_headers=3).reads(Fraction(0)) == 2


def test_nodes_days_and_updates() -> None:
    """5 launches of 4 nodes on 20 days are 400 starts; half find the model: 200 GB leave. Two uploads a month."""
    made = plan(GB, launches_per_day=5, nodes=4, days=20, cached_share=0.5, updates_per_month=2)
    usage = usage_of(made)
    assert made.loads == 400
    assert usage.read_bytes == 200 * GB
    # 1 GB: 120 chunks and a header; 2 + 2 + (120 + 8) / 2 = 68 reads on average.
    assert chunks_of(GB) == 121
    assert usage.class_b == 400 * 68
    # 15 parts, 8 small files, 3 for each of 9.
    assert usage.class_a == 2 * (15 + 8 + 27)
    assert writes_of_upload([GB, *[0] * 8]) == 50


def test_a_tenth_of_a_launch() -> None:
    """0.1 a day are three in thirty days, and not a fourth."""
    assert usage_of(plan(GB, launches_per_day=0.1)).class_b == 3 * (2 + 2 + 120 + 8)


@pytest.mark.parametrize(
    "options",
    [
        {"launches_per_day": 0},
        {"launches_per_day": -1},
        {"launches_per_day": float("nan")},
        {"launches_per_day": float("inf")},
        {"nodes": 0},
        {"days": 0},
        {"days": 32},
        {"cached_share": -0.1},
        {"cached_share": 1.1},
        {"updates_per_month": -1},
        {"gpu_dollars_per_hour": -0.5},
        {"load_seconds_override": -1},
        {"hub_seconds_override": float("nan")},
    ],
)
def test_plans_that_are_none(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        plan(GB, **options)


@pytest.mark.parametrize(("count", "size"), [(0, GB), (-1, GB), (1, 0), (1, -5), (10**7, GB), (1, 10**16)])
def test_models_that_are_none(count: int, size: int) -> None:
    with pytest.raises(UsageError):
        alike(count, size)


def test_other_things_in_the_bucket_are_stored_too() -> None:
    made = make_plan([alike(1, GB)], prices(), stored_bytes=12 * GB, launches_per_day=1)
    assert by_key(made)["r2"].storage.billed == 2
