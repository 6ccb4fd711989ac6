"""The limits of this process (`ulimit`), and errors that name the limit behind a failed system call."""

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
# Address space for threads, libraries and buffers, besides the memory of a load.
_SPARE_BYTES = 64 << 20


def limit_error(exc: Exception, operation: str) -> ColdstreamError | None:
    """An error that names the limit which caused `exc`; None if none did.

    Args:
        exc: An error of the operating system or Python.
        operation: What failed, such as "start the streaming process".
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
        # Python reports ENOMEM, of the thread's stack, and EAGAIN alike.
        named = _memory_limit() or _process_limit()
    if named is None:
        return None
    limit, hint = named
    return ColdstreamError(f"cannot {operation}: {limit} is reached", hint=hint, operation=operation)


@contextmanager
def limits_named(operation: str) -> Iterator[None]:
    """Translates errors caused by a limit into `limit_error`."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as exc:
        error = limit_error(exc, operation)
        if error is None:
            raise
        raise error from exc


def address_space_left() -> int | None:
    """Bytes that this process can still map under `ulimit -v`; None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        mapped = 0
    return max(0, limit - mapped)


def mapping_limit() -> tuple[int, str] | None:
    """How many bytes of shared memory this process can still map, and the name of the limit; None without one."""
    limits = []
    left, address_space = address_space_left(), _memory_limit()
    if left is not None and address_space is not None:
        limits.append((max(0, left - _SPARE_BYTES), address_space[0]))
    # The file size limit applies to shared memory.
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
    """The limit on tasks of a control group that is reached, or None."""
    for folder in control_groups("pids"):
        limit, current = read_limit(folder / "pids.max"), read_limit(folder / "pids.current")
        if limit is not None and current is not None and current >= limit - 1:
            return limit
    return None


def _named(which: int, what: str, flag: str, setting: str, *, is_bytes: bool = False) -> tuple[str, str] | None:
    """A description of the limit and a hint; None if it is not set."""
    value = resource.getrlimit(which)[0]
    if value == resource.RLIM_INFINITY:
        return None
    return f"the limit on {what} (ulimit {flag}: {format_bytes(value) if is_bytes else value})", _raise_hint(
        setting, flag
    )


def _raise_hint(setting: str, flag: str | None = None) -> str:
    return f"raise it: ulimit {flag}, or systemd's {setting}" if flag else f"raise it: systemd's {setting}"
