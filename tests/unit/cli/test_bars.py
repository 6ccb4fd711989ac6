"""Progress on a terminal: drawn by one at a time, and gone when it is done."""

from __future__ import annotations

import io
import re
import sys
import threading
from contextlib import redirect_stderr

import click
import pytest

from coldstream.cli.bars import progress_for
from coldstream.cli.session import State
from coldstream.units import MIB


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()))]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def test_many_threads_draw_and_speak(terminal: Terminal) -> None:
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
    lines = terminal.lines()
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
    shown = [line for line in terminal.lines() if "00003" in line]
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
    assert terminal.getvalue() == ""
