"""A terminal as far as the live line needs one, and a command run on one."""

from __future__ import annotations

import os
import pty
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def screen(text: str) -> list[str]:
    """The lines that are left of what was written: `ESC [2K` clears a line, `ESC [1A` goes up by one."""
    lines, row = [""], 0
    for piece in re.split(r"(\n|\x1b\[2K|\x1b\[1A)", text.replace("\r\n", "\n")):
        if piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece == "\x1b[1A":
            row -= 1
        else:
            lines[row] += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", piece).strip("\r")
    return lines


def run_on_terminal(
    arguments: Sequence[str], *, cwd: Path, environ: Mapping[str, str], on_text: Callable[[int, str], None]
) -> tuple[int, str]:
    """Runs a program on a terminal of its own, to its end.

    Args:
        arguments: The program and its arguments.
        cwd: Where.
        environ: With what.
        on_text: Told its process and all that it has written, each time that there is more.

    Returns:
        Its exit code, and all that it has written.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(arguments[0], [*arguments], dict(environ))
    written = b""
    try:
        # Linux tells by EIO that nobody has it open any more.
        while piece := os.read(terminal, 65536):
            written += piece
            on_text(pid, written.decode("utf-8", "replace"))
    except OSError:
        pass
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), written.decode("utf-8", "replace")
