"""How fast the bucket gives the model to this machine, and what that means for its load."""

from __future__ import annotations

import sys

from coldstream.loading.options import Options
from coldstream.machine import hardware
from coldstream.operate.doctor.case import Case, DoctorCheck
from coldstream.operate.probe import Check, fail, ok, skipped, warn
from coldstream.tune.connection_curve import Curve, Sample, measure_curve
from coldstream.tune.gpus import detect_gpus
from coldstream.tune.predict import NetworkPath, path_to_bucket, predict
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
        return skipped("streaming needs Linux")

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
        hint = f"retry without other loads running: coldstream load {name}"
        return fail(f"no data arrived in {_STEP_SECONDS:.0f} s", hint=hint)
    gpus = detect_gpus(hardware.gpus())
    prediction = predict(
        size,
        path_to_bucket(NetworkPath(), curve),
        connections=curve.connections,
        copies_bytes_per_second=gpus.gpu.copy_bytes_per_second * gpus.count if gpus else None,
    )
    rates = "   ".join(_shown(sample) for sample in curve.samples)
    detail = f"{rates}   -> about {format_seconds(prediction.seconds)} for {format_bytes(size)}"
    if size < _TELLING_BYTES:
        detail += "; the model is too small to measure more"
    if prediction.seconds > _LOAD_SECONDS_MAX:
        return warn(
            f"{detail}: a cold start takes more than a minute, {prediction.limited_by}",
            hint=f"use a faster network nearer to the bucket; see: coldstream tune {name} --measure",
        )
    return ok(detail)


def _shown(sample: Sample) -> str:
    return f"{sample.connections}: {format_rate(sample.bytes_per_second, 1)}"


CHECKS = (DoctorCheck(name="speed", run=speed, needs=("model", "chunk hashes"), slow=True),)
