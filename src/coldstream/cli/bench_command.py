"""`coldstream bench`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coldstream.cli.session import EXIT_CODES, Size, State, coloured, common_options, echo, shown
from coldstream.cli.table import table_text

if TYPE_CHECKING:
    from coldstream.operate.bench.comparing import Step
    from coldstream.operate.bench.result import Result, Row

_FILE = click.Path(dir_okay=False, path_type=Path)
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_PARTIAL = 3


@click.command(epilog=EXIT_CODES)
@click.argument("uri", metavar="URI")
@click.argument("vllm_arguments", metavar="[-- VLLM FLAGS]", nargs=-1, type=click.UNPROCESSED)
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Timed runs of each loader.")
@click.option("--only", metavar="NAME", multiple=True, help="Run this loader; may be repeated.  [default: all]")
@click.option("--skip", metavar="NAME", multiple=True, help="Leave this loader out; may be repeated.")
@click.option("--with", "more", metavar="NAME[,NAME]", help="Run boto3, s3fs or obstore as well.")
@click.option("--all", "everything", is_flag=True, help="Run all three of them as well.")
@click.option("--device", default="cpu", show_default=True, help="Where the tensors go: cpu, cuda, cuda:1.")
@click.option(
    "--connections",
    type=click.IntRange(1, 1024),
    default=64,
    show_default=True,
    help="Most connections of the loaders that can be told; Run:ai's follow its default and its rule.",
)
@click.option("--memory", "memory_limit", type=Size(), help="Most memory for coldstream's data on its way.")
@click.option("--timeout", type=click.FloatRange(1), default=900, show_default=True, help="Seconds for each run.")
@click.option(
    "--drop-caches/--no-drop-caches",
    "drop",
    default=True,
    show_default=True,
    help="Empty the page cache before each run, as far as that is allowed.",
)
@click.option(
    "--python", "interpreters", metavar="PATH", multiple=True, help="An interpreter that has loaders; may be repeated."
)
@click.option("--vllm", "starts", is_flag=True, help="Compare whole starts of vLLM, to the first token, as well.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of the runs.")
@click.option("--html", "html_file", type=_FILE, help="Write a page with the charts that needs no network.")
@click.option("--png", "png_file", type=_FILE, help="Write the charts as a picture.")
@common_options
def command(
    state: State,
    uri: str,
    vllm_arguments: tuple[str, ...],
    runs: int,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    more: str | None,
    everything: bool,
    device: str,
    connections: int,
    memory_limit: int | None,
    timeout: float,
    drop: bool,
    interpreters: tuple[str, ...],
    starts: bool,
    seed: int,
    html_file: Path | None,
    png_file: Path | None,
) -> None:
    """Compare ways of loading a model on this machine: ours, Run:ai's, vLLM's own after a download.

    \b
    coldstream bench Qwen/Qwen3-8B
    coldstream bench Qwen/Qwen3-8B --device cuda --all --png bench.png --html bench.html
    coldstream bench Qwen/Qwen3-8B --python /opt/vllm/bin/python --vllm -- --max-model-len 8192
    coldstream bench s3://bucket/org/model --only coldstream --only runai-tuned --runs 5

    Names: coldstream, coldstream-warm, runai, runai-tuned, vllm-default; when asked for boto3, s3fs, obstore. Each is
    first run once untimed, to prove that it gives the same bytes; then all of them in turn. A loader that is not
    installed is left out by name. What it measures, and how: docs/bench.md.
    """
    from coldstream.errors import UsageError
    from coldstream.operate.bench.comparing import Plan, compare
    from coldstream.operate.bench.contestant import OPTIONAL, Wishes, chosen
    from coldstream.operate.bench.target import find_target

    if vllm_arguments and not starts:
        raise UsageError("what follows `--` is for vLLM", hint="add --vllm")
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"{device!r} is no device", hint="cpu, cuda or cuda:1")
    if sys.platform != "linux":
        raise UsageError("bench needs Linux: it reads /proc for what processes take")
    named = [*OPTIONAL] if everything else [name.strip() for name in (more or "").split(",") if name.strip()]
    kinds = chosen(only, skip, named)
    _check_files(html_file, png_file)
    settings = state.settings()
    plan = Plan(
        target=find_target(uri, settings),
        settings=settings,
        kinds=kinds,
        wishes=Wishes(device=device, connections=connections, memory_limit=memory_limit),
        runs=runs,
        seed=seed,
        interpreters=interpreters,
        drop=drop,
        timeout_seconds=timeout,
        vllm_flags=vllm_arguments if starts else None,
    )
    with _progress(state) as on_step:
        result = compare(plan, on_step)
    _write(state, result, html_file, png_file)
    state.show(result.document(), text_of(result))
    if not result.sound:
        raise SystemExit(_PARTIAL)


def _check_files(*files: Path | None) -> None:
    """What cannot be drawn is said before minutes are spent on it."""
    from coldstream.errors import DiskError
    from coldstream.operate.charts import check

    for path in filter(None, files):
        check()
        if not path.absolute().parent.is_dir():
            raise DiskError(f"cannot write {path}: its folder does not exist", target=str(path))


def _write(state: State, result: Result, html_file: Path | None, png_file: Path | None) -> None:
    from coldstream.operate.bench.bench_chart import png
    from coldstream.operate.bench.bench_page import html

    files = [(html_file, html(result).encode())] if html_file else []
    files += [(png_file, png(result))] if png_file else []
    for path, data in files:
        state.write(path, data)


@contextmanager
def _progress(state: State) -> Iterator[Callable[[Step], None]]:
    """A bar over all runs on a terminal, a line for each elsewhere."""
    if state.quiet:
        yield lambda _: None
    elif not sys.stderr.isatty():
        yield lambda step: echo(_line(step), err=True)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True, highlight=False)
        columns = (
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task("floors", total=None)

            def on_step(step: Step) -> None:
                bars.update(task, completed=step.done, total=step.total, description=_line(step).strip())
                if step.text:
                    bars.console.print(shown(_line(step)), markup=False, soft_wrap=True)

            yield on_step


def _line(step: Step) -> str:
    from coldstream.operate.bench.result import seconds_text

    if step.of == "floor":
        return f"  {step.label} measured"
    of = "start " if step.of == "start" else ""
    when = f"{of}round {step.round}" if step.round else f"{of}first run"
    took = seconds_text(step.run.seconds) if step.run else "failed"
    return f"  {when:<16} {step.label:<17} {took:>8}{'   ' + step.text if step.text else ''}"


def text_of(result: Result) -> str:
    """The result for people."""
    from coldstream.operate.bench.result import verdict
    from coldstream.units import format_bytes, plural

    what = f"{format_bytes(result.bytes)} in {plural(result.files, 'file')}"
    lines = [f"{result.model}   {what}   to {result.device}   {plural(result.rounds, 'run')} each"]
    if result.loads:
        lines += ["", _table(result.loads, _LOADS), *_troubles(result.loads)]
    if result.starts:
        lines += ["", "whole starts of vLLM, to the first token", _table(result.starts, _STARTS)]
        lines += _troubles(result.starts)
    if result.skipped or result.skipped_starts:
        lines.append("")
        told = {(one.label, one.reason): one for one in (*result.skipped, *result.skipped_starts)}
        lines += [f"skipped  {one.label}: {one.reason}{'   ' + one.hint if one.hint else ''}" for one in told.values()]
    lines += _alone(result)
    if floors := result.floors.lines():
        lines += ["", "floors, measured before"]
        lines += [f"  {stage:<11} {said}" for stage, said in floors]
    lines += ["", "what it means", *(f"  {line}" for line in result.terms), ""]
    lines += [*verdict(result.loads, "load"), *verdict(result.starts, "start")]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return "\n".join([*lines, f"{result.machine}; {versions}"])


def _alone(result: Result) -> list[str]:
    from coldstream.operate.bench.contestant import OURS

    if any(row.name not in OURS for row in (*result.loads, *result.starts)):
        return []
    return ["no other loader was run: there is nothing to compare with"]


_LOADS = ("NAME", "MEDIAN", "MIN-MAX", "RATE", "CPU-S/GIB", "MEMORY", "VS BEST", "OF FLOOR")
_STARTS = ("NAME", "MEDIAN", "MIN-MAX", "CPU-S", "MEMORY", "VS BEST")


def _table(rows: Sequence[Row], heading: Sequence[str]) -> str:
    """The rows with these columns."""
    from coldstream.operate.bench.result import best, seconds_text
    from coldstream.units import format_bytes, format_rate

    least = best(rows)
    cells: list[Sequence[str]] = [heading]
    for row in rows:
        seconds, cpu, memory = row.seconds, row.cpu_seconds, row.memory_bytes
        if not (seconds and cpu and memory):
            cells.append((row.label, "failed", *["-"] * (len(heading) - 2)))
            continue
        per_gib = row.cpu_seconds_per_gib
        shown = {
            "NAME": row.label,
            "MEDIAN": seconds_text(seconds.median),
            "MIN-MAX": f"{seconds_text(seconds.least)[:-2]}-{seconds_text(seconds.most)}",
            "RATE": format_rate(row.bytes, seconds.median),
            "CPU-S/GIB": f"{per_gib.median:.2f}" if per_gib else "-",
            "CPU-S": f"{cpu.median:.1f}",
            "MEMORY": format_bytes(memory.median),
            "VS BEST": f"{seconds.median / least:.1f} x" if least else "-",
            "OF FLOOR": f"{row.nearest[1]:.0%} {row.nearest[0]}" if row.nearest else "-",
        }
        cells.append([shown[name] for name in heading])
    return table_text(cells)


def _troubles(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row.failure is not None:
            lines.append(f"{coloured('failed', 'red')}   {row.label}: {row.failure}")
        elif row.same is False:
            lines.append(f"{coloured('wrong', 'red')}    {row.label}: what it loaded is not what the others loaded")
    return lines
