"""What Cloudflare has counted, by a double that knows the documented names alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from coldstream.errors import ColdstreamError, ConfigError, CredentialsError, IntegrityError, NotFoundError, UsageError
from coldstream.operate.cost.prices import prices
from coldstream.operate.cost.usage import Actual, read_actual
from coldstream.settings import Settings, load_settings
from tests.servers.analytics import Analytics
from tests.servers.r2 import ACCOUNT, Answer, FakeApi, cloudflare

GB, MILLION = 10**9, 10**6
DAY = timedelta(days=1)
# Ten days of thirty are over.
NOW = datetime(2026, 11, 11, tzinfo=timezone.utc)
BEGAN = datetime(2026, 11, 1, tzinfo=timezone.utc)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with cloudflare() as api:
        api.graphql = Analytics(NOW)
        yield api


def counted(api: FakeApi) -> Analytics:
    assert isinstance(api.graphql, Analytics)
    return api.graphql


def settings(api: FakeApi, **other: str) -> Settings:
    environ = {"R2_ENDPOINT": f"https://{ACCOUNT}.r2.cloudflarestorage.com", "R2_BUCKET": "models", **api.environ()}
    return load_settings(environ | other, environ={})


def read(api: FakeApi, **other: str) -> Actual:
    return read_actual(settings(api, **other), prices(), now=NOW)


def test_a_month_by_hand(api: FakeApi) -> None:
    """110 GB since long ago; four million reads and two million writes in each ten days, for all of the 31 days.

    So far: 11 days have been seen of 30 (the eleventh has just begun): 110 x 11 / 30 = 40.33 GB-months, less 10,
    rounded up 31, x 0.015 = 0.465. Two million writes, less one free: 4.50. Four million reads are free.
    The month: 110 GB, less 10, 1.50. The window has 31 days less a minute, with 31 times 400,000 reads and 200,000
    writes: the twenty days that are left bring 8,000,180 and 4,000,090 (the minute makes the rate a little larger). So
    12,000,180 reads, rounded up to 3 million beyond what is free, 1.08; 6,000,090 writes, 6 million beyond, 27.
    """
    found = counted(api)
    for day in range(31):
        when = NOW - (day + 0.5) * DAY
        found.storage.append((when, "models", 110 * GB, 12))
        found.operations += [
            (when, "models", "GetObject", 200, 350_000),
            (when, "models", "GetObject", 206, 50_000),
            (when, "models", "UploadPart", 200, 150_000),
            (when, "models", "ListObjects", 200, 50_000),
            (when, "models", "DeleteObject", 204, 77),
            # Not billed, not this bucket's.
            (when, "models", "GetObject", 403, 10_000),
            (when, "models", "PutObject", 401, 10_000),
            (when, "other", "PutObject", 200, 999),
        ]
    actual = read(api)
    assert (actual.stored_bytes, actual.objects) == (110 * GB, 12)
    assert actual.average_bytes == 110 * GB
    assert actual.operations == {"DeleteObject": 770, "GetObject": 4 * MILLION, "ListObjects": 500_000,
                                 "UploadPart": 1_500_000}  # fmt: skip
    assert (actual.class_a, actual.class_b) == (2 * MILLION, 4 * MILLION)
    assert actual.so_far.storage.billed == 31
    assert actual.so_far.dollars == pytest.approx(31 * 0.015 + 4.50)
    assert actual.projected_class_b == 12_000_180
    assert actual.projected_class_a == 6_000_090
    assert actual.projected.dollars == pytest.approx(1.50 + 1.08 + 27.00)


def test_storage_is_the_mean_of_each_day_s_most(api: FakeApi) -> None:
    """On the first: 40 and 60 GB; nothing counted on the second to fourth; 20 GB from the fifth to the eleventh.

    (4 x 60 + 7 x 20) / 11 = 34.55 GB; the month, if 20 stay: (4 x 60 + 26 x 20) / 30 = 25.33, less 10, 16 billed.
    """
    found = counted(api)
    found.storage += [
        (BEGAN + 0.2 * DAY, "models", 60 * GB, 3),
        (BEGAN + 0.7 * DAY, "models", 40 * GB, 2),
        *((BEGAN + (day + 0.0) * DAY, "models", 20 * GB, 1) for day in range(4, 11)),
    ]
    actual = read(api)
    assert actual.average_bytes == pytest.approx(380 / 11 * GB)
    assert actual.projected_bytes == pytest.approx(760 / 30 * GB)
    assert actual.projected.storage.billed == 16
    assert actual.stored_bytes == 20 * GB


def test_a_young_bucket_is_not_taken_for_one_that_is_hardly_used(api: FakeApi) -> None:
    """Two days old, a million reads in them: twenty days more bring ten million."""
    found = counted(api)
    found.storage.append((NOW - 2 * DAY, "models", GB, 1))
    found.operations.append((NOW - DAY, "models", "GetObject", 200, MILLION))
    assert read(api).projected_class_b == 11 * MILLION


def test_an_operation_that_nobody_knows_is_the_dearer_one(api: FakeApi) -> None:
    counted(api).operations.append((NOW - DAY, "models", "FoldObject", 200, 5))
    actual = read(api)
    assert (actual.class_a, actual.class_b) == (5, 0)


def test_nothing_was_counted(api: FakeApi) -> None:
    actual = read(api)
    assert (actual.stored_bytes, actual.class_a, actual.projected.dollars) == (0, 0, 0)


def test_a_bucket_in_a_jurisdiction_has_another_name(api: FakeApi) -> None:
    counted(api).storage.append((NOW - DAY, "eu_models", GB, 1))
    actual = read(api, R2_ENDPOINT=f"https://{ACCOUNT}.eu.r2.cloudflarestorage.com")
    assert actual.bucket == "eu_models"
    assert actual.objects == 1
    assert read(api).objects == 0


@pytest.mark.parametrize("moment", ["2026-10-31T23:59:59", "2026-11-01T00:00:00", "2028-02-29T12:00:00"])
def test_no_day_asks_for_more_than_there_is(api: FakeApi, moment: str) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=timezone.utc)
    counted(api).now = now
    actual = read_actual(settings(api), prices(), now=now)
    assert actual.began <= now < actual.ends


def test_what_the_token_may_not(api: FakeApi) -> None:
    with pytest.raises(CredentialsError, match="CLOUDFLARE_API_TOKEN") as caught:
        read(api, CLOUDFLARE_API_TOKEN="other")
    assert "Account Analytics: Read" in str(caught.value.hint)
    counted(api).account = "f" * 32
    with pytest.raises(NotFoundError, match=ACCOUNT):
        read(api)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"viewer": {}}, IntegrityError),
        ({"viewer": {"accounts": [{"storage": [{"max": {}}], "window": [], "month": []}]}}, IntegrityError),
        (
            {"viewer": {"accounts": [{"storage": [], "window": [{"sum": {"requests": "x"}}], "month": []}]}},
            IntegrityError,
        ),
    ],
)
def test_an_answer_that_is_none(api: FakeApi, data: Any, error: type[ColdstreamError]) -> None:
    api.answers.append(Answer(200, {"data": data, "errors": None}))
    with pytest.raises(error, match="unexpected response"):
        read(api)


def test_where_nobody_counts(api: FakeApi) -> None:
    with pytest.raises(ConfigError, match="names no account of Cloudflare R2"):
        read(api, R2_ENDPOINT="http://127.0.0.1:9000")
    with pytest.raises(UsageError, match="is not a bucket"):
        read(api, COLDSTREAM_STORE="file:///tmp/models")
    environ = {"R2_ENDPOINT": f"https://{ACCOUNT}.r2.cloudflarestorage.com", "R2_BUCKET": "models"}
    with pytest.raises(ConfigError, match="CLOUDFLARE_API_TOKEN is not set"):
        read_actual(load_settings(environ, environ={}), prices())
