"""`coldstream cost`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from coldstream.cli.output import attributes, table_text
from coldstream.cli.session import State
from coldstream.cli.verbs import FILE, SIZE, F, Verb, chart_options
from coldstream.errors import UsageError
from coldstream.operate.cost.bill import Bill, bills, break_evens, cost_page, cost_table, in_dollars, usage_of
from coldstream.operate.cost.prices import Prices, overridden, prices
from coldstream.operate.cost.usage import read_actual
from coldstream.operate.cost.workload import CostPlan, alike, make_plan, read_contents
from coldstream.telemetry.metrics.textfile import cost_file
from coldstream.tune.gpus import find_gpu, parse_gpus
from coldstream.units import format_bytes, format_seconds, plural


def _number(name: str, field: str, default: float | None = None, **attributes: Any) -> Callable[[F], F]:
    """An option for a parameter of `make_plan`."""
    return click.option(name, field, type=float, default=default, **{"metavar": "N", **attributes})


@click.command(cls=Verb)
@click.option(
    "--model", "names", multiple=True, metavar="MODEL", help="A model. Repeatable.  [default: all in the bucket]"
)
@click.option(
    "--models",
    "count",
    metavar="N",
    type=int,
    help="Number of models of --size, instead of those in the bucket.  [default: 1]",
)
@click.option("--size", type=SIZE, help="Size of each model, such as 16GB, instead of those in the bucket.")
@_number("--launches-per-day", "launches_per_day", 10, help="Launches per day, of all models together.")
@click.option("--nodes", metavar="N", type=int, default=1, help="Machines per launch.")
@_number("--days", "days", 30, help="Days per month with launches.")
@_number("--cache-hits", "cached_share", 0, help="Share of starts with the model on the local disk, 0 to 1.")
@_number("--updates-per-month", "updates_per_month", 1, help="Uploads of each model per month.")
@click.option("--gpus", metavar="GPU[:N]", help="GPUs per machine, such as L4 or A100-80GB:4, which wait for weights.")
@_number(
    "--gpu-dollars-per-hour", "gpu_dollars_per_hour", metavar="USD", help="Price of one GPU.  [default: from --prices]"
)
@_number(
    "--load-seconds",
    "load_seconds_override",
    metavar="SECONDS",
    help="Time to load from the bucket.  [default: predicted as by tune]",
)
@_number(
    "--hub-seconds",
    "hub_seconds_override",
    metavar="SECONDS",
    help="Time to start from the Hub.  [default: 200 MB/s, then the disk]",
)
@click.option("--prices", "prices_file", type=FILE, help="JSON file of prices that replace the built-in ones.")
@click.option("--actual", is_flag=True, help="Show the usage that Cloudflare measured, and a forecast of the month.")
@click.option("--budget", type=float, metavar="USD", help="Exit with 1 if the month in R2 will cost more.")
@click.option("--metrics-file", type=FILE, help="Write cost and budget to this .prom file, for Prometheus.")
@chart_options
def command(
    state: State,
    names: tuple[str, ...],
    count: int | None,
    size: int | None,
    prices_file: Path | None,
    actual: bool,
    budget: float | None,
    metrics_file: Path | None,
    **workload: Any,
) -> None:
    """Estimate the monthly cost, compared with S3, GCS and the Hub.

    \b
    coldstream cost                              all models in the bucket
    coldstream cost --model Qwen/Qwen3-8B --launches-per-day 100 --gpus L4
    coldstream cost --models 10 --size 16GB      without a bucket
    coldstream cost --actual --budget 25         measured by Cloudflare; for cron
    coldstream cost --prices mine.json           with your own prices

    Uses list prices; docs/cost.md gives their date and sources. If the GPU has a price, the sum includes the time that
    GPUs wait for weights. --actual needs CLOUDFLARE_API_TOKEN.
    """
    if budget is not None and not 0 <= budget < 1e12:
        raise UsageError(f"{budget:g} is not a valid budget", hint="US dollars a month, such as --budget 25")
    prices_used = overridden(prices_file) if prices_file else prices()
    if actual:
        if state.charts or names or size is not None:
            message = "--actual is what was counted: it goes with no model, size or chart"
            raise UsageError(message, hint="see: coldstream cost --help")
        month, document, text = _actual(state, prices_used)
    else:
        state.check_charts()
        plan = _plan(state, prices_used, names, count, size, workload)
        charged, evens = bills(plan, prices_used), break_evens(plan, prices_used)
        title, notes, month = _title(plan), _notes(plan, charged, prices_used), charged[0].dollars
        if state.charts:
            state.write_charts(cost_page(plan, prices_used, title, notes))
        heading, rows = cost_table(charged, evens)
        table = table_text([heading, *rows], numbers=range(1, len(heading) - 1))
        text = "\n".join([title, table, "", *notes])
        document = {
            "plan": asdict(plan)
            | attributes(plan, "loads", "load_bytes", "dollars_of_a_second")
            | attributes(usage_of(plan), "class_a", "class_b"),
            "bills": [_bill_document(bill) for bill in charged],
            "break_evens": [asdict(even) for even in evens],
        }
    is_exceeded = budget is not None and month > budget
    terms = None if budget is None else {"dollars": budget, "month": month, "exceeded": is_exceeded}
    state.show({**document, "prices_dated": prices_used.dated, "budget": terms}, text)
    if metrics_file is not None and (warning := cost_file(metrics_file, month, budget)):
        state.say(f"warning: {warning}")
    if is_exceeded:
        state.explain(f"the month in R2 will cost ${month:,.2f}, and the budget is ${budget:,.2f}", None)
        raise SystemExit(1)


def _plan(
    state: State, prices: Prices, names: Sequence[str], count: int | None, size: int | None, workload: dict[str, Any]
) -> CostPlan:
    if size is None and count is not None:
        raise UsageError("--models says how many, and not how large", hint="for example --models 10 --size 16GB")
    if size is not None and names:
        raise UsageError("--size and --model say two things", hint="leave out one of them")
    for name in prices.gpus.dollars_per_hour:
        find_gpu(name)
    workload["gpus"] = parse_gpus(workload["gpus"]) if workload["gpus"] else None
    if size is not None:
        return make_plan([alike(1 if count is None else count, size)], prices, **workload)
    # Invalid numbers are an error before the bucket is read.
    make_plan([alike(1, 1)], prices, **workload)
    contents, stored, objects = read_contents(state.open_store(8), names)
    return make_plan(contents, prices, stored_bytes=stored, objects=objects, **workload)


def _actual(state: State, prices: Prices) -> tuple[float, dict[str, Any], str]:
    """What the month will cost, in dollars, and the measured usage as JSON and as text."""
    settings = state.settings()
    usage = read_actual(settings, prices, retry=state.new_retry(settings))
    so_far, projected = usage.so_far, usage.projected
    times = {name: moment.isoformat() for name, moment in attributes(usage, "began", "now", "ends").items()}
    document = {**asdict(usage), **times, "so_far": _bill_document(so_far), "projected": _bill_document(projected)}
    rows = [["", "SO FAR", "", "THE MONTH", ""]]
    sizes = format_bytes(usage.average_bytes), format_bytes(usage.projected_bytes)
    for label, amounts, charges in (
        ("storage, mean of the days' most", sizes, (so_far.storage, projected.storage)),
        ("class A", (f"{usage.class_a:,}", f"{usage.projected_class_a:,}"), (so_far.class_a, projected.class_a)),
        ("class B", (f"{usage.class_b:,}", f"{usage.projected_class_b:,}"), (so_far.class_b, projected.class_b)),
        ("sum", ("", ""), (so_far, projected)),
    ):
        first, second = (in_dollars(charge.dollars) for charge in charges)
        rows.append([label, amounts[0], first, amounts[1], second])
    operations = ", ".join(f"{name} {number:,}" for name, number in usage.operations.items())
    head = (
        f"{usage.bucket} at Cloudflare R2, {usage.began:%Y-%m-%d} to {usage.now:%Y-%m-%d %H:%M} UTC   "
        f"now {format_bytes(usage.stored_bytes)} in {plural(usage.objects, 'object')}"
    )
    counted = f"counted: {operations or 'nothing'}"
    shared = "the free tier is the account's: other buckets in it use it too"
    return projected.dollars, document, "\n".join([head, table_text(rows, numbers=range(1, 5)), "", counted, shared])


def _title(plan: CostPlan) -> str:
    what = plural(plan.models, "model")
    if plan.models == 1 and plan.objects is not None:
        what = plan.contents[0].name
    nodes = "" if plan.nodes == 1 else f" of {plan.nodes} nodes"
    days = f" on {plan.days:g} days" if plan.days != 30 else ""
    return f"{what}, {format_bytes(plan.stored_bytes)}, {plan.launches_per_day:g} launches per day{nodes}{days}"


def _notes(plan: CostPlan, bills: Sequence[Bill], prices: Prices) -> list[str]:
    usage, r2, start = usage_of(plan), bills[0], plan.start
    loads = plan.loads
    loaded = (
        f"{loads:,.6g} loads of {format_bytes(plan.load_bytes)}, "
        f"{usage.class_b / loads:,.0f} reads each: {usage.class_b:,} in the month; {usage.class_a:,} writes"
    )
    billed = (
        f"R2 bills {r2.storage.billed:,.0f} GB-months of {r2.storage.used:,.4g}, "
        f"{r2.class_a.billed:,.0f} million class A, {r2.class_b.billed:,.0f} million class B, after what is free"
    )
    lines = [loaded, billed]
    second = plan.dollars_of_a_second
    if second is None and start.gpu:
        lines.append(f"{start.gpu} has no price here, so the time it waits is left out: add --gpu-dollars-per-hour")
    elif second is None:
        lines.append("the time that GPUs wait for weights is left out: name them, such as --gpus L4")
    else:
        lines.append(
            f"a start waits {format_seconds(start.seconds)} for its weights, from the Hub "
            f"{format_seconds(start.hub_seconds)}; a second less of every start saves {in_dollars(second)} a month"
        )
    lines.append(f"list prices of {prices.dated}")
    return lines


def _bill_document(bill: Bill) -> dict[str, Any]:
    return asdict(bill) | attributes(bill, "provider_dollars", "dollars")
