"""One command from spawn to exit: wall time, CPU time and peak memory of everything that it started. Linux.

    python measure.py [--pss] [--interval SECONDS] [--timeout SECONDS] [--parent PID] -- COMMAND...

This process adopts orphans (PR_SET_CHILD_SUBREAPER), so that CPU time counts also where a streamer outlives the
program that started it; it waits for all of them. The wall time ends when the command itself does. Memory is sampled:
the private resident pages of all processes, plus the largest shared resident set of any one (an arena that several
map counts once); with --pss the kernel's proportional sets are added up instead, which is exact and slower. Prints one
line of JSON, with the command's standard output in it. SIGTERM, SIGINT and the end of the parent end the whole tree
first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import IO

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Runs the command line's command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pss", action="store_true")
    parser.add_argument("--interval", type=float, default=0.05)
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--parent", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _cut_down)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if args.parent and os.getppid() != args.parent:
        # Broken off while it started us: nobody waits for what we would find.
        sys.exit(1)
    print(json.dumps(run(command, pss=args.pss, interval=args.interval, timeout=args.timeout)))


def run(command: list[str], *, pss: bool, interval: float, timeout: float) -> dict[str, object]:
    """Runs a command and describes what it took."""
    memory = _Memory(pss=pss, interval=interval)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    late = threading.Event()

    def end() -> None:
        late.set()
        end_descendants()

    timer = threading.Timer(timeout, end)
    timer.start()
    memory.start()
    # Read as it comes, so that a full pipe stops nobody; the wall clock is stopped by the exit, not by the pipe's end.
    output: list[bytes] = []
    errors: list[bytes] = []
    readers = [
        threading.Thread(target=_read, args=pair) for pair in ((process.stdout, output), (process.stderr, errors))
    ]
    for reader in readers:
        reader.start()
    _, status, _ = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    left = _reap()
    settled = time.perf_counter() - began
    timer.cancel()
    memory.stop()
    for reader in readers:
        reader.join()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "exit": process.returncode,
        "timed_out": late.is_set(),
        "seconds": seconds,
        "settled_seconds": settled,
        "orphans": left,
        "user_seconds": usage.ru_utime,
        "system_seconds": usage.ru_stime,
        "memory_bytes": memory.peak,
        "minor_faults": usage.ru_minflt,
        "voluntary_switches": usage.ru_nvcsw,
        "stdout": b"".join(output).decode(errors="replace"),
        "stderr": b"".join(errors).decode(errors="replace")[-4000:],
    }


def _read(file: IO[bytes] | None, into: list[bytes]) -> None:
    assert file is not None
    into.append(file.read())


def descendants() -> list[int]:
    """Every process below this one."""
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        pid = todo.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    todo += [int(child) for child in file.read().split()]
        except OSError:
            continue
        found.append(pid)
    return found[1:]


def end_descendants(*, reap: bool = False) -> None:
    """Kills every process below this one, those that appear meanwhile included.

    Args:
        reap: Wait for them too, where nobody else does: until then, the dead stay in the tree.
    """
    deadline = time.monotonic() + 10
    while (pids := descendants()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        if reap:
            _reap(os.WNOHANG)


def _reap(options: int = 0) -> int:
    """Waits for all that are below this one, or with WNOHANG for those that have ended; how many there were."""
    count = 0
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            count += 1
    return count


def _cut_down(number: int, _frame: object) -> None:
    # A handler runs in the main thread, which may be waiting for the very processes that it ends.
    signal.signal(number, signal.SIG_IGN)
    end_descendants(reap=True)
    os._exit(128 + number)


class _Memory(threading.Thread):
    """Samples the tree's memory and keeps the largest sum."""

    def __init__(self, *, pss: bool, interval: float) -> None:
        super().__init__(daemon=True)
        self._pss, self._interval = pss, interval
        self._done = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._done.wait(self._interval):
            pids = descendants()
            now = sum(map(_pss, pids)) if self._pss else _private_and_shared(pids)
            self.peak = max(self.peak, now)

    def stop(self) -> None:
        self._done.set()
        self.join()


def _private_and_shared(pids: list[int]) -> int:
    private, shared = 0, 0
    for pid in pids:
        fields = dict.fromkeys(("RssAnon:", "RssShmem:"), 0)
        try:
            with open(f"/proc/{pid}/status") as file:
                for line in file:
                    key = line.split(None, 1)[0]
                    if key in fields:
                        fields[key] = int(line.split()[1]) * 1024
        except OSError:
            continue
        private += fields["RssAnon:"]
        shared = max(shared, fields["RssShmem:"])
    return private + shared


def _pss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0


if __name__ == "__main__":
    main()
