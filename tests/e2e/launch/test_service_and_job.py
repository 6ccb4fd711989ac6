"""`coldstream launch`: services and jobs."""

from __future__ import annotations

import time

import pytest
import yaml

from coldstream.fleet.launches import Launches
from tests.e2e.command import Command
from tests.e2e.launch.arguments import LAUNCH, UP, status_of
from tests.servers.fake_sky import FakeSky


def test_a_service(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/m --gpus L4:1 --replicas 1..4 --yes"""
    out, err = command.run(*UP, "--replicas", "1..4")
    assert "  machines  g6.xlarge   AWS (us-east-1a)   4 cores, 16 GiB   $0.30 to $1.20/h spot, plus the con" in err
    assert (
        "  stand-in  g6.xlarge   AWS (us-east-1a)   4 cores, 16 GiB   $0.80 to $3.20/h on demand, while no spot" in err
    )
    assert "1 to 4 replicas" in err
    assert "coldstream launch renew m" in err
    assert [line.split()[0] for line in out.splitlines()][:3] == ["controller", "replica", "start"]
    assert yaml.safe_load(launches.file("m").read_text())["service"]["replica_policy"]["max_replicas"] == 4
    assert launches.find("m").expires == pytest.approx(time.time() + 7 * 86400, abs=60)
    (row,) = sky.calls("serve", "up")
    assert row["argv"][2:5] == ["-y", "-n", "m"]
    (shown,) = command.json("launch", "status")["launches"]
    assert (shown["kind"], shown["state"]) == ("service", "REPLICA_INIT")
    assert status_of(shown["url"], launches.api_key("m") or "") == 200


def test_what_a_service_costs(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --replicas N --dry-run; the same with --on-demand"""
    found = command.json(*LAUNCH, "--replicas", "2..3", "--dry-run")
    assert found["dollars_per_hour"] == pytest.approx([0.3 + 0.8, 2 * 0.3 + 0.8])
    assert found["stand_in_dollars_per_hour"] == pytest.approx([2 * 0.8, 3 * 0.8])
    assert (found["offer"]["dollars_per_hour"], found["stand_in"]["dollars_per_hour"]) == (0.3, 0.8)
    err = command.run(*LAUNCH, "--replicas", "2", "--dry-run")[1]
    assert "$1.10/h spot, one of them on demand, plus the controller's machine" in err
    assert "$1.60/h on demand, while no spot machine is ready" in err
    for more in (("--replicas", "2", "--on-demand"), (), ("--command", "x")):
        before = len(sky.calls())
        found = command.json(*LAUNCH, *more, "--dry-run")
        assert (found["stand_in"], found["stand_in_dollars_per_hour"]) == (None, None)
        assert len(sky.calls()) == before + 1
        assert "stand-in" not in command.run(*LAUNCH, *more, "--dry-run")[1]
    sky.behave("spot-alone")
    err = command.run(*LAUNCH, "--replicas", "1..2", "--dry-run")[1]
    assert "$0.30 to $0.60/h spot, plus the controller's machine" in err
    assert "  stand-in  SkyPilot did not say which" in err
    # One of two is on demand all the time.
    assert command.json(*LAUNCH, "--replicas", "2", "--dry-run")["dollars_per_hour"] is None


def test_a_job(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/m --gpus L4:1 --command 'python ask.py' --yes; down m"""
    out, err = command.run(*UP, "--command", "python ask.py")
    assert "ends with the command" in err
    assert "job 7" in out
    assert "try:" not in out
    assert "python ask.py" in launches.file("m").read_text()
    assert (launches.find("m").job, launches.find("m").port) == (7, None)
    assert "is a job" in command.run("launch", "renew", "m", "--yes", code=2)[1]
    command.run("launch", "down", "m", "--yes")
    assert sky.calls("jobs", "cancel")[0]["argv"] == ["jobs", "cancel", "-y", "7"]
    assert list(launches.all()) == []
