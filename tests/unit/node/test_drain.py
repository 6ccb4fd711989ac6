"""What happens between a spot notice and the end of the machine."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

from coldstream.engines.vllm.endpoint import VllmEndpoint
from coldstream.node.drain import drain
from coldstream.node.spot_notice import SpotNotice


def metrics(running: int, waiting: int = 0) -> str:
    return (
        "# HELP vllm:num_requests_running Number\n"
        f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0\n'
        f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}.0\n'
        'vllm:num_requests_waiting_by_reason{reason="x"} 7.0\n'
    )


class FakeEndpoint(VllmEndpoint):
    said: ClassVar[list[str]] = []

    def metrics(self) -> str:
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


def drained(seconds: float, *said: str) -> tuple[list[str], int]:
    """(what was said, how many answers of the metrics were left)."""
    FakeEndpoint.said = list(said)
    lines: list[str] = []
    ended: list[bool] = []
    drain(
        SpotNotice(cloud="aws", action="terminate", seconds=seconds),
        FakeEndpoint(),
        None,
        name="vLLM",
        end=lambda: ended.append(True),
        over=threading.Event(),
        say=lines.append,
    )
    assert ended == [True]
    return lines, len(FakeEndpoint.said)


def test_it_waits_for_requests() -> None:
    lines, left = drained(120, metrics(2), metrics(1, 1), metrics(0))
    assert left == 1
    assert lines == ["warning: spot interruption by aws in 120 s (terminate): vLLM finishes its requests and exits"]


def test_it_does_not_wait_longer_than_there_is() -> None:
    began = time.monotonic()
    drained(8.5, metrics(5))
    assert time.monotonic() - began < 5
    assert "now" in drained(0, metrics(5))[0][0]


def test_a_vllm_that_has_ended_is_not_waited_for() -> None:
    over = threading.Event()
    over.set()
    ended: list[bool] = []
    FakeEndpoint.said = [metrics(5)]
    notice = SpotNotice(cloud="gcp", action="preempt", seconds=30)
    drain(notice, FakeEndpoint(), None, name="vLLM", end=lambda: ended.append(True), over=over, say=lambda _: None)
    assert ended == []
