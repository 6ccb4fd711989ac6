"""Progress as people see it: bars on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from coldstream.cli.session import State
from coldstream.progress import Progress
from coldstream.units import format_bytes


@contextmanager
def progress_for(state: State, *, total_bytes: int, verb: str) -> Iterator[Progress]:
    """The right kind of progress for where stderr goes.

    Args:
        state: The common options.
        total_bytes: What will be moved in all.
        verb: What is being done, for the line of the total ("upload").
    """
    if state.quiet:
        yield Progress()
    elif sys.stderr.isatty():
        with _bars(total_bytes, verb) as progress:
            yield progress
    else:
        yield _Lines()


class _Lines(Progress):
    """One line per finished file."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def begin(self, path: str, size: int, *, stages: int = 2) -> None:
        self._sizes[path] = size

    def end(self, path: str, note: str) -> None:
        size = self._sizes.pop(path, 0)
        click.echo(f"{path}  {format_bytes(size) + '  ' if size else ''}{note}", err=True)

    def say(self, text: str) -> None:
        click.echo(text, err=True)


@contextmanager
def _bars(total_bytes: int, verb: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    bars = RichProgress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
    with bars:
        yield _Bars(bars, total_bytes, verb)


class _Bars(Progress):
    """A bar per file under way, a line per finished one, and one bar for all."""

    def __init__(self, bars: object, total_bytes: int, verb: str) -> None:
        from rich.progress import Progress as RichProgress

        assert isinstance(bars, RichProgress)
        self._bars = bars
        self._total = bars.add_task(verb, total=total_bytes)
        self._files: dict[str, tuple[int, int, int]] = {}  # path to task, stages, size
        self._lock = threading.Lock()

    def begin(self, path: str, size: int, *, stages: int = 2) -> None:
        if size:
            with self._lock:
                self._files[path] = (int(self._bars.add_task(_shortened(path), total=size)), stages, size)

    def fetched(self, path: str, count: int) -> None:
        self._move(path, count)

    def stored(self, path: str, count: int) -> None:
        self._move(path, count)

    def end(self, path: str, note: str) -> None:
        with self._lock:
            task, _, size = self._files.pop(path, (None, 1, 0))
        if task is not None:
            self._bars.remove_task(task)  # type: ignore[arg-type]
        self.say(f"  {_shortened(path):<44} {format_bytes(size) if size else '':>9}   {note}")

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def _move(self, path: str, count: int) -> None:
        """A byte that is both fetched and stored counts half each time: the bar moves with the slower of the two."""
        with self._lock:
            task, stages, _ = self._files.get(path, (None, 1, 0))
        if task is not None:
            self._bars.advance(task, count / stages)  # type: ignore[arg-type]
            self._bars.advance(self._total, count / stages)


def _shortened(path: str, width: int = 44) -> str:
    return path if len(path) <= width else "…" + path[1 - width :]
