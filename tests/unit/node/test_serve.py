"""What `serve` does beside the engine: when it counts as ready, its first token, its exit code and its loads."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from coldstream.engines.vllm.vllm_engine import VllmEngine
from coldstream.engines.vllm.vllm_log import FailureReason, read_line
from coldstream.errors import ColdstreamError
from coldstream.loading.options import Options
from coldstream.model.names import Uri
from coldstream.node import listener
from coldstream.node import serve as module
from coldstream.node.adapter_service import AdapterFetch
from coldstream.node.child import Child
from coldstream.node.http_endpoint import EngineEndpoint
from coldstream.node.inference_engine import ServeRequest
from coldstream.node.serve import _exit_code, _Start
from coldstream.node.serve_preparation import PreparedStart
from coldstream.telemetry.metrics.meter import Meter
from coldstream.telemetry.timeline.recorder import Recorder
from coldstream.telemetry.timeline.timeline_store import Timelines
from tests.unit.node.test_http_endpoint import at, serving

INITIALISED = "[core.py:402] init engine (profile, create kv cache, warmup model) took 2.1 s"


@dataclass
class FakeEndpoint:
    """An endpoint that records the models whose first token is requested."""

    names: list[str] = field(default_factory=list)

    def first_token(self, name: str) -> float | None:
        self.names.append(name)
        return time.monotonic()

    def first_token_figures(self) -> dict[str, float]:
        return {"time_to_first_token_seconds": 0.25}


def start_of(recorder: Recorder, *arguments: str, program: Path, prepared: object = None) -> _Start:
    options = Options()
    request = ServeRequest(
        uri=Uri("org/m"), arguments=arguments, loader="default", options=options, program=str(program)
    )
    return _Start(
        request=request,
        engine=VllmEngine(request),
        prepared=cast("PreparedStart", prepared),
        recorder=recorder,
        failure_log=FailureReason(),
        timelines=Timelines(Path("/nowhere")),
        began=0.0,
        meter=Meter(),
        say=lambda _: None,
        on_started=lambda _: None,
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin/vllm"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def timed(program: Path, *arguments: str) -> tuple[list[str], Recorder]:
    recorder = Recorder(time.monotonic(), read_line)
    endpoint = FakeEndpoint()
    start_of(recorder, *arguments, program=program)._time_first_token(cast("EngineEndpoint", endpoint))
    return endpoint.names, recorder


def test_the_first_token_is_timed(program: Path) -> None:
    names, recorder = timed(program)
    assert names == ["org/m"]
    assert "first token" in recorder.marks


def test_only_its_own_processes_count_as_ready(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server on the port answers too; its word does not count, whatever vLLM's lines say."""
    recorder = Recorder(time.monotonic(), read_line)
    start = start_of(recorder, program=program)
    with serving() as server, subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        endpoint = at(server)
        # In a container the leader of the tests' own session may be outside it, where it has no number.
        sessions = {os.getpid(): [os.getpid()], other.pid: [other.pid]}
        monkeypatch.setattr(module, "session", sessions.__getitem__)
        ours, theirs = (cast("Child", SimpleNamespace(pid=pid)) for pid in sessions)
        try:
            assert start._is_up(ours, endpoint)
            recorder.line(INITIALISED, time.monotonic())
            assert not start._is_up(theirs, endpoint)
            # Where the system does not tell, the line does.
            monkeypatch.setattr(listener, "_listening", lambda _: set())
            assert start._is_up(theirs, endpoint)
            assert not start_of(Recorder(0.0, read_line), program=program)._is_up(theirs, endpoint)
        finally:
            other.kill()
    assert not start._is_up(ours, endpoint)


def test_the_first_token_is_requested_by_the_name_that_the_user_chose(program: Path) -> None:
    assert timed(program, "--served-model-name", "mine", "other")[0] == ["mine"]


