"""Errors for misspelt commands, flags and values, none of which needs a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import Command


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
