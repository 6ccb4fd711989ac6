"""The last line while vLLM starts: drawn below all that others write, and gone when it is closed."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from contextlib import redirect_stderr

import click
import pytest

from coldstream.cli.live import Activity, LiveLines, StartStatus, live_lines, progress_for
from coldstream.cli.session import State
from coldstream.engines.vllm.vllm_log import read_line
from coldstream.telemetry.timeline.recorder import Recorder
from coldstream.units import MIB
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
    with redirect_stderr(terminal), live_lines(State(), lambda: "working " * 20) as line:
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
    line = LiveLines(terminal, lambda: "working")
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
    state = State(quiet=why == "quiet", json=why == "json")
    with redirect_stderr(stream), live_lines(state, lambda: "x", with_json=False) as line:
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
    assert re.match(r"  1\d\.", said)
    assert "engine spawn" in said
    assert "stream 45.1 MB of 90.9 MB, " in said
    status.on_progress(90_900_000, 90_900_000)
    assert "stream 90.9 MB done" in status.text()


def test_a_download_is_its_own_phase() -> None:
    status = StartStatus("download")
    status.follow(Recorder(time.monotonic(), read_line))
    status.on_progress(1_000_000, 2_000_000)
    assert "download       1.00 MB of 2.00 MB" in status.text()


def test_many_threads_draw_and_speak(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with redirect_stderr(terminal), progress_for(State(), total_bytes=8 * 10 * MIB, verb="upload") as progress:

        def work(number: int) -> None:
            path = f"model-{number:05d}-of-00008.safetensors"
            progress.begin(path, 10 * MIB)
            for _ in range(10):
                progress.fetched(path, MIB)
                progress.stored(path, MIB)
            click.echo(f"waiting {number}", err=True)
            progress.end(path, "sha256 ok")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [line.strip() for line in screen(terminal.text())]
    assert lines[-1] == "", "no bar is left"
    for number in range(8):
        name = f"model-{number:05d}-of-00008.safetensors"
        assert [line.split() for line in lines if line.startswith(name) and "sha256" in line] == [
            [name, "10.5", "MB", "sha256", "ok"]
        ]
        assert lines.count(f"waiting {number}") == 1


def test_a_narrow_terminal_keeps_the_numbers_of_shards(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with redirect_stderr(terminal), progress_for(State(), total_bytes=10 * MIB, verb="upload") as progress:
        progress.begin("model-00003-of-00008.safetensors", 10 * MIB)
        progress.end("model-00003-of-00008.safetensors", "ok")
    shown = [line for line in [line.strip() for line in screen(terminal.text())] if "00003" in line]
    assert shown
    assert all(len(line) <= 60 for line in shown)


def test_an_error_inside_gives_the_stream_back(terminal: Terminal) -> None:
    with redirect_stderr(terminal):
        with pytest.raises(ZeroDivisionError), progress_for(State(), total_bytes=1, verb="upload"):
            raise ZeroDivisionError
        assert sys.stderr is terminal


def test_quiet_shows_nothing(terminal: Terminal) -> None:
    with redirect_stderr(terminal), progress_for(State(quiet=True), total_bytes=1, verb="upload") as progress:
        progress.begin("a", 1)
        progress.end("a", "ok")
    assert terminal.text() == ""


def test_bars_are_drawn_below_the_finished_files(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with redirect_stderr(terminal), progress_for(State(), total_bytes=40 * MIB, verb="upload") as progress:
        for name in ("a.safetensors", "b.safetensors", "small.json"):
            progress.begin(name, 20 * MIB if name != "small.json" else 100)
        progress.fetched("b.safetensors", 20 * MIB)
        progress.end("a.safetensors", "kept")
        shown = screen(terminal.text())
    assert shown[0].split() == ["a.safetensors", "21.0", "MB", "kept"]
    assert [line.split()[0] for line in shown[1:]] == ["upload", "b.safetensors"], "small files have none"
    # Fetched bytes count half until they are stored, too.
    assert shown[1].split()[1:4] == ["━" * 5 + "╌" * 15, "10.5", "MB/41.9"]
    assert shown[2].split()[1:4] == ["━" * 10 + "╌" * 10, "10.5", "MB/21.0"]


def test_a_long_activity_is_named_while_it_lasts(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldstream.cli.live._PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("coldstream.cli.live._DRAW_SECONDS", 0.01)
    activity = Activity()
    with redirect_stderr(terminal), live_lines(State(), activity.text):
        activity.begin("speed")
        activity.tell("8: 240 MB/s")
        deadline = time.monotonic() + 10
        while not re.search(r"speed   8: 240 MB/s   \d+ s", terminal.text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        activity.begin("")
        while screen(terminal.text()) != [""]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_short_activity_is_not_shown() -> None:
    activity = Activity("speed")
    activity.tell("8: 240 MB/s")
    assert activity.text() == ""
