"""Standard streams that hold no surprise: one that is closed, a disk that is full, a reader that has gone.

Messages on stderr never change how a command ends. A result that cannot be written does, with an error.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO, cast

from coldstream.errors import DiskError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class OutputGoneError(OSError):
    """The program that read our output (head, less) has ended."""


class _GuardedFile(io.FileIO):
    """A standard stream. After the first failure it takes everything, and writes nothing."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._failed = False

    def write(self, data: Buffer, /) -> int:
        if not self._failed:
            try:
                return super().write(data)
            except OSError as exc:
                self._failed = True
                if self.fileno() == 1:
                    raise _output_error(exc) from exc
        return memoryview(data).nbytes


def _output_error(exc: OSError) -> OSError:
    # Neither has an errno: click exits without a message on EPIPE.
    if exc.errno == errno.EPIPE:
        return OutputGoneError("the reader of standard output has gone")
    return DiskError(f"cannot write to standard output: {exc.strerror}", hint="is the disk that it goes to full?")


def guard_streams() -> None:
    """Makes this process's standard streams such. Those that another program or a test has replaced stay."""
    # The next file would get the number of a closed one, and all messages with it. `open` takes the lowest free number.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)  # noqa: FBT003  # its only parameter
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for good
    sys.stdout = _guarded(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _guarded(sys.stderr, sys.__stderr__, 2)


def _guarded(stream: TextIO | None, original: TextIO | None, descriptor: int) -> TextIO:
    if stream is not None and stream is not original:
        return stream
    old = cast("io.TextIOWrapper | None", stream)
    return io.TextIOWrapper(
        io.BufferedWriter(_GuardedFile(descriptor)),
        encoding=old.encoding if old else "utf-8",
        errors=old.errors if old else "backslashreplace",
        line_buffering=old.line_buffering if old else True,
    )
