"""The limits of this process, by `ulimit` and its control groups, and errors that name the limit behind a failure."""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from coldstream.errors import ColdstreamError, DiskError
from coldstream.units import format_bytes

# Address space for threads, libraries and buffers, besides the memory of a load.
_SPARE_BYTES = 64 << 20
_PROC = Path("/proc/self")
_MOUNT = Path("/sys/fs/cgroup")


def limit_error(exc: Exception, operation: str) -> ColdstreamError | None:
    """An error that names the limit which caused `exc`; None if none did. `operation` completes "cannot"."""
    code = exc.errno if isinstance(exc, OSError) else None
    named = None
    if code == errno.EMFILE:
        named = _named(resource.RLIMIT_NOFILE, "open files", "-n", "LimitNOFILE=")
    elif code == errno.EFBIG:
        named = _named(resource.RLIMIT_FSIZE, "file size", "-f", "LimitFSIZE=", is_bytes=True)
    elif code == errno.ENOMEM or isinstance(exc, MemoryError):
        named = _memory_limit()
    elif code == errno.EAGAIN:
        named = _process_limit()
    elif isinstance(exc, RuntimeError) and "can't start new thread" in str(exc):
        # Python reports ENOMEM, of the thread's stack, and EAGAIN alike.
        named = _memory_limit() or _process_limit()
    if named is None:
        return None
    limit, hint = named
    return ColdstreamError(f"cannot {operation}: {limit} is reached", hint=hint)


def disk_error(exc: OSError, where: str, *, when_full: str, target: str | None = None) -> DiskError:
    """An error of the disk at `where`, with a hint if a limit caused it or the disk is full."""
    limit = limit_error(exc, "write")
    hint = when_full if exc.errno in {errno.ENOSPC, errno.EDQUOT} else None
    return DiskError(f"{where}: {limit or exc.strerror or exc}", hint=limit.hint if limit else hint, target=target)


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
    for folder in control_groups("pids"):
        limit, current = read_limit(folder / "pids.max"), read_limit(folder / "pids.current")
        if limit is not None and current is not None and current >= limit - 1:
            limit_text = f"the control group's limit of {limit} processes and threads (pids.max)"
            return limit_text, "raise it: systemd's TasksMax="
    return _named(resource.RLIMIT_NPROC, "processes and threads", "-u", "LimitNPROC=")


def _named(which: int, what: str, flag: str, setting: str, *, is_bytes: bool = False) -> tuple[str, str] | None:
    """A description of the limit and a hint; None if it is not set."""
    value = resource.getrlimit(which)[0]
    if value == resource.RLIM_INFINITY:
        return None
    limit = f"the limit on {what} (ulimit {flag}: {format_bytes(value) if is_bytes else value})"
    return limit, f"raise it: ulimit {flag}, or systemd's {setting}"


def control_groups(controller: str) -> Iterator[Path]:
    """The directories of this process's control groups with a `controller`: "memory", "cpu" or "pids".

    Innermost first: systemd units, Slurm steps and containers nest them, each with its own limits. A container sees
    a part of the tree, mounted as if it were the whole. Versions 1 and 2 may both be mounted; version 2 comes first.
    """
    # This process's place in each hierarchy: by the name of its controller for version 1, "" for version 2.
    places = {
        name: place
        for _, controllers, place in (line.split(":", 2) for line in read_text(_PROC / "cgroup").splitlines())
        for name in controllers.split(",")
    }
    mounts = []
    for line in read_text(_PROC / "mountinfo").splitlines():
        place, _, rest = line.partition(" - ")
        kind, options = rest.split()[0], rest.split()[-1].split(",")
        # Octal escapes stand for spaces.
        root, folder = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), part) for part in place.split()[3:5])
        if kind == "cgroup2" or (kind == "cgroup" and controller in options):
            mounts.append(("" if kind == "cgroup2" else controller, PurePosixPath(root), Path(folder)))
    if not mounts:
        # Without /proc, assume the top, where the process is in a container.
        yield from (_MOUNT, _MOUNT / controller)
    for hierarchy, mounted, top in sorted(mounts, key=lambda mount: mount[0]):
        own = PurePosixPath(places.get(hierarchy, "/"))
        # A process that was moved into a container may be outside of its mount; then only the top is visible.
        inner = own.relative_to(mounted) if own.is_relative_to(mounted) and ".." not in own.parts else PurePosixPath()
        yield from (top / level for level in (inner, *inner.parents))


def read_text(path: Path) -> str:
    """The content of a file of the system; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def read_limit(path: Path) -> int | None:
    """The number in a control group's file; None without a file or a limit."""
    text = read_text(path).strip()
    # In version 1, "no limit" is the largest number of whole pages.
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None
