"""Running rows and keeping what they took."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streaming.contestants import Contestant

_MEASURE = Path(__file__).resolve().parent / "measure.py"
GIB = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One run of one row.

    Attributes:
        seconds: Wall time from spawn to exit, less the imports where they do not count.
        cpu_seconds: User and system time of all its processes, less the imports where they do not count.
        whole_seconds: The wall time with everything.
        whole_cpu_seconds: The CPU time with everything.
        memory_bytes: The peak, see measure.py.
        result: What the program said of itself.
    """

    seconds: float
    cpu_seconds: float
    whole_seconds: float
    whole_cpu_seconds: float
    memory_bytes: int
    result: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it goes into the JSON file."""
        return asdict(self)


class RowFailed(Exception):  # noqa: N818  # reads as what happened
    """A row's program failed, or gave too few bytes."""


def run_row(
    contestant: Contestant,
    *,
    size: int | None,
    prefix: Sequence[str] = (),
    pss: bool = False,
    interval: float = 0.05,
    timeout: float = 300.0,
) -> Sample:
    """Runs a row once.

    Args:
        contestant: Which.
        size: The bytes that it must have received, at least; None when it is not to read all.
        prefix: A command to start it with, to enter a network namespace.
        pss: Measure memory exactly, at some cost of CPU.
        interval: Seconds between samples of memory.
        timeout: Seconds until it is killed.

    Raises:
        RowFailed: It exited with a failure, or without all bytes.
    """
    command = [sys.executable, str(_MEASURE), "--interval", str(interval), "--timeout", str(timeout)]
    command += [*(["--pss"] if pss else []), "--", *contestant.command]
    found = _run([*prefix, *command], contestant.environ)
    if found["exit"]:
        raise RowFailed(f"{contestant.name}: exit {found['exit']}: {found['stderr'].strip()[-800:]}")
    try:
        result = json.loads(found["stdout"].strip().splitlines()[-1])
    except (IndexError, ValueError):
        try:
            result = json.loads(found["stdout"])
        except ValueError as exc:
            raise RowFailed(f"{contestant.name}: no JSON: {found['stdout'][:300]}") from exc
    if size is not None and result.get("bytes", 0) < size:
        raise RowFailed(f"{contestant.name}: received {result.get('bytes')} of {size} bytes")
    cpu = found["user_seconds"] + found["system_seconds"]
    spared = not contestant.imports_count
    return Sample(
        seconds=found["seconds"] - (result.get("import_seconds", 0.0) if spared else 0.0),
        cpu_seconds=cpu - (result.get("import_cpu_seconds", 0.0) if spared else 0.0),
        whole_seconds=found["seconds"],
        whole_cpu_seconds=cpu,
        memory_bytes=found["memory_bytes"],
        result={**result, "settled_seconds": found["settled_seconds"], "user_seconds": found["user_seconds"]},
    )


def _run(command: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    # In a group of its own, so that Ctrl-C reaches it once and in order: it ends what it started, then we go on.
    process = subprocess.Popen(
        command, env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    try:
        found: dict[str, Any] = json.loads(output)
    except ValueError as exc:
        raise RowFailed(f"cannot measure: {errors.strip()[-800:]}") from exc
    return found
