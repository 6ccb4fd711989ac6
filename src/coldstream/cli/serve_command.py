"""`coldstream serve`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from coldstream.cli.live import StartStatus, live_lines
from coldstream.cli.output import attributes, coloured
from coldstream.cli.session import State
from coldstream.cli.verbs import EXIT_CODES, LOAD_OPTIONS, Verb, load_options, metrics_options, negative_flag
from coldstream.engines.sglang.sglang_engine import SglangEngine
from coldstream.engines.vllm.vllm_engine import VllmEngine
from coldstream.loading.options import Options
from coldstream.machine.hardware import process_began
from coldstream.model.names import Uri
from coldstream.node.inference_engine import ServeRequest
from coldstream.node.serve import Started, serve
from coldstream.node.serve_preparation import prepared_start
from coldstream.telemetry.timeline.recorder import Recorder, bootstrap_record
from coldstream.telemetry.timeline.start_record import format_ready_line
from coldstream.telemetry.timeline.timeline_text import rows_text, summary_text

# Fields of the timeline that the JSON shows under the same names.
_OF_TIMELINE = (
    *("run", "phases", "first_token_seconds", "named_share", "unnamed_seconds", "verdict", "spans"),
    *("compile_caches", "bundle", "figures"),
)
_ENGINES: Mapping[str, type[VllmEngine | SglangEngine]] = {"vllm": VllmEngine, "sglang": SglangEngine}


@click.command(cls=Verb, epilog=f"{EXIT_CODES} Once the engine runs, its own exit code.")
@click.argument("uri", metavar="MODEL")
@click.argument("engine_arguments", metavar="[-- ENGINE FLAGS]", nargs=-1, type=click.UNPROCESSED)
@click.option("--engine", type=click.Choice([*_ENGINES]), default="vllm", help="The engine that serves the model.")
@click.option(
    "--loader",
    type=click.Choice(["coldstream", "runai", "runai-sharded", "default"]),
    default="coldstream",
    help="How the engine loads the weights; default downloads them first. runai is for vLLM.",
)
@click.option("--fallback", type=click.Choice(["hf"]), help="Stream from the Hub if the bucket fails at the start.")
@click.option(
    "--adapters",
    metavar="NAMES",
    callback=lambda _ctx, _param, names: tuple(dict.fromkeys(filter(None, (names or "").split(",")))),
    help="LoRA adapters in the bucket, with commas between. all: every one of this model; on-demand: others too, when "
    "requests name them.",
)
@load_options
@click.option(
    "--bundle",
    type=click.Choice(["auto", "read", "write", "off"]),
    default="auto",
    help="Warm-start bundle: restore and publish it (auto), only one of both, or neither.",
)
@negative_flag("--no-spot-notice", "Do not poll the cloud for spot interruptions.")
@negative_flag("--no-first-token", "Skip the request that measures the time to first token.")
@click.option(
    "--pass-env",
    metavar="NAME",
    multiple=True,
    help="Pass this credential to the engine, such as HF_TOKEN for a gated draft model. Repeatable.",
)
@metrics_options
@click.option(
    "--vllm",
    "--sglang",
    "program",
    metavar="PATH",
    help="The engine's program.  [default: next to coldstream, else on the PATH]",
)
@click.option("--print-command", is_flag=True, help="Print the engine's command and exit.")
@click.option("--print-env", is_flag=True, help="Print the environment variables set for the engine and exit.")
def command(
    state: State,
    uri: str,
    engine_arguments: tuple[str, ...],
    engine: str,
    print_command: bool,
    print_env: bool,
    **values: Any,
) -> None:
    """Serve a model with vLLM or SGLang, streaming its weights.

    \b
    coldstream serve Qwen/Qwen3-8B
    coldstream serve Qwen/Qwen3-32B -- --tensor-parallel-size 4
    coldstream serve Qwen/Qwen3-8B --adapters org/adapter
    coldstream serve Qwen/Qwen3-8B --fallback hf
    coldstream serve Qwen/Qwen3-8B --loader runai --print-command
    coldstream serve Qwen/Qwen3-8B --engine sglang -- --tp 2

    Flags after `--` go to `vllm serve` or `sglang serve` unchanged. MODEL is org/model in the bucket, or any URI that
    `coldstream load` takes. A second start on the same machine reads the local cache and does not need the bucket.
    """
    settings = state.settings()
    status = StartStatus("download" if values["loader"] == "default" else "stream")
    load = {name: values.pop(name) for name in LOAD_OPTIONS}
    options = Options(metrics=False, settings=settings, on_progress=status.on_progress, **load)
    request = ServeRequest(uri=Uri(uri), arguments=engine_arguments, options=options, **values)
    if print_command or print_env:
        with prepared_start(request, settings, _ENGINES[engine](request), say=state.say, dry=True) as prepared:
            lines = prepared.command.shown_environment() if print_env else []
            lines += [prepared.command.shown()] if print_command else []
        state.show({"arguments": prepared.command.arguments, "environment": lines}, "\n".join(lines))
        return

    with state.measured(settings, uri) as measured, live_lines(state, status.text, with_json=False) as live:

        def on_started(started: Started) -> None:
            live.close()
            if state.json:
                state.show(_document(started), "")
            else:
                state.say(timeline_text(started))
                if not sys.stderr.isatty():
                    state.say(format_ready_line(started.timeline, started.url))
            # A spot machine may be preempted before the end.
            measured.write()

        bootstrap = bootstrap_record()

        def on_recorder(recorder: Recorder) -> None:
            if bootstrap is not None:
                bootstrap.apply(recorder)
            status.follow(recorder)

        code = serve(
            request,
            settings,
            _ENGINES[engine](request),
            say=state.say,
            on_started=on_started,
            stdout=sys.stderr.buffer if state.json else live.above(sys.stdout),
            stderr=live.above(sys.stderr),
            explain=state.explain,
            meter=measured.meter,
            began=process_began() if bootstrap is None else bootstrap.monotonic_began,
            on_recorder=on_recorder,
        )
    raise SystemExit(code)


def _document(started: Started) -> dict[str, object]:
    document = started.timeline.document()
    return {
        **attributes(started, "url", "seconds"),
        "stream": asdict(started.report) if started.report else None,
        "streams": [asdict(report) for report in started.reports],
        "drafts": [asdict(report) for report in started.draft_reports],
        "stream_stop_seconds": started.stream_stop,
        "timeline": started.path,
        **{name: document[name] for name in _OF_TIMELINE},
    }


def timeline_text(started: Started) -> str:
    """Where the time of a start went: bars on a terminal, lines elsewhere."""
    bars, columns = sys.stderr.isatty(), shutil.get_terminal_size().columns
    rows = rows_text(started.timeline, bars=bars, columns=columns)
    first, *rest = summary_text(started.timeline, url=started.url, columns=columns if bars else None)
    ready = coloured("ready", "green", sys.stderr) + first.removeprefix("ready")
    return "\n".join(["", *rows, ready, *rest])
