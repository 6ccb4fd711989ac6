"""What Cloudflare has counted of a bucket, and what the month will come to.

The figures are those of the dashboard: two datasets of the GraphQL API, kept for 31 days (docs
r2/platform/metrics-analytics). A bucket in a jurisdiction is called `eu_<bucket>` there.
"""

from __future__ import annotations

import calendar
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from urllib.parse import urlsplit

import msgspec

from coldstream.errors import ConfigError, IntegrityError, NotFoundError, UsageError
from coldstream.net.retry import Retry
from coldstream.operate.cost.bill import PLACES, R2, Bill, Usage, charged
from coldstream.operate.cost.prices import Prices
from coldstream.places.cloudflare import open_api, r2_account
from coldstream.settings import Settings

# They are kept for 31 days; a minute less, so that no second of delay makes it more.
WINDOW = timedelta(days=31, minutes=-1)
_GROUPS_MAX = 10_000
_DAY = timedelta(days=1)
# Requests that fail at authentication or authorization are not billed (docs r2/pricing).
_UNBILLED_STATUS = {"401", "403"}
# docs r2/pricing; what stands in neither is taken for class A, the dearer one.
CLASS_B = frozenset(
    {
        "HeadBucket", "HeadObject", "GetObject", "UsageSummary", "GetBucketEncryption", "GetBucketLocation",
        "GetBucketCors", "GetBucketLifecycleConfiguration",
    }
)  # fmt: skip
FREE = frozenset({"DeleteObject", "DeleteObjects", "DeleteBucket", "AbortMultipartUpload"})

QUERY = f"""
query Usage($accountTag: string!, $bucketName: string, $windowStart: Time, $monthStart: Time, $end: Time) {{
  viewer {{
    accounts(filter: {{ accountTag: $accountTag }}) {{
      storage: r2StorageAdaptiveGroups(
        limit: {_GROUPS_MAX}
        filter: {{ datetime_geq: $windowStart, datetime_leq: $end, bucketName: $bucketName }}
        orderBy: [datetime_DESC]
      ) {{
        max {{ objectCount payloadSize metadataSize }}
        dimensions {{ datetime }}
      }}
      window: r2OperationsAdaptiveGroups(
        limit: {_GROUPS_MAX}
        filter: {{ datetime_geq: $windowStart, datetime_leq: $end, bucketName: $bucketName }}
      ) {{
        sum {{ requests }}
        dimensions {{ actionType responseStatusCode }}
      }}
      month: r2OperationsAdaptiveGroups(
        limit: {_GROUPS_MAX}
        filter: {{ datetime_geq: $monthStart, datetime_leq: $end, bucketName: $bucketName }}
      ) {{
        sum {{ requests }}
        dimensions {{ actionType responseStatusCode }}
      }}
    }}
  }}
}}
"""


class _Sum(msgspec.Struct, frozen=True):
    requests: int


class _Action(msgspec.Struct, frozen=True):
    actionType: str  # noqa: N815  # Cloudflare's name
    responseStatusCode: int | str = 0  # noqa: N815


class _Operations(msgspec.Struct, frozen=True):
    sum: _Sum
    dimensions: _Action


class _Max(msgspec.Struct, frozen=True):
    objectCount: int = 0  # noqa: N815
    payloadSize: int = 0  # noqa: N815
    metadataSize: int = 0  # noqa: N815


class _Moment(msgspec.Struct, frozen=True):
    datetime: datetime


class _Stored(msgspec.Struct, frozen=True):
    max: _Max
    dimensions: _Moment


class _Account(msgspec.Struct, frozen=True):
    storage: list[_Stored]
    window: list[_Operations]
    month: list[_Operations]


class _Viewer(msgspec.Struct, frozen=True):
    accounts: list[_Account]


class _Answer(msgspec.Struct, frozen=True):
    viewer: _Viewer


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """A bucket's month.

    Attributes:
        bucket: As Cloudflare's analytics call it.
        began: Of the month.
        now: Until when was counted.
        ends: Of the month.
        stored_bytes: At the last count.
        objects: At the last count.
        average_bytes: The mean of each day's most, over the days of the month so far.
        operations: Requests since the month began, by operation; those that are not billed for their status left out.
        class_a: Requests of it.
        class_b: Requests of it.
        so_far: What that comes to.
        projected_bytes: The mean of each day's most over the whole month, if what is stored stays.
        projected_class_a: Requests of the whole month, if the rest is like the last 31 days.
        projected_class_b: Likewise.
        projected: What the month will come to.
    """

    bucket: str
    began: datetime
    now: datetime
    ends: datetime
    stored_bytes: int
    objects: int
    average_bytes: float
    operations: Mapping[str, int]
    class_a: int
    class_b: int
    so_far: Bill
    projected_bytes: float
    projected_class_a: int
    projected_class_b: int
    projected: Bill


