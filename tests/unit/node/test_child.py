"""A child gets our signals, passes its output and exit code on, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coldstream.machine.process_session import session
from coldstream.node import child as module
from coldstream.node.child import Child, Command, running


def start(code: str, folder: Path, lines: list[str], **more: object) -> Child:
    command = Command(arguments=(sys.executable, "-c", code), **more)  # type: ignore[arg-type]
    # They stay open as long as the child may write.
    out, err = open(folder / "out", "wb"), open(folder / "err", "wb")  # noqa: SIM115
    return Child(command, on_line=lines.append, stdout=out, stderr=err)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestChild:
    def test_output_and_exit_code_pass_through(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("R2_SECRET_KEY", "hidden")
        lines: list[str] = []
        code = "import os, sys; print('hello', os.environ.get('R2_SECRET_KEY'), os.environ['GIVEN']); sys.exit(7)"
        child = start(code, tmp_path, lines, environment={"GIVEN": "yes"})
        assert child.wait(30) == 7
        child.finish()
        assert lines == ["hello None yes"]
        assert (tmp_path / "out").read_text() == "hello None yes\n"

    def test_a_signal_is_passed_on_and_the_second_one_kills(self, tmp_path: Path) -> None:
        for stubborn, expected in ((False, 5), (True, 128 + signal.SIGKILL)):
            ready = threading.Event()
            handler = "pass" if stubborn else "sys.exit(5)"
            code = (
                "import signal, sys, time\n"
                f"def on(*_): {handler}\n"
                "signal.signal(signal.SIGTERM, on)\nprint('ready')\n"
                "while True: time.sleep(0.01)"
            )
            child = start(code, tmp_path, _Setting(ready, "ready"))
            child.is_up = True
            assert ready.wait(30)

            def started(child: Child = child) -> Child:
                os.kill(os.getpid(), signal.SIGTERM)  # what comes before it runs is not lost
                return child

            with running(started):
                if stubborn:
                    assert child.wait(0.3) is None
                    os.kill(os.getpid(), signal.SIGTERM)
                assert child.wait(30) == expected

    def test_a_start_that_swallows_the_signal_is_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_STARTING_SECONDS", 0.2)
        ready = threading.Event()
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready'); time.sleep(60)"
        child = start(code, tmp_path, _Setting(ready, "ready"))
        assert ready.wait(30)
        child.send(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGKILL
        assert child.cut_off_by == signal.SIGTERM
        child.finish()

    def test_its_shared_memory_goes_with_it(self, tmp_path: Path) -> None:
        """Python's resource tracker removes what was left; it must live a moment longer than the others."""
        lines: list[str] = []
        code = (
            "import os; from multiprocessing.shared_memory import SharedMemory as Memory\n"
            "names = [Memory(create=True, size=8).name for _ in range(2)]\n"
            "print(*names, flush=True); os._exit(0)"
        )
        child = start(code, tmp_path, lines)
        assert child.wait(30) == 0
        child.finish()
        names = lines[0].split()
        assert len(names) == 2
        assert not {*names} & {*os.listdir("/dev/shm")}

    def test_what_it_left_behind_ends_with_it(self, tmp_path: Path) -> None:
        lines: list[str] = []
        code = "import subprocess, sys; print(subprocess.Popen(['sleep', '1000']).pid)"
        child = start(code, tmp_path, lines)
        assert child.wait(30) == 0
        child.finish()
        deadline = time.monotonic() + 10
        while (state := _state(int(lines[0]))) not in {"", "Z"} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state in {"", "Z"}


_KILLED = """
import sys, time
from coldstream.machine.process_session import session
from coldstream.node import child as module
from coldstream.node.child import Command

module._KILL_SECONDS = 0.2
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
command = Command(arguments=(sys.executable, "-c", "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
    + repr(stubborn) + "]); " + stubborn))
child = module.Child(command, on_line=lambda line: None, stdout=sys.stdout.buffer, stderr=sys.stderr.buffer)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_what_swallows_the_signal_ends_after_its_parent_was_killed() -> None:
    """vLLM does so shortly before it is ready; kill -9, or the out-of-memory killer, meets coldstream."""
    with subprocess.Popen([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = [parent.stdout.readline().strip() for _ in range(3)]
        leader = int(next(line for line in lines if line.isdecimal()))
        assert lines.count("deaf") == 2
        assert len(session(leader)) == 2
        parent.kill()
    deadline = time.monotonic() + 30
    while any(_state(pid) not in {"Z", ""} for pid in session(leader)):
        assert time.monotonic() < deadline, session(leader)
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class _Setting(list):  # type: ignore[type-arg]
    """Sets an event when a line comes."""

    def __init__(self, event: threading.Event, line: str) -> None:
        super().__init__()
        self._event, self._line = event, line

    def append(self, line: str) -> None:
        super().append(line)
        if line == self._line:
            self._event.set()
