"""Finds and ends the processes of a session (Linux).

Also a program without dependencies that ends a session after its parent was killed:

    python -I -S process_session.py LEADER SECONDS

It waits for the end of its standard input, which its parent holds open, and then SECONDS for the session to end.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_TRACKER_SECONDS = 5.0
_POLL_SECONDS = 0.02
# The process of Python's multiprocessing that removes leaked shared memory.
_TRACKER = b"multiprocessing.resource_tracker"


def session(leader: int) -> list[int]:
    """The processes of a session, oldest first."""
    processes = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(OSError, ValueError, IndexError):
            # The name in parentheses may contain any character.
            fields = Path("/proc", str(int(name)), "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == leader:
                processes.append((int(fields[19]), int(name)))
    return [number for _, number in sorted(processes)]


def kill_session(leader: int) -> None:
    """Kills its processes, except for resource trackers, which clean up and then exit."""
    pids = session(leader)
    for pid in pids:
        if _TRACKER not in _command_line(pid):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    if not pids:
        _kill_group(leader)


def end_session(leader: int) -> None:
    """Kills its processes until none is left."""
    until = time.monotonic() + _TRACKER_SECONDS
    while _has_running(leader) and time.monotonic() < until:
        kill_session(leader)
        time.sleep(_POLL_SECONDS)
    _kill_group(leader)


def _has_running(leader: int) -> bool:
    return any(map(_command_line, session(leader)))


def _command_line(pid: int) -> bytes:
    """The command line; empty for a process that has ended, also before its parent has waited for it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _guard(leader: int, seconds: float) -> None:
    # Signals for all processes of a unit or terminal are ignored: this process ends with the session.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    until = time.monotonic() + seconds
    while _has_running(leader):
        if time.monotonic() > until:
            end_session(leader)
            return
        time.sleep(0.1)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), float(sys.argv[2]))
