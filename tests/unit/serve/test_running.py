"""When vLLM is asked for its first token."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import cast

import pytest

from coldstream.loading import Options
from coldstream.serve import Request
from coldstream.serve.endpoint import Endpoint
from coldstream.serve.preparing import Prepared
from coldstream.serve.running import _ask_first, _Start
from coldstream.timeline import Recorder

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
        request=Request(uri="org/m", arguments=arguments, loader="default", options=Options()),
        ready=cast("Prepared", None),
        recorder=recorder,
        began=began,
        began_at=datetime.now(timezone.utc),
    )
    endpoint = Asked(key=key)
    _ask_first(cast("Endpoint", endpoint), start)
    return endpoint.names, recorder


@pytest.mark.parametrize(("key", "lines"), [(None, ()), ("sesame", (INITIALISED,))])
def test_it_is_asked(key: str | None, lines: tuple[str, ...]) -> None:
    names, recorder = asked(key=key, lines=lines)
    assert names == ["org/m"]
    assert "first token" in recorder.marks


def test_a_key_is_sent_to_nobody_who_may_not_be_vllm() -> None:
    names, recorder = asked(key="sesame", lines=())
    assert names == []
    assert "first token" not in recorder.marks


def test_by_the_name_that_the_user_chose() -> None:
    names, _ = asked(key=None, lines=(), arguments=("--served-model-name", "mine", "other"))
    assert names == ["mine"]
