"""`coldstream list`, `upload` and `remove` with a folder as the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters import BASE, adapter_files, base_files
from tests.e2e.command import Command
from tests.models import write_model


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


STORE = ("--store", "./store")


@pytest.fixture
def sources(tmp_path: Path) -> None:
    write_model(tmp_path / "base", base_files())
    write_model(tmp_path / "sql", adapter_files(rank=16))
    write_model(tmp_path / "dora", adapter_files("org/gone", use_dora=True))


@pytest.mark.usefixtures("sources")
def test_an_upload_says_that_it_is_an_adapter(command: Command) -> None:
    """coldstream upload ./sql --as org/sql"""
    err = command.run("upload", "./sql", "--as", "org/sql", *STORE)[1]
    assert f"  LoRA adapter of {BASE}, rank 16\n" in err
    assert f"warning: its base is not in the bucket; upload {BASE}, or name another with --base" in err
    command.run("upload", "./base", "--as", BASE, *STORE)
    err = command.run("upload", "./dora", "--as", "org/dora", "--base", BASE, *STORE)[1]
    assert f"  LoRA adapter of {BASE}, rank 8\n" in err
    assert "vLLM cannot serve it: its configuration sets use_dora, which vLLM does not support" in err
    assert "its base is not in the bucket" not in err
    document = command.json("upload", "./sql", "--as", "org/sql", "--dry-run", *STORE)
    assert (document["kind"], document["base"], document["rank"]) == ("adapter", BASE, 16)


@pytest.mark.usefixtures("sources")
def test_adapters_are_listed_below_their_base(command: Command, tmp_path: Path) -> None:
    """coldstream list"""
    for source, name in (("sql", "org/a-sql"), ("base", BASE), ("sql", "org/z-sql"), ("dora", "org/dora")):
        command.run("upload", f"./{source}", "--as", name, *STORE)
    write_model(tmp_path / "store/org/unknown", adapter_files(None))
    lines = command.run("list", *STORE)[0].splitlines()
    assert [line.partition("  ready")[0][:24].rstrip() for line in lines] == [
        "MODEL                  S",
        "org/base               8",
        "  org/a-sql   rank 16  1",
        "  org/z-sql   rank 16  1",
        "unknown base           -",
        "  org/unknown          8",
        "org/gone               -",
        "  org/dora   rank 8    8",
    ]
    assert lines[6].endswith("base not in the bucket")
    models = {model["name"]: model for model in command.json("list", *STORE)["models"]}
    assert (models[BASE]["kind"], models[BASE]["base"], models[BASE]["rank"]) == ("model", None, None)
    assert (models["org/dora"]["kind"], models["org/dora"]["base"], models["org/dora"]["rank"]) == (
        "adapter",
        "org/gone",
        8,
    )


@pytest.mark.usefixtures("sources")
def test_removing_a_base_warns_of_its_adapters(command: Command) -> None:
    """coldstream remove org/base --dry-run"""
    for source, name in (("base", BASE), ("sql", "org/sql")):
        command.run("upload", f"./{source}", "--as", name, *STORE)
    err = command.run("remove", BASE, "--dry-run", *STORE)[1]
    assert "warning: 1 adapter of it will stay, without a base: org/sql" in err
    assert "warning" not in command.run("remove", "org/sql", "--yes", *STORE)[1]
    assert "warning" not in command.run("remove", BASE, "--yes", *STORE)[1]
