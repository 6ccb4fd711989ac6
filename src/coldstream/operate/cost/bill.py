"""What each provider charges for a month. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from coldstream.operate.cost.prices import Prices, Provider, Tiers, tiers_of
from coldstream.operate.cost.requests import reads_of_load
from coldstream.operate.cost.rounding import billed_units, exact, tiered
from coldstream.operate.cost.workload import MONTH_DAYS, CostPlan

_MILLION = 10**6


@dataclass(frozen=True, slots=True)
class PricedPlace:
    """Where models may lie.

    Attributes:
        key: In JSON.
        provider: In `Providers`.
        label: For people.
        leaves: Whether the bytes leave the provider's region: the GPUs are another cloud's.
    """

    key: str
    provider: str
    label: str
    leaves: bool


R2, HUB = "r2", "hub"
PLACES = (
    PricedPlace(R2, "r2", "Cloudflare R2", leaves=True),
    PricedPlace("r2-infrequent-access", "r2_infrequent_access", "R2 Infrequent Access", leaves=True),
    PricedPlace("s3-same-region", "s3", "AWS S3, same region", leaves=False),
    PricedPlace("s3-other-cloud", "s3", "AWS S3, other cloud", leaves=True),
    PricedPlace("gcs-same-region", "gcs", "Google Cloud, same region", leaves=False),
    PricedPlace("gcs-other-cloud", "gcs", "Google Cloud, other cloud", leaves=True),
    PricedPlace(HUB, "hub", "Hugging Face Hub", leaves=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What is billed for.

    Attributes:
        stored_bytes: On average over the month.
        class_a: Writes and listings.
        class_b: Reads.
        read_bytes: That leave the bucket.
        updates: How often what is stored was replaced: it counts where an object is billed for some days at least.
    """

    stored_bytes: Fraction
    class_a: int
    class_b: int
    read_bytes: Fraction
    updates: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of a bill.

    Attributes:
        used: GB, GB-months, or requests.
        billed: The same, without what is free, rounded as the provider does; of requests, millions.
        dollars: For that.
    """

    used: float
    billed: float
    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A month at one place.

    Attributes:
        key: Of the place.
        label: For people.
        storage: In GB-months, of what the provider calls a GB.
        class_a: Writes and listings.
        class_b: Reads.
        retrieval: In GB.
        egress: In GB.
        gpu_dollars: For GPUs that wait for weights; None when an hour of them has no price.
    """

    key: str
    label: str
    storage: Charge
    class_a: Charge
    class_b: Charge
    retrieval: Charge
    egress: Charge
    gpu_dollars: float | None = None

    @property
    def provider_dollars(self) -> float:
        """What the provider asks for."""
        lines = (self.storage, self.class_a, self.class_b, self.retrieval, self.egress)
        return sum(line.dollars for line in lines)

    @property
    def dollars(self) -> float:
        """The sum, GPUs' time in it when it has a price."""
        return self.provider_dollars + (self.gpu_dollars or 0.0)


def bills(plan: CostPlan, prices: Prices) -> tuple[Bill, ...]:
    """The same month at all places."""
    return tuple(bill(plan, prices, place) for place in PLACES)


def bill(plan: CostPlan, prices: Prices, place: PricedPlace) -> Bill:
    """A month at one place."""
    month = charged(usage_of(plan), prices, place)
    second = plan.dollars_of_a_second
    if second is None:
        return month
    seconds = plan.start.hub_seconds if place.key == HUB else plan.start.seconds
    return replace(month, gpu_dollars=second * seconds)


def usage_of(plan: CostPlan) -> Usage:
    """What a plan comes to."""
    loads = exact(plan.launches_per_day) * plan.nodes * exact(plan.days)
    fetched = 1 - exact(plan.cached_share)
    contents, models = plan.contents, plan.models
    reads = sum(
        content.count
        * exact(
            reads_of_load(
                chunks=content.chunks,
                shards=content.shards,
                small_files=content.small_files,
                fetched_share=float(fetched),
            )
        )
        for content in contents
    )
    size = sum(content.count * content.loaded_bytes for content in contents)
    updates = exact(plan.updates_per_month)
    return Usage(
        stored_bytes=Fraction(plan.stored_bytes),
        class_a=math.ceil(updates * sum(content.count * content.writes for content in contents)),
        class_b=math.ceil(loads * reads / models),
        read_bytes=loads * fetched * size / models,
        updates=updates,
    )


def charged(usage: Usage, prices: Prices, place: PricedPlace) -> Bill:
    """What a provider charges for it; without the GPUs that wait."""
    provider: Provider = getattr(prices.providers, place.provider)
    stored = usage.stored_bytes
    if provider.storage_days_min:
        # Each version is billed for so many days, whenever the next one replaces it.
        stored *= max(Fraction(1), usage.updates * exact(provider.storage_days_min) / MONTH_DAYS)
    egress = usage.read_bytes if place.leaves else Fraction(0)
    return Bill(
        key=place.key,
        label=place.label,
        storage=_bytes(provider, stored, tiers_of(provider.storage_per_gb_month), free_gb=provider.storage_free_gb),
        class_a=_requests(provider, usage.class_a, provider.class_a_per_million, free=provider.class_a_free),
        class_b=_requests(provider, usage.class_b, provider.class_b_per_million, free=provider.class_b_free),
        retrieval=_bytes(provider, usage.read_bytes, tiers_of(provider.retrieval_per_gb)),
        egress=_bytes(provider, egress, tiers_of(provider.egress_per_gb), free_gb=provider.egress_free_gb),
    )


def _bytes(provider: Provider, amount: Fraction, tiers: Tiers, *, free_gb: float = 0) -> Charge:
    unit = provider.gb_bytes
    billed = billed_units(amount, unit=unit, free=exact(free_gb) * unit, rounded_up=provider.rounded_up)
    return Charge(float(amount / unit), float(billed), tiered(billed, tiers))


def _requests(provider: Provider, count: int, per_million: float, *, free: float) -> Charge:
    billed = billed_units(Fraction(count), unit=_MILLION, free=exact(free), rounded_up=provider.rounded_up)
    return Charge(count, float(billed), float(billed) * per_million)
