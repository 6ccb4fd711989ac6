"""What the machine refuses where no command expects it, as errors of ours."""

from __future__ import annotations

import errno
import os

from coldstream.errors import ColdstreamError, DiskError

_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}


def refusal_of(exc: OSError | MemoryError | RuntimeError) -> ColdstreamError | None:
    """What was refused and how to allow it; None when this is a bug of ours.

    Args:
        exc: What came out of a command.
    """
    from coldstream.machine.limits import limit_error

    if error := limit_error(exc, "run this command"):
        return error
    if isinstance(exc, MemoryError):
        return ColdstreamError("there is not enough memory", hint="give less to this command: --memory")
    if not isinstance(exc, OSError):
        return None
    try:
        os.getcwd()
    except OSError as gone:
        return DiskError(f"cannot use the working directory: {gone.strerror}", hint="change to another: cd /")
    if exc.errno in _DISK and isinstance(exc.filename, str | bytes):
        return DiskError(f"{os.fsdecode(exc.filename)}: {exc.strerror}", hint="check its owner, its mode and its disk")
    return None
