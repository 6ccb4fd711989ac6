"""The limits of this process, as `ulimit` sets them, and which of them a failed system call ran into."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coldstream.errors import ColdstreamError
from coldstream.machine.cgroup import control_groups, read_limit
from coldstream.units import format_bytes

_NO_THREAD = "can't start new thread"
# What this process maps beside the memory of a load: threads, libraries, buffers.
_SPARE_BYTES = 64 << 20


def limit_error(exc: Exception, operation: str) -> ColdstreamError | None:
    """The error that names the limit which `exc` comes from; None when it does not come from a limit.

    Args:
        exc: What the operating system or Python said.
        operation: What could not be done: "start the streaming process".
    """
    code = exc.errno if isinstance(exc, OSError) else None
    named: tuple[str, str] | None = None
    if code == errno.EMFILE:
        named = _named(resource.RLIMIT_NOFILE, "open files", "-n", "LimitNOFILE=")
    elif code == errno.EFBIG:
        named = _named(resource.RLIMIT_FSIZE, "file size", "-f", "LimitFSIZE=", is_bytes=True)
    elif code == errno.ENOMEM or isinstance(exc, MemoryError):
        named = _memory_limit()
    elif code == errno.EAGAIN:
        named = _process_limit()
    elif isinstance(exc, RuntimeError) and _NO_THREAD in str(exc):
        # Python does not tell ENOMEM, of the thread's stack, from EAGAIN.
        named = _memory_limit() or _process_limit()
    if named is None:
        return None
    limit, hint = named
    return ColdstreamError(f"cannot {operation}: {limit} is reached", hint=hint, operation=operation)


@contextmanager
def limits_named(operation: str) -> Iterator[None]:
    """Turns what runs into a limit within it into `limit_error`; everything else passes."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as exc:
        error = limit_error(exc, operation)
        if error is None:
            raise
        raise error from exc


def address_space_left() -> int | None:
    """Bytes that this process may still map under `ulimit -v`; None without such a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        mapped = 0
    return max(0, limit - mapped)


def mapping_limit() -> tuple[int, str] | None:
    """How many bytes of shared memory this process may still map, and the limit that says so; None without one."""
    limits = []
    left, address_space = address_space_left(), _memory_limit()
    if left is not None and address_space is not None:
        limits.append((max(0, left - _SPARE_BYTES), address_space[0]))
    # Shared memory is a file.
    if file_size := _named(resource.RLIMIT_FSIZE, "file size", "-f", "LimitFSIZE=", is_bytes=True):
        limits.append((resource.getrlimit(resource.RLIMIT_FSIZE)[0], file_size[0]))
    return min(limits, default=None)


def _memory_limit() -> tuple[str, str] | None:
    return _named(resource.RLIMIT_AS, "address space", "-v", "LimitAS=", is_bytes=True) or _named(
        resource.RLIMIT_DATA, "data size", "-d", "LimitDATA=", is_bytes=True
    )


def _process_limit() -> tuple[str, str] | None:
    tasks = _control_group_tasks()
    if tasks is not None:
        return f"the control group's limit of {tasks} processes and threads (pids.max)", _raise_hint("TasksMax=")
    return _named(resource.RLIMIT_NPROC, "processes and threads", "-u", "LimitNPROC=")


def _control_group_tasks() -> int | None:
    """The limit of the control groups' tasks that is used up."""
    for folder in control_groups("pids"):
        limit, current = read_limit(folder / "pids.max"), read_limit(folder / "pids.current")
        if limit is not None and current is not None and current >= limit - 1:
            return limit
    return None


def _named(which: int, what: str, flag: str, setting: str, *, is_bytes: bool = False) -> tuple[str, str] | None:
    """The limit and the hint, in words; None when there is no such limit."""
    value = resource.getrlimit(which)[0]
    if value == resource.RLIM_INFINITY:
        return None
    return f"the limit on {what} (ulimit {flag}: {format_bytes(value) if is_bytes else value})", _raise_hint(
        setting, flag
    )


def _raise_hint(setting: str, flag: str | None = None) -> str:
    return f"raise it: ulimit {flag}, or systemd's {setting}" if flag else f"raise it: systemd's {setting}"
