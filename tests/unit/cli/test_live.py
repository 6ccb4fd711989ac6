"""The last line while vLLM starts: drawn below all that others write, and gone when it is closed."""

from __future__ import annotations

import io
import sys
import threading
import time
from contextlib import redirect_stderr

import click
import pytest

from coldstream.cli.live import LiveLine, StartStatus, live_line
from coldstream.cli.session import State
from coldstream.engines.vllm.log_marks import read_line
from coldstream.telemetry.timeline.recorder import Recorder
from tests.terminal import screen


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


def test_what_many_write_in_pieces_stands_above_it(terminal: Terminal) -> None:
    with redirect_stderr(terminal), live_line(State(), lambda: "working " * 20) as line:
        together = threading.Barrier(4)

        def work(number: int) -> None:
            stream = line.above(sys.stderr)
            assert stream is not None
            together.wait(10)
            for step in range(50):
                stream.write(f"line {number}".encode())
                stream.write(f".{step}\n".encode())

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        click.echo("said", err=True)
        for thread in threads:
            thread.join()
        shown = screen(terminal.text())
        assert shown[-1] == ("working " * 20)[:59], "below the rest, and not over the edge"
    shown = screen(terminal.text())
    assert shown[-1] == "", "nothing is left of it"
    assert sorted(shown[:-1]) == sorted(["said", *(f"line {n}.{s}" for n in range(4) for s in range(50))])


def test_an_unfinished_line_waits_for_its_end_or_the_line_s(terminal: Terminal) -> None:
    line = LiveLine(terminal, lambda: "working")
    stream = line.above(terminal)
    assert stream is not None
    stream.write(b"begun")
    assert "begun" not in terminal.text()
    line.close()
    line.close()
    assert screen(terminal.text()) == ["begun"]
    stream.write(b", ended\n")
    assert screen(terminal.text()) == ["begun, ended", ""]


@pytest.mark.parametrize("why", ["quiet", "json", "dumb", "file"])
def test_where_nobody_looks_nothing_is_drawn(why: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO() if why == "file" else terminal
    with redirect_stderr(stream), live_line(State(quiet=why == "quiet", json=why == "json"), lambda: "x") as line:
        assert line.above(sys.stderr) is None
        assert sys.stderr is stream
        line.close()
    assert terminal.text() == ""


def test_how_far_a_start_has_come() -> None:
    status = StartStatus("stream")
    assert status.text() == ""
    recorder = Recorder(time.monotonic() - 12.3, read_line)
    status.follow(recorder)
    assert "resolve" in status.text()
    recorder.mark("spawned", time.monotonic())
    recorder.line("INFO Resolved architecture: LlamaForCausalLM", time.monotonic())
    status.on_progress(0, 90_900_000)
    status.on_progress(45_100_000, 90_900_000)
    said = status.text()
    assert said.startswith("  12.")
    assert "engine spawn" in said
    assert "stream 45.1 MB of 90.9 MB, " in said
    status.on_progress(90_900_000, 90_900_000)
    assert "stream 90.9 MB done" in status.text()


def test_a_download_is_its_own_phase() -> None:
    status = StartStatus("download")
    status.follow(Recorder(time.monotonic(), read_line))
    status.on_progress(1_000_000, 2_000_000)
    assert "download       1.00 MB of 2.00 MB" in status.text()
