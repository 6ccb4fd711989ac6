"""The usage that Cloudflare measured for a bucket, and a forecast of the month.

The figures are those of the dashboard, from its GraphQL API, kept for 31 days (docs r2/platform/metrics-analytics).
"""

from __future__ import annotations

import calendar
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from coldstream.errors import ConfigError, IntegrityError, NotFoundError, UsageError
from coldstream.net.retry import Retry
from coldstream.operate.cost.bill import R2, Bill, Usage, charged
from coldstream.operate.cost.prices import Prices
from coldstream.places.cloudflare import open_api, r2_account
from coldstream.settings import Settings

# A minute less than the 31 days that are kept, so that a delay does not exceed them.
_WINDOW = timedelta(days=31, minutes=-1)
_DAY = timedelta(days=1)
# Requests that fail at authentication or authorization are not billed (docs r2/pricing).
_UNBILLED_STATUS = {"401", "403"}
# docs r2/pricing; unknown operations count as class A, which costs more.
_CLASS_B = {
    "HeadBucket", "HeadObject", "GetObject", "UsageSummary", "GetBucketEncryption", "GetBucketLocation",
    "GetBucketCors", "GetBucketLifecycleConfiguration",
}  # fmt: skip
_FREE = {"DeleteObject", "DeleteObjects", "DeleteBucket", "AbortMultipartUpload"}

_OPERATIONS = """r2OperationsAdaptiveGroups(
        limit: 10000
        filter: { datetime_geq: $START, datetime_leq: $end, bucketName: $bucketName }
      ) {
        sum { requests }
        dimensions { actionType responseStatusCode }
      }"""
_QUERY = f"""
query Usage($accountTag: string!, $bucketName: string, $windowStart: Time, $monthStart: Time, $end: Time) {{
  viewer {{
    accounts(filter: {{ accountTag: $accountTag }}) {{
      storage: r2StorageAdaptiveGroups(
        limit: 10000
        filter: {{ datetime_geq: $windowStart, datetime_leq: $end, bucketName: $bucketName }}
        orderBy: [datetime_DESC]
      ) {{
        max {{ objectCount payloadSize metadataSize }}
        dimensions {{ datetime }}
      }}
      window: {_OPERATIONS.replace("START", "windowStart")}
      month: {_OPERATIONS.replace("START", "monthStart")}
    }}
  }}
}}
"""


class _Operations(msgspec.Struct, frozen=True):
    sum: dict[Literal["requests"], int]
    dimensions: dict[Literal["actionType", "responseStatusCode"], str | int]


class _Stored(msgspec.Struct, frozen=True):
    max: dict[Literal["objectCount", "payloadSize", "metadataSize"], int]
    dimensions: dict[Literal["datetime"], datetime]


class _Account(msgspec.Struct, frozen=True):
    storage: list[_Stored]
    window: list[_Operations]
    month: list[_Operations]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """A bucket's month, which lasts from `began` to `ends` and was measured until `now`."""

    bucket: str
    began: datetime
    now: datetime
    ends: datetime
    stored_bytes: int  # the latest sample, like `objects`
    objects: int
    average_bytes: float  # the mean of each day's peak, so far; `projected_bytes` is that of the whole month
    operations: Mapping[str, int]  # billable requests so far, by operation
    class_a: int
    class_b: int
    so_far: Bill
    projected_bytes: float
    projected_class_a: int  # requests of the whole month, at the rate of the last 31 days
    projected_class_b: int
    projected: Bill


