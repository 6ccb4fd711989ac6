"""The file of prices, and a user's own on top of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import NotFoundError, UsageError
from coldstream.operate.cost.prices import overridden, prices, storage_per_month, upload_operations, upload_requests
from coldstream.tune.gpus import find_gpu


def own(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_one_price_can_be_replaced(tmp_path: Path) -> None:
    document = {
        "dated": "2027-01",
        "providers": {"s3": {"egress_per_gb": 0.02}},
        "gpus": {"dollars_per_hour": {"L4": 0.3}},
    }
    found = overridden(own(tmp_path, document))
    assert found.providers.s3.egress_per_gb == 0.02
    assert found.gpus.dollars_per_hour["L4"] == 0.3
    assert found.dated == "2027-01"
    # Everything else is as it was.
    assert found.providers.s3.storage_per_gb_month == prices().providers.s3.storage_per_gb_month
    assert found.providers.r2 == prices().providers.r2
    assert found.gpus.dollars_per_hour["T4"] == prices().gpus.dollars_per_hour["T4"]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"providers": {"s3": {"egress_per_gb": -0.01}}}, "providers.s3.egress_per_gb"),
        ({"providers": {"s3": {"egres_per_gb": 1}}}, "egres_per_gb"),
        ({"providers": {"b2": {}}}, "b2"),
        ({"provider": {}}, "provider"),
        ({"providers": {"r2": {"class_a_free": "1M"}}}, "providers.r2.class_a_free"),
        ({"providers": {"r2": {"rounded_up": 1}}}, "providers.r2.rounded_up"),
        ({"providers": {"r2": {"gb_bytes": 0}}}, "providers.r2.gb_bytes"),
        ({"providers": {"r2": 5}}, "providers.r2"),
        ({"providers": {"s3": {"egress_per_gb": [{"up_to_gb": 5, "dollars": 1}]}}}, "egress_per_gb"),
        ({"providers": {"s3": {"egress_per_gb": []}}}, "egress_per_gb"),
        ({"providers": {"s3": {"egress_per_gb": [{"dollars": 1}, {"dollars": 2}]}}}, "egress_per_gb"),
        ({"gpus": {"dollars_per_hour": {"L4": -1}}}, "gpus.dollars_per_hour"),
        ({"dated": "November"}, "dated"),
        ([], "array"),
        ("{", "mine.json"),
        ('{"providers": {"r2": {"egress_per_gb": NaN}}}', "mine.json"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path: Path, document: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        overridden(own(tmp_path, document))
    assert "\n" not in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        overridden(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot read"):
        overridden(tmp_path)


def test_upload_and_cost_have_the_same_prices() -> None:
    """A GB costs 0.015 a month; 9 parts of 6 files are 9 + 18 = 27 writes at 4.50 a million."""
    assert storage_per_month(10**9) == pytest.approx(0.015)
    assert upload_operations(9, 6) == 27
    assert upload_requests(9, 6) == pytest.approx(27 * 4.5e-6)


def test_every_provider_says_where_its_prices_are_from() -> None:
    found = prices().providers
    for name in found.__struct_fields__:
        assert getattr(found, name).source.startswith("https://")
    for name in prices().gpus.dollars_per_hour:
        assert find_gpu(name).name == name
