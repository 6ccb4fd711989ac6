"""When vLLM is asked for its first token."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import cast

import pytest

from coldstream.engines.vllm import serve_run
from coldstream.engines.vllm.endpoint import Endpoint
from coldstream.engines.vllm.failure_reason import FailureReason
from coldstream.engines.vllm.serve_preparation import Prepared
from coldstream.engines.vllm.serve_request import ServeRequest
from coldstream.engines.vllm.serve_run import _ask_first, _exit_code, _is_up, _Start, _streamed
from coldstream.errors import ColdstreamError
from coldstream.loading.options import Options
from coldstream.model.uri import Uri
from coldstream.node import listener
from coldstream.node.child import Child
from coldstream.telemetry.timeline.recorder import Recorder
from tests.unit.engines.vllm.test_endpoint import at, serving

INITIALISED = "[core.py:402] init engine (profile, create kv cache, warmup model) took 2.1 s"


@dataclass
class Asked:
    """An endpoint that notes what it is asked for."""

    key: str | None
    names: list[str] = field(default_factory=list)

    def first_token(self, name: str) -> float | None:
        self.names.append(name)
        return time.monotonic()

    def metrics(self) -> str:
        return 'vllm:time_to_first_token_seconds_sum{engine="0"} 0.25\n'


def asked(*, key: str | None, lines: tuple[str, ...], arguments: tuple[str, ...] = ()) -> tuple[list[str], Recorder]:
    began = time.monotonic()
    recorder = Recorder(began)
    for line in lines:
        recorder.line(line, time.monotonic())
    start = _Start(
        request=ServeRequest(uri=Uri("org/m"), arguments=arguments, loader="default", options=Options()),
        ready=cast("Prepared", None),
        recorder=recorder,
        reason=FailureReason(),
        began=began,
        began_at=datetime.now(timezone.utc),
    )
    endpoint = Asked(key=key)
    _ask_first(cast("Endpoint", endpoint), start)
    return endpoint.names, recorder


@pytest.mark.parametrize("key", [None, "sesame"])
def test_it_is_asked(key: str | None) -> None:
    names, recorder = asked(key=key, lines=())
    assert names == ["org/m"]
    assert "first token" in recorder.marks


def test_ready_is_believed_of_its_own_processes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server on the port answers too; its word does not count, whatever vLLM's lines say."""
    recorder = Recorder(time.monotonic())
    with serving() as server, subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        endpoint = at(server)
        # In a container the leader of the tests' own session may be outside it, where it has no number.
        sessions = {os.getpid(): [os.getpid()], other.pid: [other.pid]}
        monkeypatch.setattr(serve_run, "session", sessions.__getitem__)
        ours, theirs = (cast("Child", SimpleNamespace(pid=pid)) for pid in sessions)
        try:
            assert _is_up(endpoint, ours, recorder)
            recorder.line(INITIALISED, time.monotonic())
            assert not _is_up(endpoint, theirs, recorder)
            # Where the system does not tell, the line does.
            monkeypatch.setattr(listener, "_listening", lambda _: set())
            assert _is_up(endpoint, theirs, recorder)
            assert not _is_up(endpoint, theirs, Recorder(time.monotonic()))
        finally:
            other.kill()
    assert not _is_up(endpoint, ours, recorder)


def test_by_the_name_that_the_user_chose() -> None:
    names, _ = asked(key=None, lines=(), arguments=("--served-model-name", "mine", "other"))
    assert names == ["mine"]


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
    code: int, flag: str, signalled: int, cut_off_by: int | None, expected: int
) -> None:
    child = SimpleNamespace(code=code, signalled=signalled, cut_off_by=cut_off_by)
    assert _exit_code(cast("Child", child), ("--host", "127.0.0.1", flag)) == expected


@dataclass
class Loaded:
    """A load of the start that is over."""

    began: float
    received: int
    fails: bool = False

    def wait(self, _seconds: float) -> object:
        if self.fails:
            raise ColdstreamError("cut off")
        return SimpleNamespace(bytes=100, received_bytes=self.received)

    def steps(self) -> dict[str, tuple[float, float]]:
        return {"manifest": (self.began, self.began + 1), "stream": (self.began + 1, self.began + 4)}


def test_each_engine_s_load_is_reported_and_the_first_one_is_the_start_s() -> None:
    _, recorder = asked(key=None, lines=())
    loads = (Loaded(0.0, 100), Loaded(5.0, 0))
    start = cast(
        "_Start",
        SimpleNamespace(ready=SimpleNamespace(service=SimpleNamespace(of_start=loads)), began=0.0, recorder=recorder),
    )
    reports, stop = _streamed(start)
    assert [report.received_bytes for report in reports] == [100, 0]
    assert stop == 4.0
    assert [span.name for span in recorder._spans] == ["manifest", "stream", "stream 2"]
    assert recorder._spans[2].note == "engine 2: 0 B of 100 B over the network"
    loads[0].fails = True
    assert _streamed(start) == ((), None)
