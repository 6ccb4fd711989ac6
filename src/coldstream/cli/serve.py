"""`coldstream serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coldstream.cli.session import EXIT_CODES, Size, State, coloured, common_options

if TYPE_CHECKING:
    from coldstream.serve import Started

_BAR_WIDTH = 32


@click.command(epilog=f"{EXIT_CODES} Once vLLM runs, its own exit code.")
@click.argument("uri", metavar="MODEL")
@click.argument("vllm_arguments", metavar="[-- VLLM FLAGS]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--loader",
    type=click.Choice(["coldstream", "runai", "runai-sharded", "default"]),
    default="coldstream",
    show_default=True,
    help="How vLLM gets the weights.",
)
@click.option("--fallback", type=click.Choice(["hf"]), help="Where to stream from when the bucket fails at the start.")
@click.option("--connections", type=click.IntRange(1, 1024), help="Most connections at once.  [default: 64]")
@click.option(
    "--memory", "memory_limit", type=Size(), help="Most memory for data on its way.  [default: half of what is free]"
)
@click.option("--workers", type=click.IntRange(1, 64), help="Fetching processes.  [default: one per core, at most 8]")
@click.option("--no-cache", is_flag=True, help="Neither read nor fill the local cache.")
@click.option("--no-verify", is_flag=True, help="Do not compare the chunks with the manifest's hashes.")
@click.option(
    "--bundle",
    type=click.Choice(["auto", "read", "write", "off"]),
    default="auto",
    show_default=True,
    help="Warm-start bundle: restore and publish, one of both, or leave vLLM's caches alone.",
)
@click.option("--vllm", "program", metavar="PATH", help="The vllm to run.  [default: the one beside coldstream]")
@click.option("--print-command", is_flag=True, help="Show what would run, and stop.")
@click.option("--print-env", is_flag=True, help="Show what it would be given in its environment, and stop.")
@common_options
def command(
    state: State,
    uri: str,
    vllm_arguments: tuple[str, ...],
    loader: str,
    fallback: str | None,
    connections: int | None,
    memory_limit: int | None,
    workers: int | None,
    no_cache: bool,
    no_verify: bool,
    bundle: str,
    program: str | None,
    print_command: bool,
    print_env: bool,
) -> None:
    """Serve a model with vLLM, its weights streamed from the bucket while vLLM starts.

    \b
    coldstream serve Qwen/Qwen3-8B
    coldstream serve Qwen/Qwen3-32B -- --tensor-parallel-size 4 --max-model-len 8192
    coldstream serve Qwen/Qwen3-8B --fallback hf
    coldstream serve Qwen/Qwen3-8B --loader runai --print-command

    What follows `--` goes to `vllm serve` as it is. The second start on a machine reads the local cache, and needs no
    bucket. MODEL is org/model in the bucket, or any URI that `coldstream load` takes.
    """
    import sys

    from coldstream.loading import Options
    from coldstream.serve import Request, prepared, serve

    settings = state.settings()
    given = {"concurrency": connections, "memory_limit": memory_limit, "workers": workers}
    options = Options(
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        cache=not no_cache,
        verify=not no_verify,
        settings=settings,
    )
    request = Request(
        uri=uri,
        arguments=vllm_arguments,
        loader=loader,
        options=options,
        fallback=fallback,
        program=program,
        bundle=bundle,
    )
    if print_command or print_env:
        with prepared(request, settings, say=state.say, dry=True) as ready:
            lines = ready.command.shown_environment() if print_env else []
            lines += [ready.command.shown()] if print_command else []
        state.show({"arguments": ready.command.arguments, "environment": lines}, "\n".join(lines))
        return

    def on_started(started: Started) -> None:
        if state.json:
            state.show(_document(started), "")
        else:
            state.say(timeline_text(started))

    code = serve(
        request, settings, say=state.say, on_started=on_started, stdout=sys.stderr.buffer if state.json else None
    )
    raise SystemExit(code)


def _document(started: Started) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "url": started.url,
        "seconds": started.seconds,
        "phases": [asdict(phase) for phase in started.timeline.phases()],
        "stream": asdict(started.report) if started.report else None,
        "stream_stop_seconds": started.stream_stop,
    }


def timeline_text(started: Started) -> str:
    """What the start was spent on, as a table with bars."""
    from coldstream.serve.timeline import hidden_share
    from coldstream.units import format_bytes, format_rate

    phases = started.timeline.phases()
    rows = [(phase.name, phase.start, phase.stop, phase.note) for phase in phases]
    if started.report is not None and started.stream_stop is not None:
        report = started.report
        note = f"{format_bytes(report.bytes)}   {format_rate(report.bytes, report.seconds)}"
        hidden = hidden_share(started.stream_stop, started.timeline.marks)
        if hidden is not None:
            note += f"   hidden behind the start: {hidden:.0%}"
        rows.insert(1, ("stream", max(0.0, started.stream_stop - report.seconds), started.stream_stop, note))
    lines = [""]
    for name, start, stop, note in rows:
        lines.append(f"  {name:<14}{_bar(start, stop, started.seconds)} {stop - start:6.1f} s   {note}")
    longest = max(phases, key=lambda phase: phase.seconds)
    lines.append(f"{coloured('ready', 'green')} in {started.seconds:.1f} s   {started.url}")
    lines.append(f"most of it: {longest.name}, {longest.seconds / started.seconds:.0%}")
    if started.report is not None:
        lines.append(f"the stream was {started.report.limited_by}")
        if started.report.offline:
            lines.append("the bucket did not answer: the weights came from the local cache")
    return "\n".join(lines)


def _bar(start: float, stop: float, total: float) -> str:
    first = round(_BAR_WIDTH * start / total)
    width = max(1, round(_BAR_WIDTH * (stop - start) / total))
    first = min(first, _BAR_WIDTH - width)
    return " " * first + "█" * width + " " * (_BAR_WIDTH - first - width)
