"""Runs one command and measures the wall time, CPU time and peak memory of its whole process tree. Linux only.

    python measure.py '{"pss": false, "interval": 0.05, "timeout": 300, "parent": PID}' COMMAND...

Adopts orphans and waits for them, so that their CPU time counts; the wall time ends when the command itself exits.
Memory is sampled: the private resident pages of all processes, plus the largest shared resident set of any one (an
arena that several processes map counts once); "pss" adds up the kernel's proportional sets instead, which is exact and
slower. Prints one line of JSON with the command's output. SIGTERM, SIGINT and the parent's death kill the whole tree.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    """Runs and measures the command on the command line."""
    options, command = json.loads(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_on_signal)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != options.pop("parent"):
        # The parent died before PDEATHSIG was set, so no signal will come.
        sys.exit(1)
    print(json.dumps(run(command, **options)))


def run(command: list[str], *, pss: bool, interval: float, timeout: float) -> dict[str, object]:
    """Runs a command and returns what it used."""
    peak, timed_out, ended = 0, threading.Event(), threading.Event()

    def sample_memory() -> None:
        nonlocal peak
        while not ended.wait(interval):
            peak = max(peak, _memory_bytes(descendants(), pss=pss))

    def kill_all() -> None:
        timed_out.set()
        end_descendants()

    timer, sampler = threading.Timer(timeout, kill_all), threading.Thread(target=sample_memory, daemon=True)
    # Files, because a full pipe would block the command, and a child could keep a pipe open after its exit.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        timer.start()
        sampler.start()
        _, status, _ = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        orphans = _reap()
        settled = time.perf_counter() - began
        timer.cancel()
        ended.set()
        sampler.join()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "exit": process.returncode, "timed_out": timed_out.is_set(), "seconds": seconds, "settled_seconds": settled,
        "orphans": orphans, "user_seconds": usage.ru_utime, "system_seconds": usage.ru_stime, "memory_bytes": peak,
        "stdout": texts[0], "stderr": texts[1][-4000:],
    }  # fmt: skip


def descendants() -> list[int]:
    """Process ids of everything below this process."""
    pids: list[int] = []
    todo = [os.getpid()]
    while todo:
        pid = todo.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    todo += map(int, file.read().split())
        except OSError:
            continue
        pids.append(pid)
    return pids[1:]


def end_descendants(*, reap: bool = False) -> None:
    """Kills everything below this process, including processes that start while it does."""
    deadline = time.monotonic() + 10
    while (pids := descendants()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        if reap:  # where nothing else does: zombies stay in the tree until they are waited for
            _reap(os.WNOHANG)


def _reap(options: int = 0) -> int:
    """Waits for all children, or with WNOHANG only for those that have exited; returns how many."""
    count = 0
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            count += 1
    return count


def _exit_on_signal(number: int, _frame: object) -> None:
    # The handler interrupts the main thread, which may be waiting for the processes that it kills: reap them here.
    signal.signal(number, signal.SIG_IGN)
    end_descendants(reap=True)
    os._exit(128 + number)


def _memory_bytes(pids: list[int], *, pss: bool) -> int:
    if pss:
        return sum(_memory_fields(pid, "smaps_rollup", "Pss:")[0] for pid in pids)
    sets = [_memory_fields(pid, "status", "RssAnon:", "RssShmem:") for pid in pids]
    return sum(private for private, _ in sets) + max((shared for _, shared in sets), default=0)


def _memory_fields(pid: int, file_name: str, *keys: str) -> list[int]:
    """Fields of a file in /proc, in bytes; 0 for those that are missing or whose process has exited."""
    fields = dict.fromkeys(keys, 0)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{file_name}") as file:
        for line in file:
            if (words := line.split()) and words[0] in fields:
                fields[words[0]] = int(words[1]) * 1024
    return list(fields.values())


if __name__ == "__main__":
    main()
