"""`coldstream launch` after a launch: status, logs, down."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from coldstream.fleet.launches import Launches
from tests.e2e.command import Command
from tests.e2e.launch.arguments import TOKENS, UP, status_of
from tests.servers.fake_sky import FakeSky


def test_a_name_is_taken_once(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, twice; and as another kind"""
    command.run(*UP)
    before = {path.name: path.read_bytes() for path in launches.folder.iterdir()}
    for more in ((), ("--command", "python ask.py"), ("--replicas", "2")):
        err = command.run(*UP, *more, code=2)[1]
        assert "m already exists, UP" in err
        assert "coldstream launch down m" in err
    assert len(sky.calls("launch", "-y")) == 1
    # The key of the one that runs above all.
    assert {path.name: path.read_bytes() for path in launches.folder.iterdir()} == before
    command.run(*UP, "--name", "m2", "--no-wait")
    assert [launch.name for launch in launches.all()] == ["m", "m2"]


def test_status_logs_and_down(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch status; status m; logs m; down m"""
    assert "nothing was launched" in command.run("launch", "status")[0]
    assert command.json("launch", "status") == {"launches": []}
    command.run(*UP, "--no-wait")
    key = launches.api_key("m") or ""
    head, row = command.run("launch", "status")[0].splitlines()
    assert head.split()[:5] == ["NAME", "KIND", "MODEL", "STATE", "URL"]
    assert row.split()[:4] == ["m", "node", "org/m", "UP"]
    found = command.json("launch", "status", "m")["launches"][0]
    assert (found["state"], found["keys"]) == ("UP", "signed")
    out, _ = command.process("launch", "logs", "m", "--no-follow")
    assert "(m, pid=77)" in out
    assert sky.calls("logs")[-1]["argv"] == ["logs", "m", "--no-follow"]
    assert not {"R2_SECRET_KEY", "VLLM_API_KEY", *TOKENS} & {*sky.calls("logs")[-1]["names"]}
    assert "m  UP" in command.process("launch", "status", "m")[0]
    assert "without confirmation" in command.run("launch", "down", "m", code=2)[1]
    sky.behave("down-fails")
    err = command.run("launch", "down", "m", "--yes", code=1)[1]
    assert "could not take m down" in err
    assert "UnauthorizedOperation" in err
    assert launches.find("m")
    assert status_of(found["url"], key) == 200
    sky.behave()
    assert command.json("launch", "down", "m", "--yes") == {"down": ["m"]}
    assert list(launches.folder.iterdir()) == []
    with pytest.raises(urllib.error.URLError):
        status_of(found["url"], key)
    for verb in (("status", "m"), ("logs", "m"), ("down", "m"), ("renew", "m")):
        assert "nothing was launched as m" in command.run("launch", *verb, code=10)[1]


def test_states_that_skypilot_does_not_report(command: Command, sky: FakeSky) -> None:
    """coldstream launch status, without SkyPilot's server; with a machine that was preempted"""
    command.run(*UP, "--no-wait")
    sky.behave("silent")
    (row,) = command.json("launch", "status")["launches"]
    assert (row["state"], row["url"]) == ("unknown", None)
    sky.behave()
    sky.set_state("m", kind="somewhere else")
    assert command.json("launch", "status")["launches"][0]["state"] == "gone"
