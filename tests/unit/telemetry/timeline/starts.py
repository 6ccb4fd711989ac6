"""Starts that were recorded, for tests of what is done with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from coldstream.engines.vllm.vllm_log import read_line
from coldstream.telemetry.timeline.recorder import Recorder
from coldstream.telemetry.timeline.start_record import Machine, Timeline
from tests.unit.telemetry.timeline.logs import COMPILED_ON_CPU

BEGAN = datetime(2026, 11, 24, 10, 20, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a load reports."""

    bytes: int = 16_100_000_000
    received_bytes: int = 16_100_000_000
    cache_bytes: int = 0
    seconds: float = 8.0
    limit: str = "bucket"
    limited_by: str = "limited by the bucket: each connection gave 34.0 MB/s"
    verified: bool = True
    offline: bool = False


def recorded(lines: Iterable[tuple[float, str]], *, ready: float, token: float | None = None) -> Recorder:
    recorder = Recorder(100.0, read_line)
    recorder.mark("spawned", 101.0)
    for when, line in lines:
        recorder.line(line, 100.0 + when)
    recorder.mark("ready", 100.0 + ready)
    if token is not None:
        recorder.mark("first token", 100.0 + token)
    return recorder


def finished(recorder: Recorder, **more: Any) -> Timeline:
    given = {"model": "Qwen/Qwen3-8B", "began_at": BEGAN, "loader": "coldstream", "version": "0.32.0"}
    return recorder.finish(**{**given, "machine": Machine(device="NVIDIA H100", cores=26, gpus=1), **more})


def streamed(model: str = "Qwen/Qwen3-8B", **more: Any) -> Timeline:
    """A start with all that a timeline may hold."""
    recorder = recorded(COMPILED_ON_CPU, ready=110.0, token=110.5)
    recorder.span("manifest", 100.1, 100.4, note="the model's files and chunks")
    recorder.span("stream", 100.5, 108.5)
    recorder.span("bundle", 100.6, 101.0, note="caches restored")
    recorder.figures({"time_to_first_token_seconds": 0.4})
    bundle = {"state": "restored", "key": "7f3a", "bytes": 404_000, "seconds": 0.1, "built": None}
    return finished(recorder, model=model, report=Report(**more), bundle=bundle)