def read_actual(
    settings: Settings, prices: Prices, *, now: datetime | None = None, retry: Retry | None = None
) -> Actual:
    """Asks Cloudflare.

    Args:
        settings: Whose bucket, and with which token.
        prices: Of R2.
        now: The time, in UTC.
        retry: See `open_api`.

    Raises:
        ConfigError: There is no token, or the endpoint is not R2's.
        UsageError: The store is a folder.
        CredentialsError: The token is refused, or may not read these figures.
        NotFoundError: It knows no such account.
        IntegrityError: The answer is not what was asked for.
        UnavailableError: No answer.
    """
    split = urlsplit(settings.store_uri())
    if split.scheme != "s3":
        raise UsageError(f"{settings.store_uri()} is not a bucket, so there is no usage to read")
    account = r2_account(settings.endpoint() or "https://s3.amazonaws.com")
    bucket = f"{account.jurisdiction}_{split.netloc}" if account.jurisdiction else split.netloc
    api = open_api(settings, retry)
    if api is None:
        raise ConfigError(
            f"the usage is read from Cloudflare's API, but CLOUDFLARE_API_TOKEN is not set in "
            f"{' or '.join(settings.looked_in)}",
            hint="create a token with 'Account Analytics: Read' at dash.cloudflare.com/profile/api-tokens",
        )
    now = now or datetime.now(timezone.utc)
    began = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    window = now - WINDOW
    reply = api.graphql(
        QUERY,
        {
            "accountTag": account.account,
            "bucketName": bucket,
            "windowStart": _stamp(window),
            "monthStart": _stamp(max(began, window)),
            "end": _stamp(now),
        },
    )
    try:
        accounts = msgspec.convert(reply, _Answer).viewer.accounts
    except msgspec.ValidationError as exc:
        raise IntegrityError(f"Cloudflare's analytics answered with what was not asked for: {exc}") from exc
    if not accounts:
        raise NotFoundError(
            f"Cloudflare shows this token no account {account.account}",
            hint="the token must be of the account in R2_ENDPOINT",
        )
    return _reckoned(accounts[0], prices, bucket=bucket, began=began, now=now)


def _reckoned(account: _Account, prices: Prices, *, bucket: str, began: datetime, now: datetime) -> Actual:
    days = calendar.monthrange(now.year, now.month)[1]
    ends = began + days * _DAY
    samples = sorted(
        (row.dimensions.datetime, row.max.payloadSize + row.max.metadataSize, row.max.objectCount)
        for row in account.storage
    )
    stored, objects = samples[-1][1:] if samples else (0, 0)
    peaks = _peaks([(moment, size) for moment, size, _ in samples], began, now)
    month, window = _billed(account.month), _billed(account.window)
    # A bucket that is younger than the window has had less time to be asked; it is counted some times a day.
    first = now - WINDOW
    if samples and samples[0][0] > first + _DAY:
        first = samples[0][0]
    window_seconds = max(_DAY, now - first).total_seconds()
    rest = Fraction((ends - now).total_seconds()) / Fraction(window_seconds)
    a, b = _class_a(month), _class_b(month)
    all_a, all_b = a + math.ceil(_class_a(window) * rest), b + math.ceil(_class_b(window) * rest)
    projected_bytes = Fraction(sum(peaks) + stored * (days - len(peaks)), days)
    place = next(place for place in PLACES if place.key == R2)

    def billed(size: Fraction, class_a: int, class_b: int) -> Bill:
        return charged(
            Usage(stored_bytes=size, class_a=class_a, class_b=class_b, read_bytes=Fraction(0)), prices, place
        )

    return Actual(
        bucket=bucket,
        began=began,
        now=now,
        ends=ends,
        stored_bytes=stored,
        objects=objects,
        average_bytes=sum(peaks) / len(peaks),
        operations=dict(sorted(month.items())),
        class_a=a,
        class_b=b,
        # GB-months grow by the day.
        so_far=billed(Fraction(sum(peaks), days), a, b),
        projected_bytes=float(projected_bytes),
        projected_class_a=all_a,
        projected_class_b=all_b,
        projected=billed(projected_bytes, all_a, all_b),
    )


def _peaks(samples: Sequence[tuple[datetime, int]], began: datetime, now: datetime) -> list[int]:
    """Returns the peak storage of each day of the month so far; a day without a sample repeats the day before."""
    by_day: dict[int, int] = {}
    last = 0
    for moment, size in samples:
        if moment < began:
            last = size
        else:
            by_day[moment.day] = max(size, by_day.get(moment.day, 0))
    peaks = []
    for day in range(1, now.day + 1):
        last = by_day.get(day, last)
        peaks.append(last)
    return peaks


def _billed(rows: Sequence[_Operations]) -> Counter[str]:
    billed: Counter[str] = Counter()
    for row in rows:
        if str(row.dimensions.responseStatusCode) not in _UNBILLED_STATUS:
            billed[row.dimensions.actionType] += row.sum.requests
    return billed


def _class_a(operations: Mapping[str, int]) -> int:
    return sum(count for name, count in operations.items() if name not in CLASS_B and name not in FREE)


def _class_b(operations: Mapping[str, int]) -> int:
    return sum(count for name, count in operations.items() if name in CLASS_B)


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
