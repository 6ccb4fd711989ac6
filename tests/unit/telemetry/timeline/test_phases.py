"""From vLLM's lines to phases with names, and to what is honestly unnamed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.telemetry.timeline.phases import (
    PHASE_KINDS,
    Phase,
    hidden_share,
    named_share,
    phases_of,
    waited_seconds,
)
from tests.unit.telemetry.timeline import logs
from tests.unit.telemetry.timeline.starts import finished, recorded


def shown(phases: list[Phase] | tuple[Phase, ...]) -> list[tuple[str, float, float]]:
    return [(phase.name, round(phase.start, 3), round(phase.stop, 3)) for phase in phases]


def names(lines: logs.Lines, *, ready: float) -> list[str]:
    return [phase.name for phase in finished(recorded(lines, ready=ready)).phases]


def test_a_compiled_start_on_the_cpu() -> None:
    timeline = finished(recorded(logs.COMPILED_ON_CPU, ready=110.0, token=110.5))
    assert shown(timeline.phases) == [
        ("resolve", 0.0, 1.0),
        ("api import", 1.0, 13.0),
        ("config", 13.0, 26.0),
        ("engine spawn", 26.0, 35.0),
        ("worker spawn", 35.0, 44.1),
        ("model init", 44.1, 45.0),
        ("weights", 45.0, 45.2),
        ("set-up", 45.2, 46.0),
        ("compile", 46.0, 107.0),
        ("KV cache", 107.0, 107.2),
        ("warm-up", 107.2, 108.0),
        ("API ready", 108.0, 110.0),
        ("first token", 110.0, 110.5),
    ]
    assert timeline.named_share == 1.0


def test_an_eager_start_has_no_compilation() -> None:
    found = names(logs.EAGER, ready=50.0)
    assert found[-3:] == ["weights", "engine init", "API ready"]


@pytest.mark.parametrize("lines", [logs.CUDA_COLD, logs.CUDA_AOT, logs.CUDA_PIECES])
def test_a_start_on_cuda(lines: logs.Lines) -> None:
    assert names(lines, ready=70.0) == [
        *("resolve", "api import", "config", "engine spawn", "worker spawn", "model init", "weights", "post-load"),
        *("set-up", "compile", "profile", "KV cache", "graph capture", "warm-up", "API ready"),
    ]


def test_what_is_loaded_ahead_of_time_began_as_long_ago_as_it_says() -> None:
    timeline = finished(recorded(logs.CUDA_AOT, ready=70.0))
    found = next(phase for phase in timeline.phases if phase.name == "compile")
    assert (round(found.start, 3), round(found.stop, 3)) == (45.0, 47.1)
    assert found.note == "loaded from the caches"
    assert timeline.compile_caches == "loaded"


def without(lines: logs.Lines, *words: str) -> logs.Lines:
    return tuple((when, line) for when, line in lines if not any(word in line for word in words))


def test_where_one_mark_is_missing_two_phases_are_one_with_both_names() -> None:
    found = names(without(logs.COMPILED_ON_CPU, "Initializing model took"), ready=110.0)
    assert found[4:7] == ["worker spawn", "model init + weights", "set-up"]
    # Another loader says nothing of its weights.
    assert "weights + post-load" in names(without(logs.CUDA_COLD, "Loading weights took"), ready=70.0)
    assert "compile + KV cache" in names(without(logs.COMPILED_ON_CPU, "Warming up done"), ready=110.0)


def test_a_stretch_of_which_nothing_is_said_has_no_name() -> None:
    timeline = finished(recorded((), ready=9.0))
    assert shown(timeline.phases) == [("resolve", 0.0, 1.0), ("unnamed", 1.0, 9.0)]
    assert timeline.named_share == pytest.approx(1 / 9)
    assert timeline.unnamed_seconds == 8.0
    assert "unknown" in timeline.verdict[1]


def test_of_several_ranks_the_first_begins_and_the_last_ends() -> None:
    lines: list[tuple[float, str]] = []
    for when, line in logs.CUDA_COLD:
        lines.append((when, line))
        if "Worker_TP0" in line:
            lines.append((when + 0.3, line.replace("TP0 pid=9", "TP1 pid=10")))
    found = {phase.name: phase for phase in finished(recorded(sorted(lines), ready=70.0)).phases}
    assert found["model init"].start == pytest.approx(40.0)
    assert found["weights"].start == pytest.approx(41.0)
    assert found["weights"].stop == pytest.approx(43.3)
    assert found["compile"].stop == pytest.approx(57.3)
    assert found["graph capture"].stop == pytest.approx(66.3)


def test_what_is_said_after_it_answers_is_of_no_start() -> None:
    recorder = recorded(logs.EAGER, ready=50.0)
    recorder.line("(Worker pid=9) INFO [default_loader.py:501] Loading weights took 9.00 seconds", 190.0)
    assert recorder.marks["weights"] == pytest.approx(45.2)


def test_a_line_that_comes_late_moves_nothing_before_the_start_or_past_its_end() -> None:
    recorder = recorded(logs.EAGER, ready=46.0)
    phases = finished(recorder).phases
    assert phases[-1].stop == pytest.approx(46.0)
    assert all(phase.stop <= 46.0 for phase in phases)


@given(
    st.dictionaries(st.sampled_from([kind.mark for kind in PHASE_KINDS]), st.floats(0, 1000), min_size=1),
    st.sampled_from(["loaded", "compiled", "none", "unknown"]),
)
def test_phases_touch_each_other_whatever_marks_there_are(marks: dict[str, float], compiled: str) -> None:
    phases = phases_of(marks, compiled=compiled)
    stop = 0.0
    for phase in phases:
        assert phase.start == stop
        assert phase.stop > phase.start
        stop = phase.stop
    assert stop == max(marks.values())
    assert 0 <= named_share(phases) <= 1
    assert len({phase.name for phase in phases if phase.is_named}) == len([p for p in phases if p.is_named])


@given(st.integers(0, 2**32))
def test_lines_may_be_missing_or_doubled(seed: int) -> None:
    rng = random.Random(seed)
    lines = [line for line in logs.CUDA_COLD for _ in range(rng.choice((0, 1, 1, 2)))]
    phases = finished(recorded(lines, ready=70.0)).phases
    assert sum(phase.seconds for phase in phases) == pytest.approx(70.0)


def test_how_much_of_the_stream_was_hidden() -> None:
    marks = {"loading": 30.0, "created": 30.5, "weights": 62.0}
    assert hidden_share(1.0, 5.0, marks) == 1.0
    assert hidden_share(0.5, 60.5, marks) == 0.5
    assert hidden_share(40.0, 50.0, marks) == 0.0
    assert hidden_share(1.0, 5.0, {}) is None
    assert waited_seconds(5.0, marks) == 0.0
    assert waited_seconds(60.5, marks) == 30.0
    assert waited_seconds(5.0, {}) is None
