"""Progress on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coldstream.cli.output import echo, terminal_safe
from coldstream.cli.session import State
from coldstream.printable import printable
from coldstream.progress import Progress
from coldstream.units import MIB, format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_DRAW_SECONDS = 0.1
_BAR_COLUMNS = 20
_WIDE_COLUMNS = 90
# Smaller files finish before their bar would be seen.
_BAR_BYTES_MIN = 4 * MIB


@contextmanager
def progress_for(state: State, *, total_bytes: int, verb: str, files: bool = True) -> Iterator[Progress]:
    """Progress that fits stderr and the options.

    Args:
        state: The common options.
        total_bytes: Bytes of all files.
        verb: The label of the total, such as "upload".
        files: Whether to print a line for each finished file.
    """
    if state.quiet:
        yield Progress()
    elif sys.stderr.isatty():
        with _bars(total_bytes, verb, files=files) as progress:
            yield progress
    else:
        yield _Lines(files=files)


class _Lines(Progress):
    """One line per finished file."""

    def __init__(self, *, files: bool) -> None:
        self._files = files
        self._sizes: dict[str, int] = {}

    def begin(self, path: str, size: int, *, stages: int = 2) -> None:
        self._sizes[path] = size

    def end(self, path: str, note: str) -> None:
        size = self._sizes.pop(path, 0)
        if self._files:
            echo(f"{printable(path)}  {format_bytes(size) + '  ' if size else ''}{note}", err=True)

    def say(self, text: str) -> None:
        echo(text, err=True)


@contextmanager
def _bars(total_bytes: int, verb: str, *, files: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    console = Console(file=sys.stderr, highlight=False)
    screen = threading.Lock()
    # On a narrow terminal, names of files are more useful than bars.
    bar = [BarColumn(bar_width=_BAR_COLUMNS)] if console.width >= _WIDE_COLUMNS else []
    bars = RichProgress(
        TextColumn("  {task.description}", markup=False),
        *bar,
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        # rich moves the cursor relative to what was drawn last, and draws from any thread: two at the same time leave
        # old bars behind. So all drawing happens under one lock, including other output to stderr.
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    progress = _Bars(bars, total_bytes, verb, screen, lines=files)
    done = threading.Event()

    def draw() -> None:
        while not done.wait(_DRAW_SECONDS):
            with screen:
                bars.refresh()

    drawing = threading.Thread(target=draw, name="bars", daemon=True)
    stderr = sys.stderr
    with bars:
        drawing.start()
        sys.stderr = _LinesAbove(progress)
        try:
            yield progress
        finally:
            sys.stderr = stderr
            done.set()
            drawing.join()


class _LinesAbove:
    """Replaces stderr while bars are drawn, and prints its lines above them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._partial = ""

    def write(self, text: str) -> int:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._progress.say(line)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


class _Bars(Progress):
    """A bar for each large file in progress, a line for each finished file, and a bar for the total."""

    def __init__(self, bars: RichProgress, total_bytes: int, verb: str, screen: threading.Lock, *, lines: bool) -> None:
        self._bars, self._screen, self._lines = bars, screen, lines
        # The other columns take 38 characters.
        bar = _BAR_COLUMNS if bars.console.width >= _WIDE_COLUMNS else 0
        self._width = max(12, min(44, bars.console.width - bar - 38))
        self._total = bars.add_task(verb.ljust(self._width), total=total_bytes)
        self._files: dict[str, tuple[TaskID | None, int, int]] = {}  # path to task, stages, size
        self._lock = threading.Lock()

    def begin(self, path: str, size: int, *, stages: int = 2) -> None:
        task = None
        if size >= _BAR_BYTES_MIN:
            task = self._bars.add_task(_shortened(path, self._width).ljust(self._width), total=size)
        with self._lock:
            self._files[path] = (task, stages, size)

    def fetched(self, path: str, count: int) -> None:
        self._move(path, count)

    def stored(self, path: str, count: int) -> None:
        self._move(path, count)

    def end(self, path: str, note: str) -> None:
        with self._lock:
            task, _, size = self._files.pop(path, (None, 1, 0))
        if task is not None:
            self._bars.remove_task(task)
        if not self._lines:
            return
        name = _shortened(path, self._width)
        self.say(f"  {name:<{self._width}} {format_bytes(size) if size else '':>9}   {note}")

    def say(self, text: str) -> None:
        with self._screen:
            self._bars.console.print(terminal_safe(text), markup=False, highlight=False, soft_wrap=True)

    def _move(self, path: str, count: int) -> None:
        """Bytes that are fetched and stored count half each time."""
        with self._lock:
            task, stages, _ = self._files.get(path, (None, 1, 0))
        if task is not None:
            self._bars.advance(task, count / stages)
        self._bars.advance(self._total, count / stages)


def _shortened(path: str, width: int) -> str:
    """The path, or its beginning and end: shard numbers are followed by a long ending."""
    path = printable(path)
    if len(path) <= width:
        return path
    end = width // 4
    return f"{path[: width - end - 1]}…{path[len(path) - end :]}"
