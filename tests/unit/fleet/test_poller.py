"""Questions beside a wait: one at a time, with a pause, and never waited for."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from coldstream.fleet.launches import Poller


def news(watch: Poller[int]) -> int:
    """The next answer."""
    until = time.monotonic() + 30
    while (found := watch.poll()) is None:
        assert time.monotonic() < until
        time.sleep(0.002)
    return found


def test_an_answer_is_told_once() -> None:
    asked: list[float] = []

    def ask() -> int:
        asked.append(time.monotonic())
        return len(asked)

    watch = Poller(ask, pause_seconds=0.05)
    assert watch.poll() is None
    assert [news(watch), news(watch), news(watch)] == [1, 2, 3]
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(asked))
    rare = Poller(ask, pause_seconds=1000)
    assert news(rare) == 4
    assert [rare.poll() for _ in range(10)] == [None] * 10
    assert len(asked) == 4


def test_nobody_waits_for_an_answer_and_no_question_overtakes_another() -> None:
    answered, running, asked = threading.Event(), threading.Event(), []

    def ask() -> int:
        asked.append(1)
        running.set()
        assert answered.wait(30)
        return 5

    watch = Poller(ask, pause_seconds=0.0)
    assert watch.poll() is None
    assert running.wait(30)
    assert [watch.poll() for _ in range(100)] == [None] * 100
    assert len(asked) == 1
    answered.set()
    assert news(watch) == 5


def test_what_a_question_raises_is_raised_once_and_asked_again() -> None:
    failures = [ValueError("no")]

    def ask() -> int:
        if failures:
            raise failures.pop()
        return 1

    watch = Poller(ask, pause_seconds=0.0)
    with pytest.raises(ValueError, match="no"):
        news(watch)
    assert news(watch) == 1


def test_a_question_under_way_keeps_no_process_alive() -> None:
    answered, running = threading.Event(), threading.Event()

    def ask() -> int:
        running.set()
        answered.wait(30)
        return 1

    Poller(ask, pause_seconds=0.0).poll()
    assert running.wait(30)
    assert {thread.daemon for thread in threading.enumerate() if thread.name == "coldstream-poll"} == {True}
    answered.set()
