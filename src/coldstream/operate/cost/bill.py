"""Each provider's bill for a month. Pure, and exact: one byte more than ten GB bills another GB."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from coldstream.operate.cost.prices import Prices, Provider, Tiers, tiers_of
from coldstream.operate.cost.workload import MONTH_DAYS, CostPlan


@dataclass(frozen=True, slots=True)
class PricedPlace:
    """Where models may be stored; it has egress if the GPUs are outside the provider's region."""

    key: str
    provider: str
    label: str
    has_egress: bool


R2 = PricedPlace("r2", "r2", "Cloudflare R2", has_egress=True)
HUB = PricedPlace("hub", "hub", "Hugging Face Hub", has_egress=True)
PLACES = (
    R2,
    PricedPlace("r2-infrequent-access", "r2_infrequent_access", "R2 Infrequent Access", has_egress=True),
    PricedPlace("s3-same-region", "s3", "AWS S3, same region", has_egress=False),
    PricedPlace("s3-other-cloud", "s3", "AWS S3, other cloud", has_egress=True),
    PricedPlace("gcs-same-region", "gcs", "Google Cloud, same region", has_egress=False),
    PricedPlace("gcs-other-cloud", "gcs", "Google Cloud, other cloud", has_egress=True),
    HUB,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The usage of a month: average storage, writes and listings (class A), reads (class B)."""

    stored_bytes: Fraction
    class_a: int
    class_b: int
    read_bytes: Fraction = Fraction(0)
    # How often the stored data was replaced, which matters where objects are billed for a minimum of days.
    updates: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of a bill: GB-months, GB or requests, and what is billed of them, for requests in millions."""

    used: float
    billed: float
    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A month at one place, with `gpu_dollars` for GPUs that wait for weights; None if they have no price."""

    key: str
    label: str
    storage: Charge
    class_a: Charge
    class_b: Charge
    retrieval: Charge
    egress: Charge
    gpu_dollars: float | None = None

    @property
    def charges(self) -> tuple[Charge, ...]:
        return self.storage, self.class_a, self.class_b, self.retrieval, self.egress

    @property
    def provider_dollars(self) -> float:
        return sum(charge.dollars for charge in self.charges)

    @property
    def dollars(self) -> float:
        return self.provider_dollars + (self.gpu_dollars or 0.0)


def bills(plan: CostPlan, prices: Prices) -> tuple[Bill, ...]:
    """The month at each of `PLACES`."""
    return tuple(bill(plan, prices, place) for place in PLACES)


def bill(plan: CostPlan, prices: Prices, place: PricedPlace) -> Bill:
    """The month at one place."""
    month = charged(usage_of(plan), prices, place)
    if (second := plan.dollars_of_a_second) is None:
        return month
    return replace(month, gpu_dollars=second * (plan.start.hub_seconds if place == HUB else plan.start.seconds))


def usage_of(plan: CostPlan) -> Usage:
    """The usage that a plan adds up to."""
    loads = exact(plan.launches_per_day) * plan.nodes * exact(plan.days)
    fetched, updates = 1 - exact(plan.cached_share), exact(plan.updates_per_month)
    reads = sum(content.count * content.reads(fetched) for content in plan.contents)
    size = sum(content.count * content.loaded_bytes for content in plan.contents)
    return Usage(
        stored_bytes=Fraction(plan.stored_bytes),
        class_a=math.ceil(updates * sum(content.count * content.writes for content in plan.contents)),
        class_b=math.ceil(loads * reads / plan.models),
        read_bytes=loads * fetched * size / plan.models,
        updates=updates,
    )


def charged(usage: Usage, prices: Prices, place: PricedPlace) -> Bill:
    """The provider's charges, without the GPUs that wait."""
    provider: Provider = getattr(prices.providers, place.provider)
    stored = usage.stored_bytes
    if provider.storage_days_min:
        # Each version is billed for so many days, however soon the next one replaces it.
        stored *= max(Fraction(1), usage.updates * exact(provider.storage_days_min) / MONTH_DAYS)
    egress = usage.read_bytes if place.has_egress else Fraction(0)
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
    billed = billed_units(Fraction(count), unit=10**6, free=exact(free), rounded_up=provider.rounded_up)
    return Charge(count, float(billed), float(billed) * per_million)


def exact(number: float) -> Fraction:
    """The number as it was written, not the nearest binary float: 0.1 launches a day are three in thirty days."""
    return Fraction(str(number))


def billed_units(amount: Fraction, *, unit: Fraction | int, free: Fraction | int, rounded_up: bool) -> Fraction:
    """Converts bytes or requests to billed units, rounded up for R2 (docs r2/pricing, "billable unit rounding")."""
    units = max(Fraction(0), amount - free) / unit
    return Fraction(math.ceil(units)) if rounded_up else units


def tiered(units: Fraction, tiers: Tiers) -> float:
    """US dollars for these units; each tier's price applies to the units within it."""
    dollars, below = 0.0, Fraction(0)
    for tier in tiers:
        end = units if tier.up_to_gb is None else min(units, exact(tier.up_to_gb))
        dollars += float(max(Fraction(0), end - below)) * tier.dollars
        below = max(below, end)
    return dollars
