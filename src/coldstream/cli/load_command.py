"""`coldstream load`."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import click

from coldstream.cli.live import TransferBar, live_lines
from coldstream.cli.session import State
from coldstream.cli.verbs import Verb, load_options, metrics_options
from coldstream.engine.load_statistics import LoadReport
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.units import format_bytes, format_rate, format_seconds, plural


@click.command(cls=Verb)
@click.argument("uri", metavar="MODEL")
@click.option("--device", default="cpu", help="Torch device to load onto, such as cuda or cuda:1.")
@click.option("--in-order", is_flag=True, help="Return tensors in file order instead of arrival order.")
@load_options
@metrics_options
def command(state: State, uri: str, device: str, in_order: bool, **load: Any) -> None:
    """Stream a model into memory and report speed and bottleneck.

    \b
    coldstream load Qwen/Qwen3-8B               from the configured bucket
    coldstream load s3://bucket/org/model --device cuda
    coldstream load Qwen/Qwen3-8B --via cdn     through R2_CDN_DOMAIN
    coldstream load https://cdn.example.com/org/model
    coldstream load hf://Qwen/Qwen3-8B@main
    coldstream load ./folder

    Each tensor is received, verified and released: this measures the path into memory and fills the local cache.
    """
    settings = state.settings()
    bar = TransferBar("load")
    due = 0.0

    def on_wait() -> None:
        nonlocal due
        due = due or time.monotonic() + 1.0
        if time.monotonic() > due:
            due = math.inf
            state.say("loaded; writing the rest of the local cache")

    with state.measured(settings, uri) as measured, live_lines(state, bar.text):
        options = Options(
            device=device,
            framework="buffer" if device == "cpu" else "pt",
            in_order=in_order,
            metrics=False,
            settings=settings,
            on_progress=bar.move_to,
            **load,
        )
        with Load(uri, options) as loading:
            measured.meter.follow(lambda: [loading])
            for _ in loading:
                pass
            loading.wait_for_cache(on_wait)
            report = loading.report
    assert report is not None
    state.show(asdict(report), _text(report))


def _text(report: LoadReport) -> str:
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
    # One line would be wider than most terminals.
    lines = ["   ".join(parts[:5]), "   ".join(parts[5:]), report.limited_by]
    lines += [f"not loaded: {path} ({why})" for path, why in report.left_out.items()]
    if report.offline:
        lines.append("the bucket or server was unreachable: loaded from the local cache")
    elif report.cache_bytes and report.received_bytes:
        lines.append(f"{format_bytes(report.cache_bytes)} of it came from the local cache")
    elif report.cache_bytes:
        lines.append("all of it came from this machine")
    if report.cdn is not None and (report.cdn.requests or report.received_bytes):
        lines.append(report.cdn.summary)
    if report.grown_bytes:
        why = "tensors were larger, or kept by the caller"
        lines.append(f"the memory limit was exceeded by {format_bytes(report.grown_bytes)}: {why}")
    if report.cached == "partly":
        lines.append("the local cache holds a part of it; the next load continues")
    elif report.cached not in {"off", "complete", "written"}:
        lines.append(f"the local cache was not written: {report.cached}")
    return "\n".join(lines)
