"""`coldstream --help`, and errors that end a command."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from coldstream.cli import SECTIONS, VERBS, cli, main
from coldstream.cli.session import State
from coldstream.errors import NotFoundError
from tests.unit.cli.test_output import STEERS


def commands() -> list[tuple[str, click.Command]]:
    """All commands, also those in groups, by their names."""
    context = click.Context(cli)
    verbs = [(verb, command) for verb in VERBS if (command := cli.get_command(context, verb))]
    inner = [
        (f"{verb} {name}", command)
        for verb, group in verbs
        if isinstance(group, click.Group)
        for name, command in group.commands.items()
    ]
    return verbs + inner


def test_the_help_fits_one_screen_and_cuts_no_summary() -> None:
    lines = CliRunner().invoke(cli, ["--help"], terminal_width=80).output.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    for title, verbs in SECTIONS.items():
        start = lines.index(f"{title}:") + 1
        assert [line.split()[0] for line in lines[start : start + len(verbs)]] == list(verbs)
        assert all(line.endswith(".") and not line.endswith("...") for line in lines[start : start + len(verbs)])


def test_the_help_has_the_summaries_of_the_commands() -> None:
    summaries = {verb: summary for verbs in SECTIONS.values() for verb, summary in verbs.items()}
    assert summaries == {verb: command.get_short_help_str(80) for verb, command in commands() if " " not in verb}


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_help_has_a_summary_and_examples_and_no_wide_line(name: str, command: click.Command) -> None:
    text = CliRunner().invoke(cli, [*name.split(), "--help"], terminal_width=80, prog_name="coldstream").output
    summary, blank, example = text.splitlines()[2:5]
    assert summary.endswith("."), "one line"
    assert not blank
    assert "coldstream " in example
    assert "Exit codes: 0 " in text
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help, option.name


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize(
    ("failure", "code"), [(NotFoundError("no https://h/m?token=marker"), 10), (KeyError("s3://a:marker@b"), 1)]
)
def test_errors_and_tracebacks_show_no_query_of_a_url(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
    code: int,
    *,
    json_too: bool,
) -> None:
    def fail(*_: object, **__: object) -> None:
        state.json, state.debug = json_too, True
        try:
            raise ValueError("exceeded with url: /m?X-Amz-Signature=marker\x1b[2J")
        except ValueError as exc:
            raise failure from exc

    state = State()
    monkeypatch.setattr("coldstream.cli.State", lambda: state)
    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemExit) as ended:
        main(["load"])
    assert ended.value.code == code
    out, err = capsys.readouterr()
    assert "marker" not in out + err
    assert not STEERS.search(out + err)
    assert "Traceback" in err
    assert bool(out) == json_too
