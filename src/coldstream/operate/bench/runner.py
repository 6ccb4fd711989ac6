"""One run of one command in fresh processes: its wall time, and what its whole process tree took.

`programs/measure.py` stands between us and the command: it adopts every orphan, adds up the CPU time of all of them as
the kernel accounts it, samples their memory, and ends them all at the time limit.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldstream.errors import ColdstreamError

PROGRAMS = Path(__file__).resolve().parent / "programs"
_MEASURE = PROGRAMS / "measure.py"
# From SIGTERM until a tree must be gone.
_END_SECONDS = 15.0
# How Python's tracebacks end, and how our own commands say it.
_RAISED = re.compile(r"error: |[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Failed)\b")
_SECRET_CHARACTERS_MIN = 8
_SECRET_NAMES = ("SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY", "API_KEY", "BUNDLE_KEY")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a command.

    Attributes:
        seconds: The load itself, as the program timed it; from spawn to exit where it did not.
        cpu_seconds: User and system time of all processes, less what was used until the imports were done; as the
            program says, where it says anything.
        whole_seconds: From spawn to exit.
        whole_cpu_seconds: Of all processes, with everything.
        memory_bytes: The peak, sampled; see programs/measure.py.
        result: What the program said of itself.
        found: What was measured of it.
    """

    seconds: float
    cpu_seconds: float
    whole_seconds: float
    whole_cpu_seconds: float
    memory_bytes: int
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    found: dict[str, Any] = field(default_factory=dict, repr=False)


class RunFailed(ColdstreamError):  # noqa: N818  # reads as what happened
    """A command failed, was too slow, or said nothing that could be understood."""


def run(
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    prefix: Sequence[str] = (),
    cwd: Path | None = None,
    pss: bool = False,
    interval_seconds: float = 0.05,
    timeout_seconds: float = 300.0,
) -> Run:
    """Runs a command once, to its end.

    Args:
        command: Prints one JSON object, as its last line or as all of its output.
        environ: Its whole environment.
        prefix: A command to start it with, to enter a network namespace.
        cwd: Its working directory; ours when None.
        pss: Measure memory exactly, at some cost of CPU.
        interval_seconds: Between samples of memory.
        timeout_seconds: Until it is killed.

    Raises:
        RunFailed: It did not work; the message holds none of the environment's secrets.
    """
    measured = [sys.executable, str(_MEASURE), "--interval", str(interval_seconds), "--timeout", str(timeout_seconds)]
    measured += ["--parent", str(os.getpid()), *(["--pss"] if pss else []), "--", *command]
    found = _measured([*prefix, *measured], environ, cwd)
    if found["timed_out"]:
        raise RunFailed(f"it took longer than {timeout_seconds:g} s")
    if found["exit"]:
        said = without_secrets(last_words(found["stderr"]), environ)
        raise RunFailed(f"exit {found['exit']}: {said or 'it said nothing'}")
    result = _document(found["stdout"])
    spent = found["user_seconds"] + found["system_seconds"]
    return Run(
        seconds=float(result.get("load_seconds", found["seconds"])),
        cpu_seconds=float(result.get("cpu_seconds", max(0.0, spent - float(result.get("import_cpu_seconds", 0.0))))),
        whole_seconds=found["seconds"],
        whole_cpu_seconds=spent,
        memory_bytes=found["memory_bytes"],
        result=result,
        found={name: value for name, value in found.items() if name not in {"stdout", "stderr"}},
    )


def last_words(text: str) -> str:
    """The line of an error's output that says what happened: what was raised last, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if _RAISED.match(line)]
    return (told or lines or [""])[-1][:400].removeprefix("error: ")


def without_secrets(text: str, environ: Mapping[str, str]) -> str:
    """A text without the values of variables that hold secrets."""
    for name, value in environ.items():
        if len(value) >= _SECRET_CHARACTERS_MIN and any(part in name for part in _SECRET_NAMES):
            text = text.replace(value, "…")
    return text


def _document(text: str) -> dict[str, Any]:
    for candidate in (text.strip().rpartition("\n")[2], text):
        try:
            found = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    raise RunFailed(f"it printed no result: {text.strip()[:200]!r}")


def _measured(command: Sequence[str], environ: Mapping[str, str], cwd: Path | None) -> dict[str, Any]:
    # In a group of its own, so that Ctrl-C reaches it once and in order: it ends what it started, then we go on.
    process = subprocess.Popen(
        command,
        env=dict(environ),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    try:
        found: dict[str, Any] = json.loads(output)
    except ValueError as exc:
        raise RunFailed(f"it could not be measured: {without_secrets(last_words(errors), environ)}") from exc
    return found
