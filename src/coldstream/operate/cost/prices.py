"""What providers charge: `prices.json` beside this file, with a date and a source for each, and a user's own on top.

No price stands anywhere else. US dollars; what a GB is, is the provider's to say. Class A and B are Cloudflare's and
Google's names for writes (and listings) and reads; S3 has the same two prices.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from coldstream.errors import NotFoundError, UsageError

_FILE = Path(__file__).with_name("prices.json")
_BYTES_MAX = 1 << 20
# Beside its parts: creating and completing the upload, and the record of it.
_REQUESTS_OF_A_FILE = 3

Dollars = Annotated[float, Meta(ge=0, le=1e6)]
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Text = Annotated[str, Meta(max_length=1000)]


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A price up to an amount.

    Attributes:
        dollars: For each GB.
        up_to_gb: Of the month's; None for all that is more.
    """

    dollars: Dollars
    up_to_gb: Amount | None = None


Tiers = tuple[Tier, ...]


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prices of one.

    Attributes:
        label: For people.
        source: Where they are from.
        note: What to know of them.
        gb_bytes: What it means by a GB.
        rounded_up: Whether each kind of usage is rounded up to the next unit: a GB-month, a million requests, a GB.
        storage_per_gb_month: One price, or several tiers.
        storage_free_gb: In each month.
        storage_days_min: For how many days at least an object is billed.
        class_a_per_million: Writes, parts, creating and completing uploads, listings.
        class_a_free: Requests in each month.
        class_b_per_million: Reads.
        class_b_free: Requests in each month.
        retrieval_per_gb: For reading, wherever to.
        egress_per_gb: To other networks than the provider's region; one price, or several tiers.
        egress_free_gb: In each month.
    """

    label: Text
    source: Text
    note: Text
    gb_bytes: Annotated[int, Meta(ge=1)]
    rounded_up: bool = False
    storage_per_gb_month: Dollars | Tiers
    storage_free_gb: Amount = 0
    storage_days_min: Amount = 0
    class_a_per_million: Dollars
    class_a_free: Amount = 0
    class_b_per_million: Dollars
    class_b_free: Amount = 0
    retrieval_per_gb: Dollars = 0
    egress_per_gb: Dollars | Tiers
    egress_free_gb: Amount = 0

    def __post_init__(self) -> None:
        for name in ("storage_per_gb_month", "egress_per_gb"):
            tiers = tiers_of(getattr(self, name))
            ends = [tier.up_to_gb for tier in tiers]
            bounds = [end for end in ends if end is not None]
            if not tiers or ends[-1] is not None or len(bounds) != len(ends) - 1 or sorted(set(bounds)) != bounds:
                raise ValueError(f"{name}: the tiers must grow, and the last has no up_to_gb")


class Providers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that are compared."""

    r2: Provider
    r2_infrequent_access: Provider
    s3: Provider
    gcs: Provider
    hub: Provider


class GpuPrices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an hour of a machine with one GPU costs.

    Attributes:
        source: Where the prices are from.
        note: What to know of them.
        dollars_per_hour: By the GPU's name.
    """

    source: Text
    note: Text
    dollars_per_hour: dict[str, Dollars]


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All prices.

    Attributes:
        dated: The month in which they were looked up.
        providers: Of buckets, and the Hub.
        gpus: Of machines.
    """

    dated: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}(-\d{2})?\Z")]
    providers: Providers
    gpus: GpuPrices


@functools.cache
def prices() -> Prices:
    """What is known here."""
    return msgspec.convert(msgspec.json.decode(_FILE.read_bytes()), Prices)


def overridden(path: Path) -> Prices:
    """The prices with some of them replaced by a file of the user's, in the same form, of which it may hold a part.

    Raises:
        NotFoundError: There is no such file.
        UsageError: It cannot be read, is not JSON, or has an unknown key, a wrong type or a negative number in it.
    """
    try:
        with open(path, "rb") as opened:
            data = opened.read(_BYTES_MAX)
    except FileNotFoundError as exc:
        raise NotFoundError(f"there is no file {path}", target=str(path)) from exc
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    hint = "the keys are those of docs/cost.md#prices"
    try:
        mine = msgspec.json.decode(data)
        return msgspec.convert(_merged(msgspec.json.decode(_FILE.read_bytes()), mine), Prices)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        # msgspec calls the document `$`.
        raise UsageError(f"{path}: {str(exc).replace('`$.', '`')}", hint=hint) from exc


def tiers_of(price: float | Tiers) -> Tiers:
    """One price as tiers."""
    return price if isinstance(price, tuple) else (Tier(price),)


def storage_per_month(byte_count: int) -> float:
    """US dollars a month for keeping so many more bytes in R2, without its free tier and its rounding."""
    provider = prices().providers.r2
    return byte_count / provider.gb_bytes * tiers_of(provider.storage_per_gb_month)[0].dollars


def upload_operations(parts: int, files: int) -> int:
    """The writes of an upload: its parts, and some three requests beside them per file."""
    return parts + _REQUESTS_OF_A_FILE * files


def upload_requests(parts: int, files: int) -> float:
    """US dollars, once, for the writes of an upload to R2, without its free tier and its rounding."""
    return upload_operations(parts, files) / 1e6 * prices().providers.r2.class_a_per_million


def _merged(ours: Any, theirs: Any) -> Any:
    """Objects are merged by key; anything else is replaced."""
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return theirs
    return {**ours, **{key: _merged(ours.get(key), value) for key, value in theirs.items()}}
