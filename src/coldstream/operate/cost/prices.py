"""The providers' prices in US dollars: `prices.json`, with a date and a source for each, and the user's file on top.

Class A and B are Cloudflare's and Google's names for writes (with listings) and reads; S3 has the same two prices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from coldstream.errors import NotFoundError, UsageError

_FILE = Path(__file__).with_name("prices.json")
_BYTES_MAX = 1 << 20
# Besides its parts: creating and completing the upload, and its entry in the journal.
_REQUESTS_PER_FILE = 3

Dollars = Annotated[float, Meta(ge=0, le=1e6)]
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Text = Annotated[str, Meta(max_length=1000)]


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The price of a GB, for the month's usage up to `up_to_gb`; None means without a limit."""

    dollars: Dollars
    up_to_gb: Amount | None = None


Tiers = tuple[Tier, ...]


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One provider's prices; free amounts are per month."""

    label: Text
    source: Text
    note: Text
    gb_bytes: Annotated[int, Meta(ge=1)]
    rounded_up: bool = False  # whether each kind of usage is rounded up to a whole GB-month, million requests or GB
    storage_per_gb_month: Dollars | Tiers
    storage_free_gb: Amount = 0
    storage_days_min: Amount = 0  # objects are billed for at least this many days
    class_a_per_million: Dollars  # writes, parts, creating and completing uploads, listings
    class_a_free: Amount = 0
    class_b_per_million: Dollars  # reads
    class_b_free: Amount = 0
    retrieval_per_gb: Dollars = 0  # applies to reads from anywhere
    egress_per_gb: Dollars | Tiers  # applies to reads from outside the provider's region
    egress_free_gb: Amount = 0

    def __post_init__(self) -> None:
        for name in ("storage_per_gb_month", "egress_per_gb"):
            ends = [math.inf if tier.up_to_gb is None else tier.up_to_gb for tier in tiers_of(getattr(self, name))]
            if not ends or ends[-1] != math.inf or sorted(set(ends)) != ends:
                raise ValueError(f"{name}: the tiers must grow, and the last has no up_to_gb")


class Providers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All providers that are compared."""

    r2: Provider
    r2_infrequent_access: Provider
    s3: Provider
    gcs: Provider
    hub: Provider


class GpuPrices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hourly price of a machine with one GPU, by the GPU's name."""

    source: Text
    note: Text
    dollars_per_hour: dict[str, Dollars]


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All prices, as of the month `dated`."""

    dated: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}(-\d{2})?\Z")]
    providers: Providers
    gpus: GpuPrices


@functools.cache
def prices() -> Prices:
    """The built-in prices."""
    return msgspec.convert(msgspec.json.decode(_FILE.read_bytes()), Prices)


def overridden(path: Path) -> Prices:
    """The built-in prices, with those that the user's file contains replaced; UsageError if the file is not valid."""
    try:
        with open(path, "rb") as opened:
            data = opened.read(_BYTES_MAX)
    except FileNotFoundError as exc:
        raise NotFoundError(f"there is no file {path}", target=str(path)) from exc
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    try:
        mine = msgspec.json.decode(data)
        return msgspec.convert(_merged(msgspec.json.decode(_FILE.read_bytes()), mine), Prices)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        # msgspec calls the document `$`.
        hint = "the keys are those of docs/cost.md#prices"
        raise UsageError(f"{path}: {str(exc).replace('`$.', '`')}", hint=hint) from exc


def tiers_of(price: float | Tiers) -> Tiers:
    """Turns a single price into one tier."""
    return price if isinstance(price, tuple) else (Tier(price),)


def storage_per_month(byte_count: int) -> float:
    """US dollars a month for storing these bytes in R2, ignoring its free tier and rounding."""
    provider = prices().providers.r2
    return byte_count / provider.gb_bytes * tiers_of(provider.storage_per_gb_month)[0].dollars


def upload_operations(parts: int, files: int) -> int:
    """The number of class A requests of an upload."""
    return parts + _REQUESTS_PER_FILE * files


def upload_requests(parts: int, files: int) -> float:
    """US dollars, once, for the requests of an upload to R2, ignoring its free tier and rounding."""
    return upload_operations(parts, files) / 1e6 * prices().providers.r2.class_a_per_million


def _merged(ours: Any, theirs: Any) -> Any:
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return theirs
    return {**ours, **{key: _merged(ours.get(key), value) for key, value in theirs.items()}}
