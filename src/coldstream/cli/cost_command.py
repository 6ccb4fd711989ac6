"""`coldstream cost`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from coldstream.cli.groups import FILE, Verb
from coldstream.cli.output import table_text
from coldstream.cli.session import State, check_chart_files
from coldstream.cli.shared_options import SIZE, chart_options
from coldstream.errors import UsageError
from coldstream.operate.charts import png
from coldstream.operate.cost.bill import Bill, bills, usage_of
from coldstream.operate.cost.break_even import BreakEven, break_evens, cost_table, curve, dollars_text, html, panels
from coldstream.operate.cost.prices import Prices, overridden, prices
from coldstream.operate.cost.usage import Actual, read_actual
from coldstream.operate.cost.workload import CostPlan, alike, make_plan, read_contents
from coldstream.telemetry.metrics.textfile import cost_file
from coldstream.tune.gpus import Gpus, find_gpu, parse_gpus
from coldstream.units import format_bytes, format_seconds, plural


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
@click.option(
    "--launches-per-day",
    metavar="N",
    type=float,
    default=10,
    help="Launches per day, of all models together.",
)
@click.option("--nodes", metavar="N", type=int, default=1, help="Machines per launch.")
@click.option("--days", metavar="N", type=float, default=30, help="Days per month with launches.")
@click.option(
    "--cache-hits",
    metavar="N",
    type=float,
    default=0,
    help="Share of starts with the model on the local disk, 0 to 1.",
)
@click.option(
    "--updates-per-month",
    metavar="N",
    type=float,
    default=1,
    help="Uploads of each model per month.",
)
@click.option("--gpus", metavar="GPU[:N]", help="GPUs per machine, such as L4 or A100-80GB:4, which wait for weights.")
@click.option("--gpu-dollars-per-hour", metavar="USD", type=float, help="Price of one GPU.  [default: from --prices]")
@click.option(
    "--load-seconds",
    metavar="SECONDS",
    type=float,
    help="Time to load from the bucket.  [default: predicted as by tune]",
)
@click.option(
    "--hub-seconds",
    metavar="SECONDS",
    type=float,
    help="Time to start from the Hub.  [default: 200 MB/s, then the disk]",
)
@click.option("--prices", "prices_file", type=FILE, help="JSON file of prices that replace the built-in ones.")
@click.option("--actual", is_flag=True, help="Show the usage that Cloudflare measured, and a forecast of the month.")
@click.option("--budget", type=float, metavar="USD", help="Exit with 1 if the month in R2 will cost more.")
@click.option("--metrics-file", type=FILE, help="Write cost and budget to this .prom file, for Prometheus.")
@chart_options
def command(
    state: State,
    prices_file: Path | None,
    actual: bool,
    budget: float | None,
    metrics_file: Path | None,
    png_file: Path | None,
    html_file: Path | None,
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
        if png_file or html_file or workload["names"] or workload["size"] is not None:
            raise UsageError(
                "--actual is what was counted: it goes with no model, size or chart", hint="see: coldstream cost --help"
            )
        month = _actual(state, prices_used, budget)
    else:
        month = _planned(state, prices_used, budget, png_file, html_file, workload)
    if metrics_file is not None and (warning := cost_file(metrics_file, month, budget)):
        state.say(f"warning: {warning}")
    _hold(state, budget, month)


def _planned(
    state: State,
    prices: Prices,
    budget: float | None,
    png_file: Path | None,
    html_file: Path | None,
    workload: dict[str, Any],
) -> float:
    """Shows the plan; the month in R2, in dollars."""
    check_chart_files(png_file, html_file)
    plan = _plan(state, prices, workload)
    charged, evens = bills(plan, prices), break_evens(plan, prices)
    title = _title(plan)
    if png_file or html_file:
        points, launches, notes = curve(plan, prices), plan.launches_per_day, _notes(plan, charged, prices)
        state.write_charts(
            html_file,
            png_file,
            html=lambda: html(points, launches, title, charged, evens, notes),
            png=lambda: png(panels(points, launches), title),
        )
    month = charged[0].dollars
    document = {
        "prices_dated": prices.dated,
        "plan": _plan_document(plan),
        "bills": [_bill_document(bill) for bill in charged],
        "break_evens": [asdict(even) for even in evens],
        "budget": _budget_document(budget, month),
    }
    state.show(document, _text(plan, prices, charged, evens, title))
    return month


def _plan(state: State, prices: Prices, workload: dict[str, Any]) -> CostPlan:
    names, count, size = workload["names"], workload["count"], workload["size"]
    if size is None and count is not None:
        raise UsageError("--models says how many, and not how large", hint="for example --models 10 --size 16GB")
    if size is not None and names:
        raise UsageError("--size and --model say two things", hint="leave out one of them")
    for name in prices.gpus.dollars_per_hour:
        find_gpu(name)
    gpus: Gpus | None = parse_gpus(workload["gpus"]) if workload["gpus"] else None

    def made(contents: Sequence[Any], **more: Any) -> CostPlan:
        return make_plan(
            contents,
            prices,
            launches_per_day=workload["launches_per_day"],
            nodes=workload["nodes"],
            days=workload["days"],
            cached_share=workload["cache_hits"],
            updates_per_month=workload["updates_per_month"],
            gpus=gpus,
            gpu_dollars_per_hour=workload["gpu_dollars_per_hour"],
            load_seconds_override=workload["load_seconds"],
            hub_seconds_override=workload["hub_seconds"],
            **more,
        )

    if size is not None:
        return made([alike(1 if count is None else count, size)])
    # What makes no sense is said before the bucket is looked at.
    made([alike(1, 1)])
    contents, stored, objects = read_contents(state.open_store(8), names)
    return made(contents, stored_bytes=stored, objects=objects)


def _actual(state: State, prices: Prices, budget: float | None) -> float:
    """Shows what was counted; what the month will come to, in dollars."""
    settings = state.settings()
    usage = read_actual(settings, prices, retry=state.new_retry(settings))
    month = usage.projected.dollars
    document = asdict(usage) | {
        "began": usage.began.isoformat(),
        "now": usage.now.isoformat(),
        "ends": usage.ends.isoformat(),
        "so_far": _bill_document(usage.so_far),
        "projected": _bill_document(usage.projected),
        "prices_dated": prices.dated,
        "budget": _budget_document(budget, month),
    }
    state.show(document, _actual_text(usage))
    return month


def _hold(state: State, budget: float | None, month: float) -> None:
    """Ends with 1 when the budget will not do. The result was shown already, so nothing is added to it."""
    if budget is not None and month > budget:
        state.explain(f"the month in R2 will cost ${month:,.2f}, and the budget is ${budget:,.2f}", None)
        raise SystemExit(1)


def _title(plan: CostPlan) -> str:
    what = plural(plan.models, "model")
    if plan.models == 1 and plan.objects is not None:
        what = plan.contents[0].name
    nodes = "" if plan.nodes == 1 else f" of {plan.nodes} nodes"
    days = f" on {plan.days:g} days" if plan.days != 30 else ""
    return f"{what}, {format_bytes(plan.stored_bytes)}, {plan.launches_per_day:g} launches per day{nodes}{days}"


def _text(plan: CostPlan, prices: Prices, bills: Sequence[Bill], evens: Sequence[BreakEven], title: str) -> str:
    heading, rows = cost_table(bills, evens)
    table = table_text(_right([heading, *rows], texts=(0, len(heading) - 1)))
    return "\n".join([title, table, "", *_notes(plan, bills, prices)])


def _right(rows: list[list[str]], texts: tuple[int, ...] = (0,)) -> list[list[str]]:
    """Numbers end below each other; the columns in `texts` are none."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell if index in texts else cell.rjust(widths[index]) for index, cell in enumerate(row)] for row in rows]


