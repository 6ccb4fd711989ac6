"""Each provider's bill for a month, exact (a byte more than ten GB bills another), and R2 compared with the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from coldstream.operate.charts import FAINT, Axes, Page, PageSection, Panel, TableRow, style_axes
from coldstream.operate.cost.prices import Prices, Provider, Tiers, tiers_of
from coldstream.operate.cost.workload import MONTH_DAYS, CostPlan


@dataclass(frozen=True, slots=True)
class PricedPlace:
    """Where models may be stored; it has egress if the GPUs are outside the provider's region."""

    key: str
    provider: str
    label: str
    colour: str  # of its curve
    has_egress: bool = True


R2 = PricedPlace("r2", "r2", "Cloudflare R2", "#e08a2c")
HUB = PricedPlace("hub", "hub", "Hugging Face Hub", "#b8446a")
PLACES = (
    R2,
    PricedPlace("r2-infrequent-access", "r2_infrequent_access", "R2 Infrequent Access", "#a8861c"),
    PricedPlace("s3-same-region", "s3", "AWS S3, same region", "#2f6db3", has_egress=False),
    PricedPlace("s3-other-cloud", "s3", "AWS S3, other cloud", "#2f6db3"),
    PricedPlace("gcs-same-region", "gcs", "Google Cloud, same region", "#2f6f4a", has_egress=False),
    PricedPlace("gcs-other-cloud", "gcs", "Google Cloud, other cloud", "#2f6f4a"),
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


# Launches per day between which a break-even point is searched, on a logarithmic grid and then by bisection.
_LAUNCHES_MIN, _LAUNCHES_MAX = 0.01, 100_000.0
_STEPS = 71
_BISECTIONS = 30
# A smaller difference does not count.
_DOLLARS_MIN = 1e-6
_POINTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """When R2 costs less than another place: "always", "never", or "from" or "until" a number of launches."""

    against: str
    label: str
    when: str
    launches_per_day: float | None = None

    @property
    def text(self) -> str:
        if self.launches_per_day is None:
            return self.when
        return f"{self.when} {count_text(self.launches_per_day)} per day"


def break_evens(plan: CostPlan, prices: Prices) -> tuple[BreakEven, ...]:
    """Compares R2 with each other place, varying only the launches of the plan."""
    return tuple(_break_even(plan, prices, place) for place in PLACES if place != R2)


def _break_even(plan: CostPlan, prices: Prices, place: PricedPlace) -> BreakEven:
    def is_cheaper(launches: float) -> bool:
        varied = replace(plan, launches_per_day=launches)
        return bill(varied, prices, place).dollars - bill(varied, prices, R2).dollars > _DOLLARS_MIN

    grid = _logarithmic(_LAUNCHES_MIN, _LAUNCHES_MAX, _STEPS)
    cheaper = [is_cheaper(launches) for launches in grid]
    last = cheaper[-1]
    # The last change on the way up. Bills rise in steps: what holds from there on holds for more.
    change = next((index for index in range(_STEPS - 1, 0, -1) if cheaper[index - 1] != last), None)
    if change is None:
        return BreakEven(against=place.key, label=place.label, when="always" if last else "never")
    low, high = grid[change - 1], grid[change]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_cheaper(middle) == last else (middle, high)
    when = "from" if last else "until"
    return BreakEven(against=place.key, label=place.label, when=when, launches_per_day=high)


def _logarithmic(first: float, last: float, count: int) -> list[float]:
    return [first * (last / first) ** (step / (count - 1)) for step in range(count)]


def curve(plan: CostPlan, prices: Prices) -> dict[float, dict[str, float]]:
    """The month's dollars at each place, by its key, for rising numbers of launches per day.

    From at most one launch in ten days to at least ten times the plan's launches.
    """
    planned, points = plan.launches_per_day, {}
    for launches in sorted({*_logarithmic(min(0.1, planned / 10), max(1000.0, planned * 10), _POINTS), planned}):
        varied = replace(plan, launches_per_day=launches)
        points[launches] = {month.key: month.dollars for month in bills(varied, prices)}
    return points


def cost_table(bills: Sequence[Bill], evens: Sequence[BreakEven]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the bills as text; the GPUs' column is left out if their time has no price."""
    has_gpus = any(bill.gpu_dollars is not None for bill in bills)
    gpus = ["GPUS"] if has_gpus else []
    heading = ["PER MONTH", "STORAGE", "CLASS A", "CLASS B", "RETRIEVAL", "EGRESS", *gpus, "TOTAL", "R2 COSTS LESS"]
    less = {even.against: even.text for even in evens}
    rows = []
    for month in bills:
        amounts = [charge.dollars for charge in month.charges] + ([month.gpu_dollars or 0.0] if has_gpus else [])
        rows.append([month.label, *map(in_dollars, [*amounts, month.dollars]), less.get(month.key, "-")])
    return heading, rows


def in_dollars(amount: float) -> str:
    """An amount in dollars and cents."""
    # A tenth of a cent must not look like nothing.
    return "<$0.01" if 0 < amount < 0.005 else f"${amount:,.2f}"


def count_text(count: float) -> str:
    """A number of launches: whole, or in two digits if it is small."""
    return f"{count:,.0f}" if count >= 99.5 else f"{count:.2g}"


def cost_page(plan: CostPlan, prices: Prices, title: str, notes: Sequence[str]) -> Page:
    """The page: the chart with the planned number of launches marked, the table, and the notes below it."""
    points = curve(plan, prices)
    heading, rows = cost_table(bills(plan, prices), break_evens(plan, prices))
    lines = [TableRow(name, cells, less, at.colour) for at, (name, *cells, less) in zip(PLACES, rows, strict=True)]
    chart = Panel(4.8, lambda part: _draw(part.subplots(), points, plan.launches_per_day))
    sections = [PageSection(chart=chart, heading=heading, rows=lines), PageSection(text=notes)]
    return Page(title="Monthly cost", subtitle=title, sections=sections, caption=title)


def _draw(axes: Axes, points: Mapping[float, Mapping[str, float]], launches_per_day: float) -> None:
    launches, months = [*points], [*points.values()]
    axes.set_xscale("log")
    # Unlike a logarithmic axis it also has a place for $0.
    axes.set_yscale("symlog", linthresh=1, linscale=0.4)
    for place in sorted(PLACES, key=lambda place: months[-1][place.key], reverse=True):
        axes.plot(
            launches,
            [dollars[place.key] for dollars in months],
            color=place.colour,
            linestyle="--" if place.key.endswith("-other-cloud") else "-",
            linewidth=2.6 if place == R2 else 1.6,
            zorder=3 if place == R2 else 2,
            label=place.label,
        )
    axes.set_xlim(launches[0], launches[-1])
    axes.set_ylim(0, max(max(dollars.values()) for dollars in months) * 1.4 or 1.0)
    axes.axvline(launches_per_day, color=FAINT, linestyle="--", linewidth=1, zorder=1)
    axes.annotate(
        f"{count_text(launches_per_day)} per day", (launches_per_day, 1.0), xycoords=("data", "axes fraction"),
        xytext=(4, -4), textcoords="offset points", va="top", color=FAINT,
    )  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"${value:,.0f}")
    axes.set_xlabel("launches per day")
    axes.set_ylabel("US dollars per month")
    style_axes(axes, "y")
