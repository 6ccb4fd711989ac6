"""The streamer is killed between two messages of the protocol: whatever waits for it gets one clear error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import coldstream
from coldstream.engine import attach, messages
from coldstream.errors import ColdstreamError
from tests.checkpoints import sharded_checkpoint
from tests.e2e.command import Command
from tests.servers.ranged import RangedServer

# What follows is progress, of which there is more or less.
STEPS_MAX = 7


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    files = {f"/m/{path}": content for path, content in sharded_checkpoint(shards=2, layers=2).items()}
    with RangedServer(files) as server:
        yield f"{server.url}/m"


class Killer:
    """Kills the streamer before the `nth` word that its owner says to it or hears from it; 0: never."""

    def __init__(self) -> None:
        self.nth = self.count = 0
        self.processes: list[subprocess.Popen[bytes]] = []

    def arm(self, nth: int) -> None:
        self.nth, self.count = nth, 0
        self.processes.clear()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.nth and self.processes and self.processes[-1].returncode is None:
                os.kill(self.processes[-1].pid, signal.SIGKILL)
                # Where the owner's thread has waited for it already, it is gone too.
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, self.processes[-1].pid, os.WEXITED | os.WNOWAIT)
            return function(*args, **options)

        return wrapped


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Killer]:
    killer = Killer()
    start = subprocess.Popen

    def started(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        killer.processes.append(start(*args, **options))
        return killer.processes[-1]

    monkeypatch.setattr(attach.subprocess, "Popen", started)  # type: ignore[attr-defined]
    monkeypatch.setattr(messages.Frames, "send", killer.before(messages.Frames.send))
    monkeypatch.setattr(messages, "receive_descriptors", killer.before(messages.receive_descriptors))
    return killer


def stream(uri: str) -> None:
    for _ in coldstream.stream(uri, framework="buffer", cache=False):
        pass


def share(uri: str) -> None:
    with coldstream.share(uri, consumers=1, cache=False) as shared:
        for _ in coldstream.attach(shared.address, framework="buffer"):
            pass
        shared.wait()


@pytest.mark.parametrize("load", [stream, share])
def test_killed_at_any_step_it_is_one_error(load: Callable[[str], None], uri: str, killer: Killer) -> None:
    steps = 0
    for nth in range(1, STEPS_MAX):
        killer.arm(nth)
        try:
            load(uri)
        except ColdstreamError as exc:
            assert "the streaming process" in exc.message
            assert exc.hint
            assert type(exc) is ColdstreamError
            steps += 1
    # The settings, the plan, the consumer, and its answer.
    assert steps >= 4


def test_the_command_says_so_on_both_streams(uri: str, killer: Killer, tmp_path: Path) -> None:
    """coldstream load URL --json, its streamer killed before it is told anything"""
    killer.arm(1)
    out, err = Command(None, "", cwd=tmp_path).run("load", uri, "--no-cache", "--json", code=1)
    assert json.loads(out)["error"] == {
        "kind": "coldstream",
        "message": f"{uri}: the streaming process was killed (SIGKILL)",
        "hint": "did the machine run out of memory? see: dmesg | grep -i 'out of memory'",
        "exit_code": 1,
    }
    assert err.splitlines()[0] == f"error: {uri}: the streaming process was killed (SIGKILL)"


def test_a_streamer_that_cannot_be_imported_is_a_clear_error(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "_START", attach._START.replace("coldstream.engine.streamer", "coldstream.no_such"))
    with pytest.raises(ColdstreamError, match="the streaming process did not start: ModuleNotFoundError"):
        stream(uri)