@pytest.mark.parametrize(
    ("code", "flag", "signalled", "cut_off_by", "expected"),
    [
        (
            0,
            "--port=1",
            0,
            None,
            1,
        ),  # its engine died, and its server stopped in good order; or it never began to serve
        (0, "--port=1", 1, None, 0),
        (0, "--help", 0, None, 0),
        (0, "--help=page", 0, None, 0),
        (0, "--headless", 0, None, 0),  # the API was on another node
        (2, "--help", 0, None, 2),
        (3, "--port=1", 0, None, 3),
        (137, "--port=1", 2, None, 137),
        (137, "--port=1", 1, signal.SIGTERM, 143),
        (0, "--port=1", 1, signal.SIGINT, 130),
    ],
)
def test_a_supervisor_is_told_by_the_exit_code(
    code: int, flag: str, signalled: int, cut_off_by: int | None, expected: int, program: Path
) -> None:
    child = SimpleNamespace(code=code, signalled=signalled, cut_off_by=cut_off_by)
    start = start_of(Recorder(0.0, read_line), "--host", "127.0.0.1", flag, program=program)
    assert _exit_code(cast("Child", child), start.engine) == expected


@dataclass
class Loaded:
    """A load of the start that is over."""

    began: float
    received: int
    fails: bool = False

    def wait(self, _seconds: float) -> object:
        if self.fails:
            raise ColdstreamError("cut off")
        return SimpleNamespace(name="org/draft", bytes=100, received_bytes=self.received)

    def steps(self) -> dict[str, tuple[float, float]]:
        return {"manifest": (self.began, self.began + 1), "stream": (self.began + 1, self.began + 4)}


def test_each_engine_s_load_is_reported_and_the_first_one_is_the_start_s(program: Path) -> None:
    recorder = Recorder(0.0, read_line)
    loads = (Loaded(0.0, 100), Loaded(5.0, 0))
    prepared = SimpleNamespace(service=SimpleNamespace(of_start=loads))
    start = start_of(recorder, program=program, prepared=prepared)
    reports, stop = start._load_reports()
    assert [report.received_bytes for report in reports] == [100, 0]
    assert stop == 4.0
    assert [span.name for span in recorder._spans] == ["manifest", "stream", "stream 2"]
    assert recorder._spans[2].note == "engine 2: 0 B of 100 B over the network"
    loads[0].fails = True
    assert start._load_reports() == ((), None)


def test_draft_models_are_reported_apart_and_one_that_failed_is_left_out(program: Path) -> None:
    recorder = Recorder(0.0, read_line)
    loads = (Loaded(6.0, 100), Loaded(7.0, 0, fails=True))
    prepared = SimpleNamespace(service=SimpleNamespace(of_start=(), drafts_of_start=loads))
    start = start_of(recorder, program=program, prepared=prepared)
    assert [report.received_bytes for report in start._draft_reports()] == [100]
    (span,) = recorder._spans
    assert (span.name, span.start, span.stop) == ("draft", 7.0, 10.0)
    assert span.note == "org/draft: 100 B of 100 B over the network"
    assert start_of(recorder, program=program, prepared=SimpleNamespace(service=None))._draft_reports() == ()


@pytest.mark.parametrize(("names", "of"), [(["org/a"], "org/a"), (["org/a", "org/b"], "2 adapters")])
def test_the_adapters_of_the_start_are_one_span(names: list[str], of: str, program: Path) -> None:
    recorder = Recorder(0.0, read_line)
    fetches = [
        AdapterFetch(name=name, began=1.0 + place, ended=3.0 + place, bytes=100, received_bytes=100 * (not place))
        for place, name in enumerate(names)
    ]
    service = SimpleNamespace(adapters=SimpleNamespace(of_start=fetches))
    start_of(recorder, program=program, prepared=SimpleNamespace(service=service))._draw_adapters()
    (span,) = recorder._spans
    assert (span.name, span.start, span.stop) == ("adapters", 1.0, 2.0 + len(names))
    assert span.note == f"{of}: 100 B of {100 * len(names)} B over the network"
    for nothing in (None, SimpleNamespace(adapters=None), SimpleNamespace(adapters=SimpleNamespace(of_start=[]))):
        start_of(recorder, program=program, prepared=SimpleNamespace(service=nothing))._draw_adapters()
    assert len(recorder._spans) == 1


def test_the_reason_of_a_failed_start_may_be_an_adapter(program: Path) -> None:
    error = ColdstreamError("org/a: [0, 8) is not what the manifest says", hint="run: coldstream verify --deep org/a")
    service = SimpleNamespace(failures=[], loads=(), adapters=SimpleNamespace(failures_of_start=[error]))
    start = start_of(Recorder(0.0, read_line), program=program, prepared=SimpleNamespace(service=service))
    start.failure_log.line("ValueError: org/a: [0, 8) is not what the manifest says")
    assert start._failure() is error
    service.adapters = None
    assert start._failure() is not error
