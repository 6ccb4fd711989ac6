"""How far a launch has come, and where its time went."""

from __future__ import annotations

import pytest

from coldstream.fleet.launch_run import STEP_TEXTS, LaunchPhase, Steps
from coldstream.telemetry.timeline.phases import Phase, Span
from coldstream.telemetry.timeline.start_record import ReadyLine

NODE = (
    (3.0, "Launching a spot job that does not automatically recover from preemptions. To get automatic recovery, use"),
    (4.0, "⚙︎ Launching on AWS us-east-1 (us-east-1a)."),
    (30.0, "⚙︎ Launching on AWS us-west-2 (us-west-2b)."),
    (50.0, "└── Instance is up."),
    (60.0, "✓ Cluster launched: 'm'.  View logs: sky logs --provision m"),
    (65.0, "⚙︎ Job submitted, ID: 12"),
    (66.0, "Job ID: 12"),
)
SERVICE = (
    (1.0, "Launching controller for 'm'..."),
    (20.0, "⚙︎ Launching serve controller on AWS us-east-1 (us-east-1a)."),
    (90.0, "✓ Cluster launched: 'sky-serve-controller-1'.  View logs: …"),
    (100.0, "✓ Service is spinning up and replicas will be ready shortly."),
)
READY = ReadyLine(
    url="http://127.0.0.1:8000",
    run="20261124-102001-m",
    model="org/m",
    phases=(Phase(name="imports", start=0.0, stop=9.0, note="of vLLM"),),
    spans=(Span(name="stream", start=1.0, stop=4.0),),
    ready_seconds=40.0,
    first_token_seconds=None,
)


def after(lines: tuple[tuple[float, str], ...]) -> tuple[Steps, list[str]]:
    steps = Steps()
    return steps, [name for now, text in lines if (name := steps.line(text, now))]


def summed(phases: list[LaunchPhase]) -> float:
    return sum(phase.seconds for phase in phases if not phase.of_start)


def test_a_node() -> None:
    steps, began = after(NODE)
    assert began == ["provision", "files", "submitted"]
    assert steps.job == 12
    phases = steps.phases(kind="node", ended=67.0, ready=200.0, start=READY)
    assert [(phase.name, phase.seconds, phase.of_start) for phase in phases] == [
        ("ask", 4.0, False),
        ("provision", 56.0, False),
        ("files", 5.0, False),
        ("setup", 95.0, False),
        ("start", 40.0, False),
        ("imports", 9.0, True),
        ("stream", 3.0, True),
    ]
    assert phases[-2].note == "of vLLM"
    assert summed(phases) == 200.0


def test_a_start_whose_ready_line_is_missing() -> None:
    phases = after(NODE)[0].phases(kind="node", ended=67.0, ready=200.0, start=None)
    assert [phase.name for phase in phases] == ["ask", "provision", "files", "start"]
    assert phases[-1].note == "setup and start, on the node"
    assert summed(phases) == 200.0


def test_a_service() -> None:
    steps, began = after(SERVICE)
    assert began == ["provision", "files", "submitted"]
    assert steps.job is None
    phases = steps.phases(kind="service", ended=101.0, ready=300.0, start=READY)
    assert [(phase.name, phase.seconds) for phase in phases[:3]] == [
        ("controller", 100.0),
        ("replica", 160.0),
        ("start", 40.0),
    ]
    assert summed(phases) == 300.0


def test_a_job() -> None:
    steps, _ = after(((5.0, "⚙︎ Launching on AWS us-east-1."), (9.0, "⚙︎ Job submitted, ID: 7")))
    assert steps.job == 7
    assert summed(steps.phases(kind="job", ended=10.0, ready=40.0, start=None)) == 40.0


@pytest.mark.parametrize("kind", ["node", "service", "job"])
def test_nothing_that_is_understood(kind: str) -> None:
    steps, began = after(((1.0, "something else"), (2.0, "that is on AWS")))
    assert began == []
    phases = steps.phases(kind=kind, ended=10.0, ready=60.0, start=READY)
    assert summed(phases) == 60.0
    assert min(phase.seconds for phase in phases) >= 0


def test_a_node_whose_start_is_longer_than_we_waited() -> None:
    # It was up before; the log is of its first start.
    phases = after(NODE)[0].phases(kind="node", ended=67.0, ready=80.0, start=READY)
    assert {phase.name: phase.seconds for phase in phases}["start"] == 15.0
    assert summed(phases) == 80.0


def test_words() -> None:
    assert STEP_TEXTS["provision"] == "the cloud is starting the machine"
    assert "then vLLM" in STEP_TEXTS["submitted"]
