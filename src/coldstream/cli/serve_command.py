"""`coldstream serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coldstream.cli.session import EXIT_CODES, Size, State, coloured, common_options, metrics_options

if TYPE_CHECKING:
    from coldstream.engines.vllm.serve_run import Started

# Of the record, what the JSON shows under the same name.
_OF_TIMELINE = (
    "run",
    "first_token_seconds",
    "named_share",
    "unnamed_seconds",
    "verdict",
    "spans",
    "compile_caches",
    "bundle",
    "figures",
)


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
@click.option("--memory", type=Size(), help="Most memory for data on its way.  [default: half of what is free]")
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
@click.option(
    "--bundle",
    type=click.Choice(["auto", "read", "write", "off"]),
    default="auto",
    show_default=True,
    help="Warm-start bundle: restore and publish, one of both, or leave vLLM's caches alone.",
)
@click.option("--no-spot-notice", is_flag=True, help="Do not ask the cloud whether it takes this spot machine back.")
@click.option("--no-first-token", is_flag=True, help="Do not ask for a token once it answers, to time the first one.")
@click.option(
    "--pass-env",
    metavar="NAME",
    multiple=True,
    help="Pass this credential to vLLM, such as HF_TOKEN for a gated draft model. Repeatable.",
)
@metrics_options
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
    memory: int | None,
    workers: int | None,
    via: str,
    no_cache: bool,
    no_verify: bool,
    bundle: str,
    no_spot_notice: bool,
    no_first_token: bool,
    pass_env: tuple[str, ...],
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

    from coldstream.cli.live import StartStatus, live_line
    from coldstream.cli.metering import metered
    from coldstream.engines.vllm.serve_preparation import prepared
    from coldstream.engines.vllm.serve_request import ServeRequest
    from coldstream.engines.vllm.serve_run import serve
    from coldstream.loading.options import Options
    from coldstream.machine.hardware import process_began
    from coldstream.model.uri import Uri
    from coldstream.telemetry.timeline.ready_line import format_ready_line

    settings, status = state.settings(), StartStatus("download" if loader == "default" else "stream")
    given = {"connections": connections, "memory": memory, "workers": workers}
    options = Options(
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        cache=not no_cache,
        verify=not no_verify,
        via=via,
        metrics=False,
        settings=settings,
        on_progress=status.on_progress,
    )
    request = ServeRequest(
        uri=Uri(uri),
        arguments=vllm_arguments,
        loader=loader,
        options=options,
        fallback=fallback,
        program=program,
        pass_env=pass_env,
        bundle=bundle,
        first_token=not no_first_token,
        spot_notice=not no_spot_notice,
    )
    if print_command or print_env:
        with prepared(request, settings, say=state.say, dry=True) as ready:
            lines = ready.command.shown_environment() if print_env else []
            lines += [ready.command.shown()] if print_command else []
        state.show({"arguments": ready.command.arguments, "environment": lines}, "\n".join(lines))
        return

    with metered(state, settings, uri) as found, live_line(state, status.text) as live:

        def on_started(started: Started) -> None:
            live.close()
            if state.json:
                state.show(_document(started), "")
            else:
                state.say(timeline_text(started))
                if not sys.stderr.isatty():
                    state.say(format_ready_line(started.timeline, started.url))
            # A spot machine may be gone before the end.
            found.write()

        code = serve(
            request,
            settings,
            say=state.say,
            on_started=on_started,
            stdout=sys.stderr.buffer if state.json else live.above(sys.stdout),
            stderr=live.above(sys.stderr),
            explain=state.explain,
            meter=found.meter,
            began=process_began(),
            on_recorder=status.follow,
        )
    raise SystemExit(code)


def _document(started: Started) -> dict[str, object]:
    from dataclasses import asdict

    timeline = started.timeline
    found = timeline.document()
    return {
        "url": started.url,
        "seconds": started.seconds,
        "phases": found["phases"],
        "stream": asdict(started.report) if started.report else None,
        "streams": [asdict(report) for report in started.reports],
        "stream_stop_seconds": started.stream_stop,
        "timeline": started.path,
        **{name: found[name] for name in _OF_TIMELINE},
    }


def timeline_text(started: Started) -> str:
    """What the start was spent on: bars on a terminal, lines elsewhere."""
    import shutil
    import sys

    from coldstream.telemetry.timeline.timeline_text import rows_text, summary_text

    bars, columns = sys.stderr.isatty(), shutil.get_terminal_size().columns
    rows = rows_text(started.timeline, bars=bars, columns=columns)
    first, *rest = summary_text(started.timeline, url=started.url, columns=columns if bars else None)
    ready = coloured("ready", "green", sys.stderr) + first.removeprefix("ready")
    return "\n".join(["", *rows, ready, *rest])
