"""What a start was spent on, from vLLM's lines."""

from __future__ import annotations

from coldstream.serve.timeline import Timeline, hidden_share, phases_of

# As vLLM 0.32 prints them.
LINES = (
    (10.0, "(APIServer pid=7) INFO 11-24 07:46:15 [model.py:617] Resolved architecture: LlamaForCausalLM"),
    (
        20.0,
        "(EngineCore pid=8) INFO 11-24 07:46:25 [core.py:116] Initializing a V1 LLM engine (v0.32.0) with config:",
    ),
    (30.0, "(Worker pid=9) INFO 11-24 07:46:35 [cpu_model_runner.py:69] Starting to load model /x..."),
    (30.5, "(Worker pid=9) INFO 11-24 07:46:35 [base_loader.py:82] Initializing model took 0.239175 seconds"),
    (31.0, "(Worker pid=9) INFO 11-24 07:46:36 [default_loader.py:501] Loading weights took 0.42 seconds"),
    (33.0, "(EngineCore pid=8) INFO [core.py:402] init engine (profile, create kv cache, warmup model) took 0.72 s"),
)


def test_lines_become_phases() -> None:
    timeline = Timeline(100.0)
    timeline.mark("spawned", 101.0)
    for when, line in LINES:
        timeline.line(line, 100.0 + when)
        timeline.line(line, 100.0 + when + 5)  # said again by another rank
    timeline.mark("ready", 134.5)
    phases = timeline.phases()
    assert [(phase.name, phase.stop) for phase in phases] == [
        *(("resolve", 1.0), ("api import", 10.0), ("engine import", 20.0), ("worker import", 30.0)),
        *(("model", 30.5), ("weights", 31.0), ("engine", 33.0), ("server", 34.5)),
    ]
    assert sum(phase.seconds for phase in phases) == 34.5


def test_a_phase_whose_line_is_missing_is_part_of_the_next() -> None:
    phases = phases_of({"spawned": 1.0, "ready": 9.0})
    assert [(phase.name, phase.start, phase.stop) for phase in phases] == [("resolve", 0.0, 1.0), ("server", 1.0, 9.0)]


def test_how_much_of_the_stream_was_hidden() -> None:
    assert hidden_share(5.0, {"worker": 30.0, "created": 30.5}) == 1.0
    assert hidden_share(61.0, {"worker": 30.0, "created": 30.5}) == 0.5
    assert hidden_share(5.0, {}) is None
