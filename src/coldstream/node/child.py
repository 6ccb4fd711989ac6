"""The engine as a child: it gets our signals and ends with us, and its output passes through."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import BinaryIO

from coldstream.machine import process_session
from coldstream.machine.child_environment import CREDENTIALS, SECRETS, STREAMER, child_environment
from coldstream.machine.process_session import end_session, kill_session

# Runs before the engine, so that the kernel sends it SIGTERM when its parent is killed. If the engine ignores that, the
# guard ends it.
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
os.execvp(sys.argv[2], sys.argv[2:])
"""
_KILL_SECONDS = 30.0
# For a start that is cancelled: vLLM's engine ignores the first signal until it runs.
_STARTING_SECONDS = 3.0
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to run, with variables to set, which may hold secrets, and the names of credentials that it keeps."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    keep: tuple[str, ...] = ()

    @property
    def without(self) -> list[str]:
        """The credentials that it does not inherit."""
        return sorted(CREDENTIALS - {*self.keep, *self.environment})

    def with_environment(self, environment: Mapping[str, str]) -> Command:
        """The same command with more variables."""
        return replace(self, environment={**self.environment, **environment})

    def shown(self) -> str:
        """The command as it can be pasted into a shell."""
        return shlex.join(self.arguments)

    def shown_environment(self) -> list[str]:
        """The changes to the environment, one line each, with secrets masked."""
        lines = [f"unset {name}" for name in self.without]
        for name, value in sorted(self.environment.items()):
            lines.append(f"export {name}={'****' if name in SECRETS else shlex.quote(value)}")
        return lines


class Child:
    """A running engine. Its processes are a session of their own: the terminal's Ctrl-C reaches it through us, once.

    Set `is_up` once it serves: from then on, a signal lets it finish its requests. `signalled` is the number of signals
    passed on, `cut_off_by` the one that ended it before it was up, or None.
    """

    def __init__(self, command: Command, *, on_line: Callable[[str], None], stdout: BinaryIO, stderr: BinaryIO) -> None:
        """Starts it. `on_line` is called with each line of output, from other threads, one at a time."""
        environment = child_environment(keep=command.keep)
        # Its output is a pipe, which Python would buffer in blocks.
        environment |= {"PYTHONUNBUFFERED": "1", **command.environment}
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _LAUNCH, str(os.getpid()), *command.arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        # Ends the session when this process is killed, and exits with the session.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", process_session.__file__, str(self.pid), str(_KILL_SECONDS)],
            env=child_environment(only=STREAMER),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.is_up = False
        self.signalled = 0
        self.cut_off_by: int | None = None
        self._on_line = on_line
        self._one_at_a_time = threading.Lock()
        self._readers = [
            threading.Thread(target=self._pass_on, args=pair, daemon=True)
            for pair in ((self._process.stdout, stdout), (self._process.stderr, stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def code(self) -> int | None:
        """Its exit code, as a shell reports it; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    @property
    def ended_by(self) -> str | None:
        """The name of the signal that ended it; None when none did, or while it runs."""
        code = self._process.poll()
        if code is None or code >= 0:
            return None
        return signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"

    def wait(self, seconds: float | None = None) -> int | None:
        """Waits until it exits. Returns its exit code; None when that takes longer than `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return self.code

    def send(self, number: int) -> None:
        """Passes a signal on. The second signal kills it, and so does a timeout when it is not up yet."""
        self.signalled += 1
        if self.signalled > 1:
            kill_session(self.pid)
            return
        if not self.is_up:
            self.cut_off_by = number
            threading.Thread(target=self._give_up, daemon=True).start()
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def finish(self) -> None:
        """Ends it and every process that it left behind. Idempotent."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self.wait(_KILL_SECONDS if self.is_up else _STARTING_SECONDS)
        end_session(self.pid)
        self._process.wait()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        for reader in self._readers:
            # A process outside of its session may hold the pipe.
            reader.join(2.0)

    def _give_up(self) -> None:
        if self.wait(_STARTING_SECONDS) is None:
            kill_session(self.pid)

    def _pass_on(self, source: BinaryIO, target: BinaryIO) -> None:
        rest = b""
        with source:
            while data := source.read1(65536):  # type: ignore[attr-defined]
                with suppress(OSError, ValueError):
                    target.write(data)
                    target.flush()
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-8192:]
                with self._one_at_a_time:
                    for line in lines:
                        self._on_line(line.decode("utf-8", "replace"))


@contextmanager
def running(start: Callable[[], Child]) -> Iterator[Child]:
    """Starts a child and finishes it after the block; passes this process's signals on to it, early ones included."""
    child: Child | None = None
    early: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send(number)

    before: Mapping[int, object] = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        child = start()
        try:
            for number in early:
                child.send(number)
            yield child
        finally:
            child.finish()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
