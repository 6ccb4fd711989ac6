"""The types of option values, and errors for misspelt commands, flags and values."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from coldstream.cli.verbs import AGE, SIZE, SPEED, count
from tests.e2e.command import Command

CASES = (
    (
        AGE,
        {"30s": 30, "1.5m": 90, "12h": 43200, "7d": 604800, "2w": 1209600},
        ("7", "d", "-1d", "7 days"),
        "is not an age",
    ),
    (SIZE, {"64MiB": 64 << 20, "5GB": 5 * 10**9}, ("lots", "16"), "is "),
    (count(1, 64), {"1": 1, "64": 64}, ("0", "65", "x", "1.5"), "is not a whole number from 1 to 64"),
    (SPEED, {"10Gbit": 1.25e9, "500 mbit/s": 62.5e6}, ("fast", "0Gbit", "10GB"), "is not a speed"),
)


@pytest.mark.parametrize(("kind", "values", "_invalid", "_error"), CASES)
def test_reads_values(kind: click.ParamType, values: dict[str, float], _invalid: object, _error: object) -> None:
    assert [kind.convert(text, None, None) for text in values] == list(values.values())


@pytest.mark.parametrize(("kind", "_values", "invalid", "error"), CASES)
def test_rejects_invalid_values(kind: click.ParamType, _values: object, invalid: tuple[str, ...], error: str) -> None:
    for text in invalid:
        with pytest.raises(click.BadParameter, match=error):
            kind.convert(text, None, None)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(None, "", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bundel", "list"), "No such command 'bundel'. Did you mean 'bundle'?"),
        (("Upload", "org/model"), "No such command 'Upload'. Did you mean 'upload'?"),
        (("frobnicate",), "No such command 'frobnicate'.\n"),
        (("cache", "lst"), "No such command 'lst'. Did you mean 'list'?"),
        (("cdn", "chekc", "org/model"), "No such command 'chekc'. Did you mean 'check'?"),
        (("launch", "statsu"), "Did you mean 'status'? A model of that name: coldstream launch up statsu"),
        (("template", "chek", "x.yaml"), "Did you mean 'check'? A model of that name: coldstream template render chek"),
        (("list", "--jsno"), "--json"),
        (("cost", "--size", "16"), "'16' is a size without a unit; write 16GB or 16MiB"),
        (("tune", "--matrix", "--cloud", "awss"), "'awss' is not a known cloud"),
    ],
)
def test_suggests_the_nearest_word(command: Command, arguments: tuple[str, ...], message: str) -> None:
    assert message in command.run(*arguments, code=2)[1]


def test_a_model_may_have_no_organisation(command: Command) -> None:
    assert "option '--target'" in command.run("template", "qwen3", code=2)[1]