def read_actual(
    settings: Settings, prices: Prices, *, now: datetime | None = None, retry: Retry | None = None
) -> Actual:
    """Reads the bucket's usage from Cloudflare's API, with a token that sees the account."""
    split = urlsplit(settings.store_uri())
    if split.scheme != "s3":
        raise UsageError(f"{settings.store_uri()} is not a bucket, so there is no usage to read")
    account = r2_account(settings.endpoint() or "https://s3.amazonaws.com")
    bucket = f"{account.jurisdiction}_{split.netloc}" if account.jurisdiction else split.netloc
    api = open_api(settings, retry)
    if api is None:
        places = " or ".join(settings.looked_in)
        raise ConfigError(
            f"the usage is read from Cloudflare's API, but CLOUDFLARE_API_TOKEN is not set in {places}",
            hint="create a token with 'Account Analytics: Read' at dash.cloudflare.com/profile/api-tokens",
        )
    now = now or datetime.now(timezone.utc)
    began = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    times = {"windowStart": now - _WINDOW, "monthStart": max(began, now - _WINDOW), "end": now}
    variables = {name: moment.strftime("%Y-%m-%dT%H:%M:%SZ") for name, moment in times.items()}
    reply = api.graphql(_QUERY, {"accountTag": account.account, "bucketName": bucket, **variables})
    try:
        accounts = msgspec.convert(reply["viewer"]["accounts"], list[_Account])
        if accounts:
            return _forecast(accounts[0], prices, bucket=bucket, began=began, now=now)
    except (msgspec.ValidationError, KeyError, TypeError) as exc:
        raise IntegrityError(f"Cloudflare's analytics sent an unexpected response: {exc}") from exc
    hint = "the token must be of the account in R2_ENDPOINT"
    raise NotFoundError(f"Cloudflare shows this token no account {account.account}", hint=hint)


def _forecast(account: _Account, prices: Prices, *, bucket: str, began: datetime, now: datetime) -> Actual:
    days = calendar.monthrange(now.year, now.month)[1]
    ends = began + days * _DAY
    samples = sorted(
        (row.dimensions["datetime"], row.max["payloadSize"] + row.max["metadataSize"], row.max["objectCount"])
        for row in account.storage
    )
    stored, objects = samples[-1][1:] if samples else (0, 0)
    peaks = _daily_peaks([(moment, size) for moment, size, _ in samples], began, now)
    # A bucket that is younger than the window has been used for less time; it is sampled several times a day.
    first = now - _WINDOW
    if samples and samples[0][0] > first + _DAY:
        first = samples[0][0]
    rest = Fraction((ends - now).total_seconds()) / Fraction(max(_DAY, now - first).total_seconds())
    month = _billed(account.month)
    class_a, class_b = _classes(month)
    recent_a, recent_b = _classes(_billed(account.window))
    all_a, all_b = class_a + math.ceil(recent_a * rest), class_b + math.ceil(recent_b * rest)
    # GB-months grow by the day.
    so_far = Usage(stored_bytes=Fraction(sum(peaks), days), class_a=class_a, class_b=class_b)
    projected_bytes = Fraction(sum(peaks) + stored * (days - len(peaks)), days)
    return Actual(
        bucket=bucket,
        began=began,
        now=now,
        ends=ends,
        stored_bytes=stored,
        objects=objects,
        average_bytes=sum(peaks) / len(peaks),
        operations=dict(sorted(month.items())),
        class_a=class_a,
        class_b=class_b,
        so_far=charged(so_far, prices, R2),
        projected_bytes=float(projected_bytes),
        projected_class_a=all_a,
        projected_class_b=all_b,
        projected=charged(Usage(stored_bytes=projected_bytes, class_a=all_a, class_b=all_b), prices, R2),
    )


def _daily_peaks(samples: Sequence[tuple[datetime, int]], began: datetime, now: datetime) -> list[int]:
    """The peak storage of each day of the month so far; a day without a sample repeats the day before."""
    peaks = []
    last = next((size for moment, size in reversed(samples) if moment < began), 0)
    for day in range(1, now.day + 1):
        last = max((size for moment, size in samples if moment >= began and moment.day == day), default=last)
        peaks.append(last)
    return peaks


def _billed(rows: Sequence[_Operations]) -> Counter[str]:
    billed: Counter[str] = Counter()
    for row in rows:
        if str(row.dimensions["responseStatusCode"]) not in _UNBILLED_STATUS:
            billed[str(row.dimensions["actionType"])] += row.sum["requests"]
    return billed


def _classes(operations: Counter[str]) -> tuple[int, int]:
    """The numbers of class A and class B requests."""
    class_b = sum(operations[name] for name in _CLASS_B)
    return sum(operations.values()) - class_b - sum(operations[name] for name in _FREE), class_b
