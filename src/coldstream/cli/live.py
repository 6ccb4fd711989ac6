"""What a command is doing, in the last lines of the terminal, with all other output above them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from coldstream.cli.output import echo
from coldstream.cli.session import State
from coldstream.printable import printable
from coldstream.progress import Progress
from coldstream.units import MIB, format_bytes, format_rate, format_seconds

if TYPE_CHECKING:
    from coldstream.telemetry.timeline.recorder import Recorder

_DRAW_SECONDS = 0.2
# What takes less is over before a user notices the wait.
_PATIENCE_SECONDS = 1.0
# Incomplete lines are held back: drawing below one would end it.
_HELD_BYTES_MAX = 64 << 10
_ERASE, _UP = "\r\x1b[2K", "\x1b[1A"
_BAR_COLUMNS = 20
_WIDE_COLUMNS = 90
# Smaller files finish before their bar would be seen.
_BAR_BYTES_MIN = 4 * MIB


class LiveLines:
    """Lines that are redrawn several times a second until they are closed."""

    def __init__(self, stream: TextIO | None, text: Callable[[], str]) -> None:
        """Starts to draw `text` to the terminal `stream`; None to draw nothing."""
        self._stream, self._text, self.is_drawn = stream, text, stream is not None
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._drawn = 0
        self._above: list[_Above] = []
        self._thread = threading.Thread(target=self._redraw, name="live", daemon=True)
        if stream is not None:
            self._thread.start()

    def above(self, stream: TextIO) -> BinaryIO | None:
        """A replacement for `stream` that writes above the lines; None if nothing is drawn."""
        if self._stream is None:
            return None
        with self._lock:
            self._above.append(_Above(self, stream.behind if isinstance(stream, _Above) else stream))
            return cast("BinaryIO", self._above[-1])

    def close(self) -> None:
        """Removes the lines; later output passes through. Idempotent."""
        with self._lock:
            if self._stream is None or self._closed.is_set():
                return
            self._draw("")
            self._closed.set()
            for above in self._above:
                above.write(b"")
        self._thread.join()

    def write(self, target: BinaryIO, held: bytes, data: bytes) -> bytes:
        """Writes the complete lines of some output; returns the rest, to be held back."""
        with self._lock:
            data = held + data
            rest = data[data.rfind(b"\n") + 1 :]
            if self._closed.is_set() or len(rest) >= _HELD_BYTES_MAX:
                rest = b""
            if whole := data[: len(data) - len(rest)]:
                self._draw("")
                target.write(whole)
                target.flush()
                self._draw(self._text())
            return rest

    def _redraw(self) -> None:
        while not self._closed.wait(_DRAW_SECONDS):
            with self._lock:
                self._draw(self._text())

    def _draw(self, text: str) -> None:
        if self._stream is None or self._closed.is_set() or not (text or self._drawn):
            return
        columns, rows = terminal_size()
        # A character in the last column would move the cursor to the next line.
        lines = [printable(line)[: columns - 1] for line in text.splitlines()[1 - rows :]]
        self._stream.write(_ERASE + (_UP + _ERASE) * (self._drawn - 1) + "\n".join(lines))
        self._stream.flush()
        self._drawn = len(lines)


class _Above:
    """A stream of bytes or text whose lines appear above the live ones."""

    def __init__(self, live: LiveLines, stream: TextIO) -> None:
        self._live, self.behind = live, stream
        self._held = b""

    def write(self, data: bytes | str) -> int:
        coded = data.encode(self.behind.encoding or "utf-8", "replace") if isinstance(data, str) else data
        self._held = self._live.write(self.behind.buffer, self._held, coded)
        return len(data)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.behind.isatty()


def _can_draw(state: State) -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not state.quiet


@contextmanager
def live_lines(state: State, text: Callable[[], str], *, with_json: bool = True) -> Iterator[LiveLines]:
    """Draws lines within the block, or until they are closed, on a terminal; `with_json` also with --json."""
    if not _can_draw(state) or (state.json and not with_json):
        yield LiveLines(None, text)
        return
    live = LiveLines(sys.stderr, text)
    stdout, stderr = (cast("TextIO", live.above(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            yield live
        finally:
            live.close()


class Activity:
    """What a command is waiting for, as a line that appears once that takes longer than a second."""

    def __init__(self, what: str = "") -> None:
        self.begin(what)

    def begin(self, what: str) -> None:
        """Waits for something else now; for nothing if it is empty."""
        self._what, self._detail, self._since = what, "", time.monotonic()

    def tell(self, detail: str) -> None:
        self._detail = f"   {detail}"

    def text(self) -> str:
        seconds = time.monotonic() - self._since
        is_shown = self._what and seconds >= _PATIENCE_SECONDS
        return f"…     {self._what}{self._detail}   {seconds:.0f} s" if is_shown else ""


def terminal_size() -> tuple[int, int]:
    """Columns and rows."""
    import shutil  # with what compresses, which most commands do not need

    return shutil.get_terminal_size()


def bar_text(share: float) -> str:
    """A bar, of which `share` is complete."""
    complete = round(_BAR_COLUMNS * min(max(share, 0.0), 1.0))
    return "━" * complete + "╌" * (_BAR_COLUMNS - complete)


class TransferBar:
    """How many bytes of a transfer are done, as a line."""

    def __init__(self, label: str, total: int = 0, *, stages: int = 1) -> None:
        self.label, self.total, self.stages = label, total, stages
        self.done, self._began = 0.0, time.monotonic()

    def move_to(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def text(self, width: int = 6, *, bar: bool = True) -> str:
        """The line, with a label of `width` columns."""
        seconds = time.monotonic() - self._began
        left = format_seconds(seconds * (self.total - self.done) / self.done) if self.done > 0 else "-"
        size = f"{format_bytes(self.done)}/{format_bytes(self.total)}"
        drawn = f" {bar_text(self.done / self.total if self.total else 0.0)}" if bar else ""
        label, rate = _shortened(self.label, width), format_rate(self.done, seconds)
        return f"  {label:<{width}}{drawn} {size:>17} {rate:>9} {left}"


class TransferProgress(Progress):
    """A line for each finished file and, where they are `drawn`, a bar for each large file and for the total."""

    def __init__(self, total_bytes: int, verb: str, *, files: bool, drawn: bool) -> None:
        columns, _ = terminal_size()
        # On a narrow terminal, names of files are more useful than bars. The other columns take 38 characters.
        self._bar = columns >= _WIDE_COLUMNS
        self._width = max(12, min(44, columns - 38 - (_BAR_COLUMNS if self._bar else 0)))
        self._total, self._bars = TransferBar(verb, total_bytes), dict[str, TransferBar]()
        self._lines, self._drawn = files, drawn
        self._lock = threading.Lock()

    def begin(self, path: str, size: int, *, stages: int = 2) -> None:
        with self._lock:
            self._bars[path] = TransferBar(path, size, stages=stages)

    def fetched(self, path: str, count: int) -> None:
        # Bytes that are fetched and stored count half each time.
        with self._lock:
            bar = self._bars.get(path) or TransferBar(path)
            bar.done += count / bar.stages
            self._total.done += count / bar.stages

    stored = fetched

    def end(self, path: str, note: str) -> None:
        with self._lock:
            bar = self._bars.pop(path, None)
        size = format_bytes(bar.total) if bar and bar.total else ""
        if self._lines and self._drawn:
            echo(f"  {_shortened(path, self._width):<{self._width}} {size:>9}   {note}", err=True)
        elif self._lines:
            echo(f"{printable(path)}  {size + '  ' if size else ''}{note}", err=True)

    def say(self, text: str) -> None:
        echo(text, err=True)

    def text(self) -> str:
        with self._lock:
            bars = [self._total, *(bar for bar in self._bars.values() if bar.total >= _BAR_BYTES_MIN)]
            return "\n".join(bar.text(self._width, bar=self._bar) for bar in bars)


@contextmanager
def progress_for(state: State, *, total_bytes: int, verb: str, files: bool = True) -> Iterator[Progress]:
    """The progress of an "upload", or another verb, on stderr; with `files` also a line for each finished file."""
    if state.quiet:
        yield Progress()
        return
    progress = TransferProgress(total_bytes, verb, files=files, drawn=_can_draw(state))
    with live_lines(state, progress.text):
        yield progress


def _shortened(path: str, width: int) -> str:
    """The path, or its beginning and end: shard numbers are followed by a long ending."""
    path = printable(path)
    if len(path) <= width:
        return path
    end = width // 4
    return f"{path[: width - end - 1]}…{path[len(path) - end :]}"


class StartStatus:
    """The progress of a start of vLLM as one line. Thread-safe."""

    def __init__(self, verb: str) -> None:
        """Takes "stream" or "download", for the weights."""
        self._recorder: Recorder | None = None
        self._verb = verb
        self._bytes = (0, 0)
        self._began = self._moved = 0.0

    def follow(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._began = self._began or now
        if done != self._bytes[0]:
            self._moved = now
        self._bytes = (done, total)

    def phase(self) -> tuple[str, str, float]:
        """The name and description of the current phase, and the seconds since the command began."""
        if self._recorder is None:
            return "", "", 0.0
        phase = self._recorder.phase(time.monotonic())
        done, total = self._bytes
        if self._verb == "download" and 0 < done < total:
            return self._verb, "the weights, before vLLM starts", phase.stop
        return phase.name, phase.note, phase.stop

    def text(self) -> str:
        name, note, seconds = self.phase()
        if not name:
            return ""
        done, total = self._bytes
        verb = "" if name == self._verb else f"{self._verb} "
        parts = [f"{seconds:6.1f} s", f"{name:<12}"]
        if total and done >= total:
            parts.append(f"{verb}{format_bytes(total)} done")
        elif total:
            rate = f", {format_rate(done, self._moved - self._began)}" if self._moved > self._began else ""
            parts.append(f"{verb}{format_bytes(done)} of {format_bytes(total)}{rate}")
        return "   ".join([*parts, note])


@contextmanager
def phase_lines(state: State, status: StartStatus) -> Iterator[None]:
    """Prints a line for each phase within the block, where `live_lines` does not draw."""
    if state.quiet or (_can_draw(state) and not state.json):
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        last = ""
        while not ended.wait(_DRAW_SECONDS):
            name, note, seconds = status.phase()
            if name != last:
                state.say(f"{seconds:6.1f} s   {name}: {note}")
                last = name

    thread = threading.Thread(target=watch, name="phases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
