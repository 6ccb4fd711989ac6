"""When vLLM is asked for its first token."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import cast

import pytest

from coldstream.loading import Options
from coldstream.serve import Request, listener
from coldstream.serve.child import Child
from coldstream.serve.endpoint import Endpoint
from coldstream.serve.preparing import Prepared
from coldstream.serve.running import _ask_first, _is_up, _Start
from coldstream.timeline import Recorder
from coldstream.uri import Uri
from tests.unit.serve.test_endpoint import at, serving

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
        request=Request(uri=Uri("org/m"), arguments=arguments, loader="default", options=Options()),
        ready=cast("Prepared", None),
        recorder=recorder,
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
        ours, theirs = (cast("Child", SimpleNamespace(pid=pid)) for pid in (os.getsid(0), other.pid))
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
