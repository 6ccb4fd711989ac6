"""Results for the tests of this room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coldstream.operate.bench.contestant import BenchPlan, Contestant, Skipped
from coldstream.operate.bench.floors import Floors
from coldstream.operate.bench.result import BenchResult, BenchRow
from coldstream.operate.bench.runner import Run
from coldstream.tune.model_shape import Model
from tests.unit.operate.bench.test_contestant import SETTINGS, TARGET

BYTES = 1 << 30


def a_run(seconds: float) -> Run:
    return Run(
        seconds=seconds,
        cpu_seconds=2 * seconds,
        whole_seconds=seconds + 1,
        whole_cpu_seconds=2 * seconds + 1,
        memory_bytes=100 << 20,
    )


def a_row(name: str, *seconds: float, **more: Any) -> BenchRow:
    contestant = Contestant(name=name, label=name, command=(), environ={})
    return BenchRow(**{"contestant": contestant, "bytes": BYTES, "runs": [*map(a_run, seconds)], "same": True, **more})


def a_result(*, verified: bool = True, **more: Any) -> BenchResult:
    model = Model(name="org/<m>", bytes=BYTES, parameters=BYTES // 2, dtype="BF16")
    target = replace(TARGET, name="org/<m>", label="s3://models/org/m", model=model, verified=verified)
    values: dict[str, Any] = {
        "plan": BenchPlan(target=target, settings=SETTINGS, runs=3, drop_caches=False),
        "loads": (
            a_row("coldstream", 1.0, 1.5, 2.0, floors={"bucket": BYTES / 1.2, "link": 2 * BYTES}),
            a_row("runai", 3.0, 6.0, 9.0),
            a_row("boto3", 0.5, same=False),
            a_row("s3fs", failure="exit 1: no <way>"),
        ),
        "skipped": (Skipped(name="obstore", label="obstore", reason="obstore is not installed", hint="run: pip"),),
        "floors": Floors(bucket=BYTES / 1.2, bucket_connections=64, connection=1e8, core=1e9, cores=2, tls=True),
        "dropped": "nothing",
        "machine": "2 cores",
        "versions": {"coldstream": "1"},
        "began": "2026-11-24T10:00:00+00:00",
    }
    return BenchResult(**(values | more))
