"""Running rows and keeping what they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coldstream.operate.bench.runner import RunFailed, run
from streaming.contestants import Contestant

GIB = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One run of one row.

    Attributes:
        seconds: Wall time from spawn to exit, less the imports where they do not count.
        cpu_seconds: User and system time of all its processes, less the imports where they do not count.
        whole_seconds: The wall time with everything.
        whole_cpu_seconds: The CPU time with everything.
        memory_bytes: The peak, see coldstream.operate.bench.programs.measure.
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
    try:
        done = run(
            contestant.command,
            contestant.environ,
            prefix=prefix,
            pss=pss,
            interval_seconds=interval,
            timeout_seconds=timeout,
        )
    except RunFailed as exc:
        raise RowFailed(f"{contestant.name}: {exc}") from exc
    result, found = done.result, done.found
    if size is not None and result.get("bytes", 0) < size:
        raise RowFailed(f"{contestant.name}: received {result.get('bytes')} of {size} bytes")
    spared = not contestant.imports_count
    return Sample(
        seconds=done.whole_seconds - (result.get("import_seconds", 0.0) if spared else 0.0),
        cpu_seconds=done.whole_cpu_seconds - (result.get("import_cpu_seconds", 0.0) if spared else 0.0),
        whole_seconds=done.whole_seconds,
        whole_cpu_seconds=done.whole_cpu_seconds,
        memory_bytes=done.memory_bytes,
        result={**result, "settled_seconds": found["settled_seconds"], "user_seconds": found["user_seconds"]},
    )
