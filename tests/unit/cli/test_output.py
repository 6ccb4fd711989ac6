"""Untrusted text in output: it cannot steer a terminal or look like another line of coldstream."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from coldstream.cli import cli
from coldstream.cli.live import progress_for
from coldstream.cli.output import echo, table_text, terminal_safe
from coldstream.cli.session import State
from tests.terminal import screen
from tests.unit.cli.test_live import Terminal

HOSTILE = "evil\x1b]0;owned\x07\x1b[8m\x9b2J\u202egnp\x7f"
ESCAPED = r"evil\x1b]0;owned\x07\x1b[8m\x9b2J\u202egnp\x7f"
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_only_our_own_colours_pass() -> None:
    text = click.style(HOSTILE, fg="red") + "\x1b[31;8mhidden"
    assert terminal_safe(text) == f"\x1b[31m{ESCAPED}\x1b[0m" + r"\x1b[31;8mhidden"


def test_every_way_of_showing_something(capsys: pytest.CaptureFixture[str]) -> None:
    state = State()
    echo(HOSTILE)
    state.say(HOSTILE)
    state.show({}, HOSTILE)
    state.explain(f"{HOSTILE}\nerror: b", f"run: {HOSTILE}\nhint:  c")
    with progress_for(state, total_bytes=1, verb="upload") as progress:
        progress.begin(f"{HOSTILE}\nx", 1)
        progress.end(f"{HOSTILE}\nx", "kept")
        progress.say(HOSTILE)
    out, err = capsys.readouterr()
    assert out.splitlines() == [ESCAPED] * 2
    lines = err.splitlines()
    assert lines[0] == lines[-1] == ESCAPED
    assert lines[1:5] == [f"error: {ESCAPED}", "       error: b", f"hint:  run: {ESCAPED}", "       hint:  c"]
    assert lines[5] == rf"{ESCAPED}\nx  1 B  kept"


def test_bars_draw_names_as_they_are_and_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with progress_for(State(), total_bytes=1 << 30, verb="upload") as progress:
        progress.begin("[bold]a\x1b[2J", 1 << 30)
        progress.begin("[bold]b\x1b[2J", 1 << 30)
        progress.end("[bold]b\x1b[2J", "kept")
        drawn = screen(terminal.text())
    assert r"[bold]a\x1b[2J" in drawn[-1]
    assert r"[bold]b\x1b[2J" in drawn[0]
    assert "\x1b[2J" not in terminal.text()


def test_a_cell_is_one_line_as_wide_as_it_is_shown() -> None:
    assert table_text([("NAME", "N"), ("a\nb\x1b", "1")]) == "NAME      N\n" + r"a\nb\x1b  1"


def test_json_is_exact_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    State(json=True).show({"name": HOSTILE}, "")
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": HOSTILE}
    assert not STEERS.search(out)


def test_all_output_goes_through_one_module() -> None:
    sources = Path(cli.callback.__code__.co_filename).parent  # type: ignore[union-attr]
    direct = re.compile(r"click\.s?echo\(|(?<![.\w])print\(")
    assert [path.name for path in sources.glob("*.py") if direct.search(path.read_text())] == ["output.py"]
