"""Starts that ended before they were over."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coldstream.engines.vllm.vllm_log import read_line
from coldstream.errors import IntegrityError
from coldstream.telemetry.timeline.phases import PHASE_KINDS, phases_of
from coldstream.telemetry.timeline.recorder import Exit, Recorder
from coldstream.telemetry.timeline.start_record import Timeline, parse
from coldstream.telemetry.timeline.timeline_store import ENDED_KEPT, Timelines
from coldstream.telemetry.timeline.timeline_text import summary_text
from tests.unit.telemetry.timeline.logs import COMPILED_ON_CPU, CUDA_COLD
from tests.unit.telemetry.timeline.starts import BEGAN, Report, finished, streamed


def ended(*lines: tuple[float, str], at: float = 150.0, **more: Any) -> Timeline:
    recorder = Recorder(100.0, read_line)
    recorder.mark("spawned", 101.0)
    for when, line in lines:
        recorder.line(line, 100.0 + when)
    exited = {"at": 100.0 + at, "code": 1}
    given = {name: more.pop(name) for name in ("code", "signal", "cancelled") if name in more}
    return finished(recorder, exited=Exit(**{**exited, **given}), **more)


def until(lines: tuple[tuple[float, str], ...], words: str) -> tuple[tuple[float, str], ...]:
    """Of a log, what comes before and with the line that holds these words."""
    place = next(index for index, (_, line) in enumerate(lines) if words in line)
    return lines[: place + 1]


@pytest.mark.parametrize(
    ("log", "last", "phase"),
    [
        (COMPILED_ON_CPU, "non-default args", "config"),
        (COMPILED_ON_CPU, "Initializing a V1", "worker spawn"),
        (COMPILED_ON_CPU, "Starting to load", "model init"),
        (COMPILED_ON_CPU, "Initializing model took", "weights"),
        (COMPILED_ON_CPU, "Loading weights took", "engine init"),
        (CUDA_COLD, "Available KV cache", "warm-up"),
        (COMPILED_ON_CPU, "init engine (", "API ready"),
    ],
)
def test_the_phase_that_it_ended_in(log: tuple[tuple[float, str], ...], last: str, phase: str) -> None:
    timeline = ended(*until(log, last))
    assert timeline.ended is not None
    assert timeline.ended.phase == phase
    assert timeline.phases[-1].name == phase
    assert timeline.phases[-1].stop == timeline.ended.seconds == timeline.seconds == 150.0
    assert timeline.ready_seconds is None
    assert timeline.outcome == "failed"


def test_without_a_line_of_vllm_s_that_is_said() -> None:
    timeline = ended()
    assert [phase.name for phase in timeline.phases] == ["resolve", "api import"]
    assert "vLLM had printed nothing" in timeline.phases[-1].note


def test_every_phase_has_a_name_wherever_it_ends() -> None:
    marks: dict[str, float] = {}
    for number, kind in enumerate(PHASE_KINDS, start=1):
        marks[kind.mark] = float(number)
        phases = phases_of(marks, ended=number + 0.5)
        assert phases[-1].stop == number + 0.5
        assert all(after.start == before.stop for before, after in itertools.pairwise(phases))


def test_after_it_answered_it_is_the_first_token() -> None:
    recorder = Recorder(100.0, read_line)
    recorder.mark("spawned", 101.0)
    recorder.mark("ready", 110.0)
    timeline = finished(recorder, exited=Exit(at=112.0, code=139, signal="SIGSEGV"))
    assert timeline.ready_seconds == 10.0
    assert timeline.ended is not None
    assert timeline.ended.phase == "first token"


def test_what_is_written_is_read_and_older_readers_refuse_it() -> None:
    timeline = ended(code=137, signal="SIGKILL")
    data = timeline.serialize()
    assert parse(data, where="here") == timeline
    document = json.loads(data)
    assert document["format"] == 2
    assert document["ended"] == {
        "outcome": "failed",
        "seconds": 150.0,
        "phase": "api import",
        "exit_code": 137,
        "signal": "SIGKILL",
        "reason": None,
    }
    assert document["outcome"] == "failed"
    assert json.loads(streamed().serialize())["outcome"] == "ok"
    with pytest.raises(IntegrityError, match="neither answered nor ended"):
        parse(json.dumps({**document, "ended": None}).encode(), where="here")


@pytest.mark.parametrize(
    ("more", "first", "second"),
    [
        ({}, "failed after 150.0 s, in api import: exit code 1", "see vLLM's own messages"),
        ({"code": 137, "signal": "SIGKILL"}, "failed after 150.0 s, in api import: ended by SIGKILL", "out-of-memory"),
        ({"code": 143, "cancelled": True}, "cancelled after 150.0 s, in api import: exit code 143", "Ctrl-C"),
    ],
)
def test_how_it_is_shown(more: dict[str, Any], first: str, second: str) -> None:
    timeline = ended(**more)
    lines = summary_text(timeline)
    assert lines[0] == first
    assert second in "\n".join(lines[1:])


def test_what_is_known_of_the_weights_is_said() -> None:
    assert any("limited by the bucket" in line for line in ended(report=Report()).verdict)
    assert not any("bottleneck: " in line for line in ended(report=Report()).verdict)


def test_those_that_failed_push_no_others_out(tmp_path: Path) -> None:
    kept = Timelines(tmp_path)
    good = kept.keep(streamed())
    for number in range(ENDED_KEPT + 5):
        last = kept.keep(ended(began_at=BEGAN + timedelta(minutes=number + 1)))
    assert good.run in kept.runs()
    assert last.run == kept.runs()[0]
    assert len(kept.runs()) == ENDED_KEPT + 1
