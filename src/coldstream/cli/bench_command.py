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
    from coldstream.operate.bench.comparing import BenchStep
    from coldstream.operate.bench.result import BenchResult, BenchRow

_FILE = click.Path(dir_okay=False, path_type=Path)
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_PARTIAL = 3


@click.command(epilog=EXIT_CODES)
@click.argument("uri", metavar="URI")
@click.argument("vllm_arguments", metavar="[-- VLLM FLAGS]", nargs=-1, type=click.UNPROCESSED)
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Timed runs of each loader.")
@click.option("--only", metavar="NAME", multiple=True, help="Run only this loader; may be repeated.  [default: all]")
@click.option("--skip", metavar="NAME", multiple=True, help="Skip this loader; may be repeated.")
@click.option("--with", "more", metavar="NAME[,NAME]", help="Also run boto3, s3fs or obstore.")
@click.option("--all", "everything", is_flag=True, help="Also run all three.")
@click.option("--device", default="cpu", show_default=True, help="Device for the tensors: cpu, cuda, cuda:1.")
@click.option(
    "--connections",
    type=click.IntRange(1, 1024),
    default=64,
    show_default=True,
    help="Maximum parallel connections of loaders that take a limit; Run:ai uses its default or its rule.",
)
@click.option("--memory", "memory_limit", type=Size(), help="Memory limit for coldstream's data in flight.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=900, show_default=True, help="Time limit of each run in seconds."
)
@click.option(
    "--drop-caches/--no-drop-caches",
    "drop",
    default=True,
    show_default=True,
    help="Drop the page cache before each run, where permitted.",
)
@click.option(
    "--python", "interpreters", metavar="PATH", multiple=True, help="An interpreter with more loaders; may be repeated."
)
@click.option("--vllm", "starts", is_flag=True, help="Also compare whole starts of vLLM, to the first token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the order of the runs.")
@click.option("--html", "html_file", type=_FILE, help="Write a self-contained page with charts.")
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
    """Compare coldstream with Run:ai's streamer and vLLM's own loader on this machine.

    \b
    coldstream bench Qwen/Qwen3-8B
    coldstream bench Qwen/Qwen3-8B --device cuda --all --png bench.png --html bench.html
    coldstream bench Qwen/Qwen3-8B --python /opt/vllm/bin/python --vllm -- --max-model-len 8192
    coldstream bench s3://bucket/org/model --only coldstream --only runai-tuned --runs 5

    Loaders: coldstream, coldstream-warm, runai, runai-tuned, vllm-default; optional: boto3, s3fs, obstore. An untimed
    run of each first checks that all load the same bytes; timed runs are interleaved. Loaders that are not installed
    are skipped. docs/bench.md describes what is measured, and how.
    """
    from coldstream.errors import UsageError
    from coldstream.operate.bench.comparing import compare
    from coldstream.operate.bench.contestant import OPTIONAL, BenchPlan, select_loaders
    from coldstream.operate.bench.target import find_target

    if vllm_arguments and not starts:
        raise UsageError("arguments after `--` are for vLLM", hint="add --vllm")
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"{device!r} is not a device", hint="use cpu, cuda or cuda:1")
    if sys.platform != "linux":
        raise UsageError("bench only runs on Linux: it reads /proc")
    named = [*OPTIONAL] if everything else [name.strip() for name in (more or "").split(",") if name.strip()]
    loaders = select_loaders(only, skip, named)
    _check_files(html_file, png_file)
    settings = state.settings()
    plan = BenchPlan(
        target=find_target(uri, settings),
        settings=settings,
        loaders=loaders,
        device=device,
        connections=connections,
        memory_limit=memory_limit,
        runs=runs,
        seed=seed,
        interpreters=interpreters,
        drop_caches=drop,
        timeout_seconds=timeout,
        vllm_flags=vllm_arguments if starts else None,
    )
    with _progress(state) as on_step:
        result = compare(plan, on_step)
    _write(state, result, html_file, png_file)
    state.show(result.document(), text_of(result))
    if not result.is_sound:
        raise SystemExit(_PARTIAL)


def _check_files(*files: Path | None) -> None:
    """Fails before the runs, which take minutes, when a chart could not be written."""
    from coldstream.errors import DiskError
    from coldstream.operate.charts import check

    for path in filter(None, files):
        check()
        if not path.absolute().parent.is_dir():
            raise DiskError(f"cannot write {path}: its folder does not exist", target=str(path))


def _write(state: State, result: BenchResult, html_file: Path | None, png_file: Path | None) -> None:
    from coldstream.operate.bench.bench_chart import png
    from coldstream.operate.bench.bench_page import html

    files = [(html_file, html(result).encode())] if html_file else []
    files += [(png_file, png(result))] if png_file else []
    for path, data in files:
        state.write(path, data)


@contextmanager
def _progress(state: State) -> Iterator[Callable[[BenchStep], None]]:
    """Shows a bar over all runs on a terminal, and prints a line for each elsewhere."""
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

            def on_step(step: BenchStep) -> None:
                bars.update(task, completed=step.done, total=step.total, description=_line(step).strip())
                if step.text:
                    bars.console.print(shown(_line(step)), markup=False, soft_wrap=True)

            yield on_step


def _line(step: BenchStep) -> str:
    from coldstream.operate.bench.result import seconds_text

    if step.of == "floor":
        return f"  {step.label} measured"
    of = "start " if step.of == "start" else ""
    when = f"{of}round {step.round}" if step.round else f"{of}first run"
    took = seconds_text(step.run.seconds) if step.run else "failed"
    return f"  {when:<16} {step.label:<17} {took:>8}{'   ' + step.text if step.text else ''}"


def text_of(result: BenchResult) -> str:
    """The result for people."""
    from coldstream.operate.bench.contestant import OURS
    from coldstream.operate.bench.result import LOAD_COLUMNS, START_COLUMNS, table_cells
    from coldstream.units import format_bytes, plural

    plan, target = result.plan, result.plan.target
    size = f"{format_bytes(target.model.bytes)} in {plural(len(target.shards), 'file')}"
    lines = [f"{target.name}   {size}   to {plan.device}   {plural(plan.runs, 'run')} each"]
    for title, rows, columns in (
        ([], result.loads, LOAD_COLUMNS),
        (["whole starts of vLLM, to the first token"], result.starts, START_COLUMNS),
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
    lines = []
    for row in rows:
        if row.failure is not None:
            lines.append(f"{coloured('failed', 'red')}   {row.label}: {row.failure}")
        elif row.same is False:
            lines.append(f"{coloured('wrong', 'red')}    {row.label}: its output differs from the other loaders'")
    return lines
