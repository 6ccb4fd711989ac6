"""Runs commands in fresh processes, in interleaved rounds; `programs/measure.py` measures their process trees."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from coldstream.errors import ColdstreamError

PROGRAMS = Path(__file__).resolve().parent / "programs"
# A command that fails this often is not run again.
FAILURES_MAX = 2
# The last line of a Python traceback, or of an error of coldstream's commands.
_ERROR_LINE = re.compile(r"error: |[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Failed)\b")
_SECRET_CHARACTERS_MIN = 8
Sample = TypeVar("Sample")
_SECRET_NAMES = ("SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY", "API_KEY", "BUNDLE_KEY")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a command."""

    seconds: float  # of the load itself, if the program timed it; otherwise from spawn to exit, as `whole_seconds`
    cpu_seconds: float  # of all processes after the imports; the program's own figure, if it has one
    whole_seconds: float
    whole_cpu_seconds: float
    memory_bytes: int  # the sampled peak; see programs/measure.py
    result: dict[str, Any] = field(default_factory=dict, repr=False)  # the JSON object that the program printed
    # What programs/measure.py printed, without the output.
    measured: dict[str, Any] = field(default_factory=dict, repr=False)

    def document(self) -> dict[str, Any]:
        figures = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        return figures | {name: self.result.get(name) for name in ("import_seconds", "start")}


class RunFailed(ColdstreamError):  # noqa: N818  # reads as what happened
    """A command failed, timed out, or printed no result."""


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
    """Runs a command once, which prints one JSON object, as its last line or as all of its output.

    `environ` is its whole environment; no message has its secrets. `prefix` is a command that starts it. `pss` measures
    memory exactly, at some cost of CPU.
    """
    options = {"pss": pss, "interval": interval_seconds, "timeout": timeout_seconds, "parent": os.getpid()}
    program = [sys.executable, str(PROGRAMS / "measure.py"), json.dumps(options)]
    measured = _measure([*prefix, *program, *command], environ, cwd)
    output, errors = measured.pop("stdout"), measured.pop("stderr")
    if measured["timed_out"]:
        raise RunFailed(f"it took longer than {timeout_seconds:g} s")
    if measured["exit"]:
        reason = without_secrets(error_line(errors), environ)
        raise RunFailed(f"exit {measured['exit']}: {reason or 'it printed no error'}")
    result = _parse_result(output)
    cpu_seconds = measured["user_seconds"] + measured["system_seconds"]
    loaded = max(0.0, cpu_seconds - float(result.get("import_cpu_seconds", 0.0)))
    return Run(
        seconds=float(result.get("load_seconds", measured["seconds"])),
        cpu_seconds=float(result.get("cpu_seconds", loaded)),
        whole_seconds=measured["seconds"],
        whole_cpu_seconds=cpu_seconds,
        memory_bytes=measured["memory_bytes"],
        result=result,
        measured=measured,
    )


def interleave(
    names: Iterable[str],
    runs: int,
    seed: int,
    attempt: Callable[[str, int], Sample | None],
    *,
    on_dropped: Callable[[str, int], None] = lambda _name, _round: None,
) -> dict[str, list[Sample | None]]:
    """Runs every name once a round, shuffled; None for a failure. One that fails too often is dropped."""
    results: dict[str, list[Sample | None]] = {name: [] for name in names}
    for number, order in enumerate(shuffled_rounds(list(results), runs, seed), 1):
        for name in order:
            dropped = results[name].count(None) >= FAILURES_MAX
            results[name].append(None if dropped else attempt(name, number))
            if dropped:
                on_dropped(name, number)
    return results


def shuffled_rounds(names: Sequence[str], runs: int, seed: int) -> list[list[str]]:
    """Every name once a round, in a new order each round; no name runs twice in a row if there are others."""
    source = random.Random(seed)
    orders: list[list[str]] = []
    for _ in range(runs):
        order = source.sample(list(names), len(names))
        if orders and len(order) > 1 and order[0] == orders[-1][-1]:
            place = source.randrange(1, len(order))
            order[0], order[place] = order[place], order[0]
        orders.append(order)
    return orders


def error_line(text: str) -> str:
    """The line of a program's output that names the error: the last exception or error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or [""])[-1][:400].removeprefix("error: ")


def without_secrets(text: str, environ: Mapping[str, str]) -> str:
    """A text without the values of variables that hold secrets."""
    for name, value in environ.items():
        if len(value) >= _SECRET_CHARACTERS_MIN and any(part in name for part in _SECRET_NAMES):
            text = text.replace(value, "…")
    return text


def _parse_result(text: str) -> dict[str, Any]:
    for candidate in (text.strip().rpartition("\n")[2], text):
        try:
            result = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(result, dict):
            return result
    raise RunFailed(f"it printed no result: {text.strip()[:200]!r}")


def _measure(command: Sequence[str], environ: Mapping[str, str], cwd: Path | None) -> dict[str, Any]:
    # In a session of its own, so that Ctrl-C does not reach it directly: it kills its tree on SIGTERM.
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=dict(environ), cwd=cwd, text=True, start_new_session=True, **pipes)
    try:
        output, errors = process.communicate()
    except BaseException:
        # It kills its tree and exits within ten seconds.
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    try:
        measured: dict[str, Any] = json.loads(output)
    except ValueError as exc:
        raise RunFailed(f"it could not be measured: {without_secrets(error_line(errors), environ)}") from exc
    return measured
