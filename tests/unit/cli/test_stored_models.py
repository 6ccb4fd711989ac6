"""`coldstream list` of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import Command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(None, "", cwd=tmp_path)


def test_a_folder_that_does_not_exist_is_an_error(command: Command) -> None:
    """coldstream list --store ./typo"""
    assert "typo does not exist" in command.run("list", "--store", "./typo", code=10)[1]


def test_an_empty_folder_has_no_models(command: Command) -> None:
    """coldstream list --store ./empty"""
    (command.cwd / "empty").mkdir()
    out, err = command.run("list", "--store", "./empty")
    assert "no models in file://" in out
    assert "coldstream upload" in err
