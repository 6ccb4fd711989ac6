"""`coldstream bench`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from coldstream.cli.live import bar_text, live_lines
from coldstream.cli.output import coloured, table_text
from coldstream.cli.session import State
from coldstream.cli.verbs import SIZE, Verb, chart_options, count
from coldstream.errors import PartialError, UsageError
from coldstream.operate.bench.comparing import BenchStep, compare
from coldstream.operate.bench.contestant import OPTIONAL, OURS, BenchPlan, find_target, select_loaders
from coldstream.operate.bench.result import COLUMNS, BenchResult, BenchRow, bench_page, seconds_text, table_cells
from coldstream.units import format_bytes, format_seconds, plural


@click.command(cls=Verb)
@click.argument("uri", metavar="MODEL")
@click.argument("vllm_arguments", metavar="[-- VLLM FLAGS]", nargs=-1, type=click.UNPROCESSED)
@click.option("--runs", type=count(1, 100), default=3, help="Timed runs of each loader.")
@click.option("--only", metavar="NAME", multiple=True, help="Run only this loader. Repeatable.  [default: all]")
@click.option("--skip", metavar="NAME", multiple=True, help="Skip this loader. Repeatable.")
@click.option("--with", "more", metavar="NAME[,NAME]", help="Also run these optional loaders.")
@click.option("--all", "everything", is_flag=True, help="Also run all optional loaders.")
@click.option("--device", default="cpu", help="Device to load onto: cpu, cuda or cuda:1.")
@click.option(
    "--connections",
    type=count(1, 1024),
    default=64,
    help="Maximum parallel connections, for loaders with such a setting except Run:ai's.",
)
@click.option("--memory", "memory_limit", type=SIZE, help="Memory limit of coldstream for data in flight.")
@click.option(
    "--timeout", "timeout_seconds", metavar="SECONDS", type=click.FloatRange(1), default=900, help="Limit for each run."
)
@click.option(
    "--drop-caches/--no-drop-caches",
    "drop_caches",
    default=True,
    help="Empty the page cache before each run, if permitted.",
)
@click.option(
    "--python", "interpreters", metavar="PATH", multiple=True, help="A Python with loaders to compare. Repeatable."
)
@click.option("--vllm", "starts", is_flag=True, help="Also compare whole starts of vLLM, up to the first token.")
@click.option("--seed", metavar="N", type=int, default=0, help="Random seed for the order of the runs.")
@chart_options
def command(
    state: State,
    uri: str,
    vllm_arguments: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    more: str | None,
    everything: bool,
    device: str,
    starts: bool,
    **plan: Any,
) -> int:
    """Compare coldstream with other loaders on this machine.

    \b
    coldstream bench Qwen/Qwen3-8B
    coldstream bench Qwen/Qwen3-8B --device cuda --all --html bench.html
    coldstream bench Qwen/Qwen3-8B --vllm -- --max-model-len 8192
    coldstream bench Qwen/Qwen3-8B --only coldstream --only runai-tuned --runs 5

    Loaders: coldstream, coldstream-warm, runai, runai-tuned, vllm-default; optional: boto3, s3fs, obstore,
    rclone-mount, rclone-mount-full. An untimed run of each first checks that all load the same bytes; timed runs are
    interleaved. Loaders that are not installed are skipped. docs/bench.md describes what is measured, and how.
    """
    if vllm_arguments and not starts:
        raise UsageError("arguments after `--` are for vLLM", hint="add --vllm")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"{device!r} is not a device", hint="use cpu, cuda or cuda:1")
    if sys.platform != "linux":
        raise UsageError("bench only runs on Linux: it reads /proc")
    named = [*OPTIONAL] if everything else [name.strip() for name in (more or "").split(",") if name.strip()]
    loaders = select_loaders(only, skip, named)
    state.check_charts()
    settings = state.settings()
    target, flags = find_target(uri, settings), vllm_arguments if starts else None
    options = BenchPlan(target=target, settings=settings, loaders=loaders, device=device, vllm_flags=flags, **plan)
    with _progress(state) as on_step:
        result = compare(options, on_step)
    state.write_charts(bench_page(result))
    state.show(result.document(), text_of(result))
    return 0 if result.is_sound else PartialError.exit_code


@contextmanager
def _progress(state: State) -> Iterator[Callable[[BenchStep], None]]:
    """Shows a bar over all runs on a terminal, and prints a line for each elsewhere."""
    began = time.monotonic()
    last: BenchStep | None = None

    def text() -> str:
        seconds = format_seconds(time.monotonic() - began)
        if last is None:
            return f"{bar_text(0)} {seconds}   floors"
        return f"{bar_text(last.done / last.total)} {last.done}/{last.total} {seconds} {_line(last)}"

    def on_step(step: BenchStep) -> None:
        nonlocal last
        last = step
        if step.text or not live.is_drawn:
            state.say(_line(step))

    with live_lines(state, text) as live:
        yield on_step


def _line(step: BenchStep) -> str:
    if step.of == "floor":
        return f"  {step.label} measured"
    of = "start " if step.of == "start" else ""
    when = f"{of}round {step.round}" if step.round else f"{of}first run"
    took = seconds_text(step.run.seconds) if step.run else "failed"
    return f"  {when:<16} {step.label:<17} {took:>8}{'   ' + step.text if step.text else ''}"


def text_of(result: BenchResult) -> str:
    """The result for people."""
    plan, target = result.plan, result.plan.target
    size = f"{format_bytes(target.model.bytes)} in {plural(len(target.shards), 'file')}"
    lines = [f"{target.name}   {size}   to {plan.device}   {plural(plan.runs, 'run')} each"]
    for title, rows, columns in (
        ([], result.loads, COLUMNS["load"]),
        (["whole starts of vLLM, to the first token"], result.starts, COLUMNS["start"]),
    ):
        if rows:
            lines += ["", *title, table_text([columns, *table_cells(rows, columns)]), *_problems(rows)]
    if result.skipped:
        unique = {(one.label, one.reason): one for one in result.skipped}.values()
        lines += ["", *(f"skipped  {one.label}: {one.reason}{'   ' + one.hint if one.hint else ''}" for one in unique)]
    if all(row.name in OURS for row in result.rows):
        lines.append("no other loader ran, so there is nothing to compare with")
    if floors := result.floors.lines():
        lines += ["", "floors, measured before the loads", *(f"  {stage:<11} {text}" for stage, text in floors)]
    lines += ["", "notes", *(f"  {line}" for line in result.terms), "", *result.verdict]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return "\n".join([*lines, f"{result.machine}; {versions}"])


def _problems(rows: Sequence[BenchRow]) -> list[str]:
    failed = [f"{coloured('failed', 'red')}   {row.label}: {row.failure}" for row in rows if row.failure is not None]
    wrong = [row.label for row in rows if row.failure is None and row.same is False]
    note = "its output differs from the other loaders'"
    return failed + [f"{coloured('wrong', 'red')}    {label}: {note}" for label in wrong]
