"""The progress of a start in the last line of the terminal, with other output above it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from coldstream.units import format_bytes, format_rate

if TYPE_CHECKING:
    from coldstream.cli.session import State
    from coldstream.telemetry.timeline.recorder import Recorder

_DRAW_SECONDS = 0.2
# Incomplete lines are held back: drawing below one would end it.
_HELD_BYTES_MAX = 64 << 10
_ERASE = "\r\x1b[2K"


class StartStatus:
    """The progress of a start as one line. Thread-safe."""

    def __init__(self, verb: str) -> None:
        """Args: "stream" or "download", for the weights."""
        self._recorder: Recorder | None = None
        self._verb = verb
        self._bytes = (0, 0)
        self._began = self._moved = 0.0

    def follow(self, recorder: Recorder) -> None:
        """Reads the phases from `recorder`."""
        self._recorder = recorder

    def on_progress(self, done: int, total: int) -> None:
        """Updates the bytes of the weights; see `Options.on_progress`."""
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
        """The line, without a line break."""
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


class LiveLine:
    """A line that is redrawn several times a second until it is closed."""

    def __init__(self, stream: TextIO | None, text: Callable[[], str]) -> None:
        """Starts to draw `text` to the terminal `stream`; None to draw nothing."""
        self._stream, self._text = stream, text
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._above: list[_Above] = []
        self._thread = threading.Thread(target=self._redraw, name="live", daemon=True)
        if stream is not None:
            self._thread.start()

    def above(self, stream: TextIO) -> BinaryIO | None:
        """A replacement for `stream` that writes above the line; None if nothing is drawn."""
        if self._stream is None:
            return None
        with self._lock:
            self._above.append(_Above(self, stream.behind if isinstance(stream, _Above) else stream))
            return cast("BinaryIO", self._above[-1])

    def close(self) -> None:
        """Removes the line; later output passes through. Idempotent."""
        with self._lock:
            if self._stream is None or self._closed.is_set():
                return
            self._erase()
            self._closed.set()
            for above in self._above:
                above.write(b"")
        self._thread.join()

    def write(self, target: BinaryIO, held: bytes, data: bytes) -> bytes:
        """Writes the complete lines of some output; returns the rest, to be held back."""
        with self._lock:
            if self._closed.is_set():
                whole, rest = held + data, b""
            else:
                head, newline, rest = (held + data).rpartition(b"\n")
                whole, rest = (head + newline, rest) if len(rest) < _HELD_BYTES_MAX else (head + newline + rest, b"")
            if whole:
                self._erase()
                target.write(whole)
                target.flush()
                self._draw()
            return rest

    def _redraw(self) -> None:
        while not self._closed.wait(_DRAW_SECONDS):
            with self._lock:
                self._draw()

    def _erase(self, text: str = "") -> None:
        if self._stream is not None and not self._closed.is_set():
            self._stream.write(_ERASE + text)
            self._stream.flush()

    def _draw(self) -> None:
        # A character in the last column would move the cursor to the next line.
        self._erase(self._text()[: shutil.get_terminal_size().columns - 1])


class _Above:
    """A stream of bytes or text whose lines appear above the live one."""

    def __init__(self, line: LiveLine, stream: TextIO) -> None:
        self._line, self.behind = line, stream
        self._held = b""

    def write(self, data: bytes | str) -> int:
        coded = data.encode(self.behind.encoding or "utf-8", "replace") if isinstance(data, str) else data
        self._held = self._line.write(self.behind.buffer, self._held, coded)
        return len(data)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.behind.isatty()


@contextmanager
def live_line(state: State, text: Callable[[], str]) -> Iterator[LiveLine]:
    """Draws a line within the block, or until it is closed, if stderr is a terminal."""
    stderr, can_draw = sys.stderr, _can_draw(state)
    line = LiveLine(stderr if can_draw else None, text)
    if can_draw:
        sys.stderr = cast("TextIO", line.above(stderr))
    try:
        yield line
    finally:
        line.close()
        sys.stderr = stderr


@contextmanager
def phase_lines(state: State, status: StartStatus) -> Iterator[None]:
    """Prints a line for each phase within the block, where `live_line` cannot draw."""
    if state.quiet or _can_draw(state):
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


def _can_draw(state: State) -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not (state.quiet or state.json)