def _notes(plan: CostPlan, bills: Sequence[Bill], prices: Prices) -> list[str]:
    """What the sums are made of."""
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
            f"{format_seconds(start.hub_seconds)}; a second less of every start saves {dollars_text(second)} a month"
        )
    lines.append(f"list prices of {prices.dated}")
    return lines


def _actual_text(usage: Actual) -> str:
    so_far, whole = usage.so_far, usage.projected
    rows = [
        ["", "SO FAR", "", "THE MONTH", ""],
        [
            "storage, mean of the days' most",
            format_bytes(usage.average_bytes),
            dollars_text(so_far.storage.dollars),
            format_bytes(usage.projected_bytes),
            dollars_text(whole.storage.dollars),
        ],
        [
            "class A",
            f"{usage.class_a:,}",
            dollars_text(so_far.class_a.dollars),
            f"{usage.projected_class_a:,}",
            dollars_text(whole.class_a.dollars),
        ],
        [
            "class B",
            f"{usage.class_b:,}",
            dollars_text(so_far.class_b.dollars),
            f"{usage.projected_class_b:,}",
            dollars_text(whole.class_b.dollars),
        ],
        ["sum", "", dollars_text(so_far.dollars), "", dollars_text(whole.dollars)],
    ]
    operations = ", ".join(f"{name} {count:,}" for name, count in usage.operations.items())
    head = (
        f"{usage.bucket} at Cloudflare R2, {usage.began:%Y-%m-%d} to {usage.now:%Y-%m-%d %H:%M} UTC   "
        f"now {format_bytes(usage.stored_bytes)} in {plural(usage.objects, 'object')}"
    )
    return "\n".join(
        [
            head,
            table_text(_right(rows)),
            "",
            f"counted: {operations or 'nothing'}",
            "the free tier is the account's: other buckets in it use it too",
        ]
    )


def _plan_document(plan: CostPlan) -> dict[str, Any]:
    usage = usage_of(plan)
    return asdict(plan) | {
        "loads": plan.loads,
        "load_bytes": plan.load_bytes,
        "class_a": usage.class_a,
        "class_b": usage.class_b,
        "dollars_of_a_second": plan.dollars_of_a_second,
    }


def _bill_document(bill: Bill) -> dict[str, Any]:
    return asdict(bill) | {"provider_dollars": bill.provider_dollars, "dollars": bill.dollars}


def _budget_document(budget: float | None, month: float) -> dict[str, Any] | None:
    return None if budget is None else {"dollars": budget, "month": month, "exceeded": month > budget}
