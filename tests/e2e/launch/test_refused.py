"""Launches that are refused before anything starts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from coldstream.fleet.launches import Launches
from coldstream.fleet.sky import INSTALL
from tests.checkpoints import sharded_checkpoint
from tests.e2e.command import Command
from tests.e2e.launch.arguments import LAUNCH, UP
from tests.models import write_model
from tests.servers.fake_sky import FakeSky
from tests.servers.r2 import FakeR2
from tests.servers.stores import S3Server, fault_proxy
from tests.unit.tune.models import SEVENTY


def test_no_skypilot(command: Command, tmp_path: Path) -> None:
    """coldstream launch, with none or with another program of that name"""
    command.environ["PATH"] = str(tmp_path / "empty")
    for arguments in (UP, (*LAUNCH, "--dry-run")):
        err = command.run(*arguments, code=10)[1]
        assert "SkyPilot is not installed" in err
        assert INSTALL in err
    assert "/nowhere/sky is not a program" in command.run(*UP, "--sky", "/nowhere/sky", code=10)[1]
    assert "is not SkyPilot" in command.run(*UP, "--sky", shutil.which("true") or "", code=2)[1]


@pytest.mark.parametrize(
    ("mode", "more", "code", "says", "hint"),
    [
        ("not-enabled", ("--cloud", "gcp"), 2, "gcp is not enabled", "sky check gcp"),
        ("no-clouds", (), 2, "no cloud is enabled", "sky check"),
        ("no-gpu", (), 2, "offers such a spot machine", "sky gpus list"),
        ("no-rsync", (), 10, "needs rsync", "apt install rsync"),
    ],
)
def test_skypilot_refuses(
    command: Command, sky: FakeSky, mode: str, more: tuple[str, ...], code: int, says: str, hint: str
) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, where SkyPilot finds no machine"""
    sky.behave(mode)
    err = command.run(*UP, *more, code=code)[1]
    assert says in err
    assert hint in err
    assert not sky.calls("launch", "-y")
    assert json.loads(command.run(*UP, *more, "--json", code=code)[0])["error"]["exit_code"] == code


def test_a_table_that_is_not_understood(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, with another version of SkyPilot's"""
    sky.behave("garbage")
    out, err = command.run(*UP)
    assert "SkyPilot did not say which" in err
    assert "ready in " in out
    assert command.json(*LAUNCH, "--name", "x", "--dry-run")["dollars_per_hour"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((*LAUNCH[:2], "--yes"), 2, "--gpus"),
        ((*UP[:3], "L5", "--yes"), 2, "is not a known GPU"),
        ((*UP[:3], "L4:0", "--yes"), 2, "is not a valid number of GPUs"),
        ((*UP, "--replicas", "0"), 2, "would serve nothing"),
        ((*UP, "--replicas", "3..1"), 2, "is not a range of replicas"),
        ((*UP, "--replicas", "2", "--command", "x"), 2, "--command is for a job"),
        ((*UP, "--image", "a", "--no-image"), 2, "contradict"),
        ((*UP, "--max-model-len", "99999999"), 2, "does not fit"),
        ((*UP, "--ttl", "9d"), 2, "credentials cannot be valid for 9d"),
        ((*UP, "--ttl", "1s"), 2, "credentials cannot be valid for 1s"),
        ((*UP, "--ttl", "soon"), 2, "'soon' is not a duration"),
        ((*UP, "--name", "Prod"), 2, "'Prod' is not a valid name for a launch"),
        ((*UP, "--name", "a" * 41), 2, "is not a valid name for a launch"),
        ((*UP, "--cloud", "AWS; rm"), 2, "is not a known cloud"),
        (("launch", "org/other", *UP[2:]), 10, "org/other"),
        (LAUNCH, 2, "refusing to launch m without confirmation"),
        (("launch", "status", "../m"), 2, "is not a name of a launch"),
        (("launch", "logs"), 2, "NAME"),
        (("launch", "down", "--yes"), 2, "NAME"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, sky: FakeSky, launches: Launches, arguments: tuple[str, ...], code: int, says: str
) -> None:
    """coldstream launch … with what makes no sense: nothing is launched, and no key is made"""
    err = command.run(*arguments, code=code)[1]
    assert says in err
    assert not sky.calls("launch", "-y")
    assert not launches.folder.exists()


def test_too_large_a_model(command: Command, sky: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    """coldstream launch org/70B --gpus L4:1 --yes"""
    monkeypatch.setattr("coldstream.cli.launch_command.read_model", lambda *_: replace(SEVENTY, name="org/70B"))
    err = command.run("launch", "org/70B", *UP[2:], code=2)[1]
    assert "does not fit" in err
    assert "what fits: --gpus " in err
    assert not sky.calls()


def test_a_model_that_is_not_complete(command: Command, stocked: tuple[FakeR2, S3Server, str], tmp_path: Path) -> None:
    """coldstream launch org/half --gpus L4:1 --yes, after an upload that was broken off"""
    _, moto, bucket = stocked
    folder = write_model(tmp_path / "half", sharded_checkpoint(shards=2, layers=1, rows=64, columns=64))
    with fault_proxy(moto) as (server, faults):
        faults.add("fail", r"PUT .*model-00002", status=403, code="AccessDenied")
        uploading = Command(server, bucket, cwd=tmp_path)
        uploading.run("upload", str(folder), "--as", "org/half", code=12)
    err = command.run("launch", "org/half", *UP[2:], code=10)[1]
    assert "org/half is not complete" in err
    assert "coldstream upload" in err


def test_a_bucket_that_no_node_reaches(own: Command, sky: FakeSky, tmp_path: Path) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, with R2_ENDPOINT=http://127.0.0.1:…; with --store ./folder"""
    write_model(tmp_path / "folder/org/m", sharded_checkpoint(shards=1, layers=1, rows=64, columns=64))
    assert "directory of this machine" in own.run(*UP, "--store", "./folder", code=2)[1]
    own.environ["R2_ENDPOINT"] = own.environ["R2_ENDPOINT"].replace("0.0.0.0", "127.0.0.1")
    assert "no node reaches the bucket there" in own.run(*UP, code=2)[1]
    assert not sky.calls()
