"""`coldstream launch` and `coldstream template` with adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.fleet.launches import Launches
from tests.adapters import adapter_files
from tests.e2e.command import Command
from tests.e2e.launch.arguments import LAUNCH, UP
from tests.models import write_model
from tests.servers.fake_sky import FakeSky
from tests.servers.r2 import FakeR2
from tests.servers.stores import S3Server

TEMPLATE = ("template", "org/m", "--target", "sky-serve", "--gpus", "L4:1")
PREFIXES = ["org/m/", ".coldstream/bundles/org/m/", "me/chat/", "me/sql/"]


@pytest.fixture(scope="module", autouse=True)
def adapters(stocked: tuple[FakeR2, S3Server, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two adapters of the model, one that vLLM cannot serve, and one of another model."""
    _, moto, bucket = stocked
    folder = tmp_path_factory.mktemp("adapters")
    command = Command(moto, bucket, cwd=folder)
    made = {
        "me/sql": adapter_files("org/m", rank=16),
        "me/chat": adapter_files("org/m"),
        "me/dora": adapter_files("org/m", use_dora=True),
        "me/other": adapter_files("org/another"),
    }
    for name, files in made.items():
        command.run("upload", str(write_model(folder / name, files)), "--as", name, "--quiet")


def test_the_keys_open_the_named_adapters_only(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/m --gpus L4:1 --adapters me/chat,me/sql; coldstream launch renew m"""
    out, err = command.run(*LAUNCH, "--adapters", "me/chat,me/sql", "--dry-run")
    assert "adapters  me/chat, me/sql\n" in err
    assert "read-only for org/m and 2 adapters, expire" in err
    assert "--adapters me/chat,me/sql" in out.splitlines()[0]
    document = command.json(*UP, "--adapters", "me/chat,me/sql", "--no-wait")
    assert document["adapters"] == ["me/chat", "me/sql"]
    assert document["keys"]["prefixes"][:4] == PREFIXES
    assert "--adapters me/chat,me/sql" in launches.file("m").read_text()
    assert launches.find("m").adapters == ("me/chat", "me/sql")
    renewed = command.json("launch", "renew", "m", "--yes")
    assert renewed["launch"]["adapters"] == ["me/chat", "me/sql"]
    assert len(sky.calls("launch", "-y")) == 2


def test_all_adapters_are_those_that_the_bucket_has_now(command: Command) -> None:
    """coldstream launch org/m --gpus L4:1 --adapters all --dry-run; coldstream template org/m … --adapters all"""
    document = command.json(*LAUNCH, "--adapters", "all", "--dry-run")
    assert document["adapters"] == ["me/chat", "me/sql"]
    assert document["keys"]["prefixes"][:4] == PREFIXES
    assert "--adapters me/chat,me/sql" in document["commands"][0]
    out, err = command.run(*TEMPLATE, "--adapters", "all")
    assert (
        "leaving out the adapter me/dora: vLLM cannot serve the adapter me/dora: its configuration sets use_dora" in err
    )
    assert "adapters: me/chat, me/sql\n" in err
    assert "--adapters me/chat,me/sql --" in out


@pytest.mark.parametrize(
    ("adapters", "code", "message"),
    [
        ("me/sql,me/sql", 2, "--adapters lists me/sql twice"),
        ("org/m", 2, "org/m is a model, not an adapter"),
        ("me/other", 2, "me/other is an adapter of org/another, not of org/m"),
        ("me/dora", 2, "vLLM cannot serve the adapter me/dora: its configuration sets use_dora"),
        ("me/sqk", 10, "there is no model me/sqk"),
        ("me/sql,,me/chat", 2, "is not valid for --adapters"),
        ("../x", 2, "is not a model's name"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_rented(
    command: Command, sky: FakeSky, launches: Launches, adapters: str, code: int, message: str
) -> None:
    for arguments in (UP, TEMPLATE):
        _, err = command.run(*arguments, "--adapters", adapters, code=code)
        assert message in err
        assert "hint:" in err
    assert not sky.calls()
    assert not launches.folder.exists()


def test_an_adapter_by_itself_is_not_a_model(command: Command) -> None:
    """coldstream launch me/sql --gpus L4:1"""
    _, err = command.run("launch", "me/sql", "--gpus", "L4:1", "--yes", code=2)
    assert "me/sql is an adapter of org/m, not a model" in err
    assert "--adapters me/sql" in err


def test_a_model_without_adapters(command: Command, stocked: tuple[FakeR2, S3Server, str], tmp_path: Path) -> None:
    """coldstream template org/n … --adapters all"""
    _, moto, bucket = stocked
    Command(moto, bucket, cwd=tmp_path).run("download", "org/m", "m")
    Command(moto, bucket, cwd=tmp_path).run("upload", "./m", "--as", "org/n", "--quiet")
    _, err = command.run(*(word.replace("org/m", "org/n") for word in TEMPLATE), "--adapters", "all", code=2)
    assert f"there are no adapters of org/n in s3://{bucket}" in err
