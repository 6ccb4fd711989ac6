"""What commands write: text that cannot steer a terminal, JSON, tables, and streams that survive a closed reader.

Messages on stderr never change how a command ends. A result that cannot be written to stdout does, with an error.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from coldstream.errors import DiskError
from coldstream.printable import printable
from coldstream.units import plural

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from coldstream.operate.probe import Check

# The escape sequences that `coloured` writes around a word, and no others.
_COLOURS = re.compile(r"(\x1b\[(?:0|3[1-3])m)")


def terminal_safe(text: str) -> str:
    """Text in which untrusted parts (names, keys, error messages) can neither steer the terminal nor hide."""
    parts = _COLOURS.split(text)
    return "".join(part if number % 2 else printable(part, keep="\n\t") for number, part in enumerate(parts))


def echo(text: str, *, err: bool = False) -> None:
    """Writes text for people. All output goes through here or through `echo_json`."""
    click.echo(terminal_safe(text), err=err)


def echo_json(document: Any, *, indent: int | None = None) -> None:
    """Writes a document to stdout unchanged; JSON escapes what a terminal could interpret."""
    click.echo(json.dumps(document, indent=indent, default=str).replace("\x7f", "\\u007f"))


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text in green, yellow or red if `stream` (by default stdout) is a terminal and NO_COLOR is not set."""
    stream = stream or sys.stdout
    return click.style(text, fg=colour) if stream.isatty() and not os.environ.get("NO_COLOR") else text


def attributes(record: object, *names: str) -> dict[str, Any]:
    """The part of a JSON document that has the names of a record's attributes."""
    return {name: getattr(record, name) for name in names}


def table_text(
    rows: Sequence[Sequence[str]],
    *,
    colours: Mapping[str, str] | None = None,
    coloured_column: int = 0,
    numbers: Collection[int] = (),
) -> str:
    """One line for each row, the heading first, in aligned columns.

    `colours` has the colour of a cell in `coloured_column`, by its text. The columns in `numbers` end at the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{'>' if i in numbers else '<'}{widths[i]}}" for i, cell in enumerate(row)]
        if colour := (colours or {}).get(row[coloured_column]):
            cells[coloured_column] = coloured(cells[coloured_column], colour)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def echo_check(check: Check, width: int) -> None:
    """Prints the result of a check of `setup` or `doctor`, with its name in `width` columns."""
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}.get(check.state)
    echo(f"{coloured(f'{check.state:<5}', colour) if colour else '-    '} {check.name:<{width}} {check.detail}")
    if check.hint and check.state in {"warn", "fail"}:
        echo(f"{'':<{width + 6}} {check.hint}")


def checks_text(counts: Mapping[str, int]) -> str:
    """How many checks have each state, the last line of `setup` and `doctor`."""
    text = f"{counts['fail']} failed, {plural(counts['warn'], 'warning')}, {counts['ok']} ok"
    return text + (f", {counts['skipped']} skipped" if counts["skipped"] else "")


class OutputGoneError(OSError):
    """The program that read our output (head, less) has exited."""


class _GuardedFile(io.FileIO):
    """A standard stream that ignores everything written to it after its first failure."""

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
                    # Neither has an errno: click exits without a message on EPIPE.
                    if exc.errno == errno.EPIPE:
                        raise OutputGoneError("the reader of standard output has gone") from exc
                    message = f"cannot write to standard output: {exc.strerror}"
                    raise DiskError(message, hint="check free space: df -h") from exc
        return memoryview(data).nbytes


def guard_streams() -> None:
    """Guards this process's standard streams; those that a test or another program has replaced stay."""
    # If one of 0 to 2 is closed, the next file would get its number, and all messages with it. `open` takes the lowest
    # free number.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)  # noqa: FBT003  # its only parameter
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for the life of the process
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
