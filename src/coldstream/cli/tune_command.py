"""`coldstream tune`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

import click

from coldstream.cli.output import attributes, table_text
from coldstream.cli.session import State
from coldstream.cli.verbs import SPEED, Verb, chart_options, count
from coldstream.errors import UsageError
from coldstream.loading.options import Options
from coldstream.machine import hardware
from coldstream.model.names import Uri
from coldstream.operate.curve_chart import curve_page
from coldstream.settings import Settings
from coldstream.tune.connection_curve import PASSES, Curve, Sample, measure_curve, save_curve, saved_curve
from coldstream.tune.gpus import detect_gpus, parse_gpus
from coldstream.tune.model_shape import read_model
from coldstream.tune.predict import NetworkPath, parse_cloud, path_to_bucket
from coldstream.tune.recommended import Advice, SettingsRow, advise, settings_table, smallest
from coldstream.units import GIB, format_bytes, format_rate, format_seconds, plural


@click.command(cls=Verb)
@click.argument("uri", metavar="[MODEL]", required=False)
@click.option("--gpus", metavar="GPU[:N]", help="GPUs, such as L4 or A100-80GB:4.  [default: those of this machine]")
@click.option("--cloud", metavar="CLOUD", help="Cloud of the machine, such as aws, for its bandwidth limits.")
@click.option("--cores", type=count(1, 4096), help="Cores of the machine.  [default: those of this machine]")
@click.option(
    "--link",
    "link_bytes_per_second",
    type=SPEED,
    help="Network speed, such as 10Gbit.  [default: that of this machine's card]",
)
@click.option("--max-model-len", "context", type=count(1, 1 << 40), help="Context length that must fit, in tokens.")
@click.option(
    "--gpu-memory-utilization",
    "utilization",
    metavar="FRACTION",
    type=click.FloatRange(0.1, 1.0),
    help="Share of GPU memory for vLLM.  [default: 0.95]",
)
@click.option("--measure", is_flag=True, help="Measure the bucket at rising connection counts and save the result.")
@chart_options
@click.option("--matrix", "as_matrix", is_flag=True, help="Show recommended settings for common GPUs and models.")
def command(
    state: State,
    uri: str | None,
    gpus: str | None,
    cloud: str | None,
    context: int | None,
    utilization: float | None,
    measure: bool,
    as_matrix: bool,
    **network: Any,
) -> None:
    """Recommend settings for a model on a GPU; predict the load time.

    \b
    coldstream tune Qwen/Qwen3-8B             on the machine that will serve it
    coldstream tune Qwen/Qwen3-32B --gpus A100-80GB:2 --cloud aws --link 50Gbit
    coldstream tune Qwen/Qwen3-8B --measure --png curve.png
    coldstream tune --matrix

    Sizes, dtypes and layers are read from the model in the bucket. `coldstream serve` uses the result of --measure for
    a week. --html and --png draw its curve.
    """
    cloud = parse_cloud(cloud).partition("/")[0] if cloud else None
    if as_matrix:
        if uri or measure:
            raise UsageError("--matrix takes neither a model nor --measure", hint="run: coldstream tune --matrix")
        rows = settings_table(cloud or "aws")
        documents = [
            {**_document(row.advice, row.way), **attributes(row, "model", "remark"), "promised_seconds": row.promised}
            for row in rows
        ]
        state.show({"rows": documents}, _matrix_text(rows))
        return
    if uri is None:
        raise UsageError("MODEL is missing", hint="run: coldstream tune org/model, or: coldstream tune --matrix")
    if state.charts and not measure:
        raise UsageError("--html and --png draw the result of --measure", hint="add --measure")
    settings = state.settings()
    curve = _measured(state, uri, settings) if measure else None
    stable_curve = None if curve is None or curve.is_noisy else curve
    model = read_model(uri, settings)
    chosen = parse_gpus(gpus) if gpus else detect_gpus(hardware.gpus())
    way = NetworkPath(cloud=cloud, **network)
    if gpus is None or stable_curve:
        way = path_to_bucket(way, stable_curve or saved_curve(settings))
    document, text = _curve_part(curve) if curve else ({}, "")
    if chosen is None:
        if curve is None:
            raise UsageError("this machine has no known GPU", hint="name one, such as --gpus A100-80GB:2")
        state.show({"model": asdict(model), **document}, text)
        return
    connections = stable_curve.connections if stable_curve else None
    advice = advise(model, chosen, way, connections=connections, utilization=utilization, context=context)
    state.show(_document(advice, way) | document, "\n".join(filter(None, [_text(advice, str(Uri(uri))), text])))


def _measured(state: State, uri: str, settings: Settings) -> Curve:
    state.check_charts()

    def on_sample(sample: Sample) -> None:
        state.say(f"  {plural(sample.connections, 'connection'):<16} {format_rate(sample.bytes_per_second, 1)}")

    state.say(f"measuring {PASSES[0]} to {PASSES[1]} times, until the runs agree: one to four minutes")
    curve = measure_curve(uri, Options(settings=settings, framework="buffer"), passes=PASSES, on_sample=on_sample)
    if curve.is_noisy:
        advice = "too much to use or save; measure again when the node is idle"
        state.warn(f"the runs differ by {curve.spread:.0%}, {advice}")
    elif "://" not in uri:
        state.say(f"saved to {save_curve(curve, settings)}")
    state.write_charts(curve_page(curve, str(Uri(uri))))
    return curve


def _document(advice: Advice, way: NetworkPath) -> dict[str, Any]:
    fit = advice.fit
    return {
        "model": asdict(advice.model),
        "gpus": str(fit.gpus),
        "way": asdict(way),
        "fits": fit.fault is None,
        **attributes(fit, "fault", "tensor_parallel", "weights_bytes", "room_bytes", "tokens"),
        "flags": list(fit.flags()),
        "loaders": [
            {
                **attributes(tuned, "loader", "connections", "memory_bytes"),
                **attributes(tuned.prediction, "seconds", "limit", "limited_by"),
                "rates": dict(tuned.prediction.rates),
            }
            for tuned in advice.loaders
        ],
    }


def _text(advice: Advice, uri: str) -> str:
    model, fit = advice.model, advice.fit
    shape = f"   {plural(model.layers, 'layer')}" if model.layers else ""
    count, kind = fit.gpus.count, fit.gpus.gpu.name
    lines = [f"{model.name}   {format_bytes(model.bytes)}   {model.dtype}{shape}   on {count} x {kind}"]
    if fit.fault is not None:
        fitting = smallest(model, fit.gpus, utilization=fit.utilization)
        lines.append(f"  does not fit      {fit.fault}")
        lines.append(f"  smallest fit      {fitting or f'none; not even 8 x {kind}'}")
        return "\n".join(lines)
    idle = count - fit.tensor_parallel
    room = f"{format_bytes(fit.weights_bytes)} of weights on each GPU, {format_bytes(fit.room_bytes)} left"
    if fit.tokens is not None:
        room += f" for {fit.tokens:,} tokens"
    lines.append(f"  tensor parallel   {fit.tensor_parallel}   {room}")
    if idle:
        lines.append(f"  idle              {plural(idle, 'GPU')}: {model.heads} heads cannot be split over {count}")
    for tuned in advice.loaders:
        label = {"coldstream": "coldstream", "runai": "Run:ai"}[tuned.loader]
        limits = f"{tuned.connections} connections, {format_bytes(tuned.memory_bytes)}"
        seconds = format_seconds(tuned.prediction.seconds)
        lines.append(f"  {label:<17} {seconds:>8}   {limits}   {tuned.prediction.limited_by}")
    connections = advice.loaders[0].connections
    lines.append(f"next:  coldstream serve {shlex.quote(uri)} --connections {connections} -- {' '.join(fit.flags())}")
    return "\n".join(lines)


def _curve_part(curve: Curve) -> tuple[dict[str, Any], str]:
    document = asdict(curve) | attributes(curve, "connections", "spread") | {"noisy": curve.is_noisy}
    text = f"one connection reaches {format_rate(curve.each, 1)}, all of them {format_rate(curve.most, 1)}"
    if curve.is_noisy:
        text += f", but the runs differ by {curve.spread:.0%}: too much to recommend a number of connections"
    else:
        verb = "suffices" if curve.connections == 1 else "suffice"
        spread = f" (the runs agree within {curve.spread:.0%})" if curve.spread is not None else ""
        text += f": {plural(curve.connections, 'connection')} {verb}{spread}"
    return {"curve": document}, text


def _matrix_text(rows: list[SettingsRow]) -> str:
    cells = [("GPUS", "MODEL", "RUN:AI", "BUFFER", "RUN:AI LOAD", "COLDSTREAM", "REMARK")]
    for row in rows:
        ours, theirs = row.advice.loaders
        threads, buffer = f"{theirs.connections} threads", f"{theirs.memory_bytes // GIB} GiB"
        theirs_load, ours_load = (
            f"{tuned.prediction.seconds:.1f} s" if row.advice.fit.fault is None else "-" for tuned in (theirs, ours)
        )
        cells.append((row.gpus, row.model, threads, buffer, theirs_load, ours_load, row.remark))
    return table_text(cells)
