"""`coldstream load`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from coldstream.cli.session import EXIT_CODES, Size, State, common_options, metrics_options

if TYPE_CHECKING:
    from coldstream.loading.load_report import LoadReport


@click.command(epilog=EXIT_CODES)
@click.argument("uri", metavar="URI")
@click.option(
    "--device", default="cpu", show_default=True, help="Where the tensors go, as torch names it: cuda, cuda:1."
)
@click.option(
    "--connections",
    type=click.IntRange(1, 1024),
    default=64,
    show_default=True,
    help="Most connections at once; how many are used is found out.",
)
@click.option("--memory", type=Size(), help="Most memory for data on its way.  [default: what there is]")
@click.option("--workers", type=click.IntRange(1, 64), help="Fetching processes.  [default: one per core, at most 8]")
@click.option(
    "--via",
    type=click.Choice(["auto", "cdn", "s3"]),
    default="auto",
    show_default=True,
    help="Weights through the CDN in front of the bucket, or not; auto: if there is one.  [env: R2_CDN_DOMAIN]",
)
@click.option("--no-cache", is_flag=True, help="Neither read nor fill the local cache.")
@click.option("--no-verify", is_flag=True, help="Do not compare the chunks with the manifest's hashes.")
@click.option("--in-order", is_flag=True, help="Tensors in the order of the files, not as they arrive.")
@metrics_options
@common_options
def command(
    state: State,
    uri: str,
    device: str,
    connections: int,
    memory: int | None,
    workers: int | None,
    via: str,
    no_cache: bool,
    no_verify: bool,
    in_order: bool,
) -> None:
    """Stream a model into memory, verified, and say how fast and what set the pace.

    \b
    coldstream load Qwen/Qwen3-8B                       from the configured bucket
    coldstream load s3://bucket/org/model --device cuda
    coldstream load Qwen/Qwen3-8B --via cdn             through R2_CDN_DOMAIN, the rest from the bucket
    coldstream load https://cdn.example.com/org/model
    coldstream load hf://Qwen/Qwen3-8B@main
    coldstream load ./folder

    Every tensor is received and let go of again: this measures the way into memory, and fills the local cache.
    """
    from coldstream.cli.metering import metered
    from coldstream.loading.options import Options
    from coldstream.loading.streaming import Load

    settings = state.settings()
    with metered(state, settings, uri) as found, _bar(state) as on_progress:
        options = Options(
            device=device,
            framework="buffer" if device == "cpu" else "pt",
            connections=connections,
            memory=memory,
            workers=workers,
            verify=not no_verify,
            via=via,
            cache=not no_cache,
            in_order=in_order,
            metrics=False,
            settings=settings,
            on_progress=on_progress,
        )
        with Load(uri, options) as loading:
            found.meter.follow(lambda: [loading])
            for _ in loading:
                pass
            loading.wait_for_cache(_patience(state))
            report = loading.report
    assert report is not None
    state.show(asdict(report), _text(report))


@contextmanager
def _bar(state: State) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere: a load is one thing, and its result is one line."""
    import sys

    if state.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bars = Progress(
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
    with bars:
        task = bars.add_task("load", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _patience(state: State) -> Callable[[], None]:
    """Says once, after a second, what is being waited for."""
    import time

    due = time.monotonic() + 1.0
    said = False

    def on_wait() -> None:
        nonlocal said
        if not said and time.monotonic() > due:
            said = True
            state.say("loaded; writing the rest of the local cache")

    return on_wait


def _text(report: LoadReport) -> str:
    from coldstream.units import format_bytes, format_rate, format_seconds, plural

    parts = [
        f"{format_bytes(report.bytes)} in {format_seconds(report.seconds)}",
        format_rate(report.bytes, report.seconds),
        "verified" if report.verified else "unverified",
        plural(report.tensors, "tensor"),
        plural(report.chunks, "chunk"),
        plural(report.connections, "connection"),
        f"{report.hedges} hedged",
        f"{report.retries} retried",
        f"{report.cpu_seconds_per_gib:.2f} CPU-s/GiB",
    ]
    # Two lines: one would be wider than most terminals.
    lines = ["   ".join(parts[:5]), "   ".join(parts[5:]), report.limited_by]
    lines += [f"not loaded: {path} ({why})" for path, why in report.left_out.items()]
    if report.offline:
        lines.append("the origin did not answer: loaded from the local cache")
    elif report.cache_bytes and report.received_bytes:
        lines.append(f"{format_bytes(report.cache_bytes)} of it came from the local cache")
    elif report.cache_bytes:
        lines.append("all of it came from this machine")
    if report.cdn is not None and (report.cdn.requests or report.received_bytes):
        lines.append(report.cdn.summary)
    if report.grown_bytes:
        lines.append(
            f"the memory limit was passed by {format_bytes(report.grown_bytes)}: tensors were larger, or were kept"
        )
    if report.cached == "partly":
        lines.append("the local cache got a part of it; the next load continues")
    elif report.cached not in {"off", "complete", "written"}:
        lines.append(f"the local cache was not written: {report.cached}")
    return "\n".join(lines)
