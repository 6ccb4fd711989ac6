"""How fast the bucket gives the model to this machine, and what that means for its load."""

from __future__ import annotations

import sys

from coldstream.loading.options import Options
from coldstream.machine import hardware
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check
from coldstream.tune.connection_curve import Curve, Sample, measure_curve
from coldstream.tune.model_facts import detect_gpus, path_to_bucket
from coldstream.tune.predict import NetworkPath, predict
from coldstream.units import GIB, MIB, format_bytes, format_rate, format_seconds

CONNECTIONS = (1, 8, 32, 64)
# For each number of connections: ten seconds in all, and what they may cost where bytes are billed.
_STEP_SECONDS = 2.0
_STEP_BYTES = 2 * GIB
# What is smaller is through before many connections have got going.
_TELLING_BYTES = 512 * MIB
# "Cold start < 60 s": weights that take longer than that keep no such promise.
_LOAD_SECONDS_MAX = 60.0


def speed(case: Case) -> Check:
    """Real ranged reads of the model with 1, 8, 32 and 64 connections, and the load that they promise."""
    assert case.name is not None
    if not sys.platform.startswith("linux"):
        return Check(name="speed", state="skipped", found="not looked at: streaming is for Linux")

    def on_sample(sample: Sample) -> None:
        case.tell(_shown(sample))

    options = Options(settings=case.settings, framework="buffer")
    curve = measure_curve(
        case.name,
        options,
        steps=CONNECTIONS,
        seconds=_STEP_SECONDS,
        bytes_max=_STEP_BYTES,
        on_sample=on_sample,
    )
    return judged(case.name, case.checkpoint.bytes, curve)


def judged(name: str, size: int, curve: Curve) -> Check:
    """What a measurement means for a model."""
    if not curve.most or not curve.each:
        hint = f"try it again, and without the pressure of other loads: coldstream load {name}"
        return Check(name="speed", state="fail", found=f"nothing came in {_STEP_SECONDS:.0f} s", hint=hint)
    gpus = detect_gpus(hardware.gpus())
    prediction = predict(
        size,
        path_to_bucket(NetworkPath(), curve),
        connections=curve.connections,
        copies_bytes_per_second=gpus.gpu.copy_bytes_per_second * gpus.count if gpus else None,
    )
    rates = "   ".join(_shown(sample) for sample in curve.samples)
    found = f"{rates}   -> about {format_seconds(prediction.seconds)} for {format_bytes(size)}"
    if size < _TELLING_BYTES:
        found += "; too small a model to tell more"
    if prediction.seconds > _LOAD_SECONDS_MAX:
        return Check(
            name="speed",
            state="warn",
            found=f"{found}: no cold start within a minute, {prediction.limited_by}",
            hint=f"a machine with a faster network, nearer to the bucket; see: coldstream tune {name} --measure",
        )
    return Check(name="speed", state="ok", found=found)


def _shown(sample: Sample) -> str:
    return f"{sample.connections}: {format_rate(sample.bytes_per_second, 1)}"
