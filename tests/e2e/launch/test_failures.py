"""Launches that fail or are interrupted on the way."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from coldstream.fleet.launches import Launches
from coldstream.node.http_endpoint import free_port
from tests.e2e.command import Command
from tests.e2e.launch.arguments import LAUNCH, UP
from tests.servers.fake_sky import FakeSky


def test_skypilot_fails_half_way(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, with a machine left behind; and with none"""
    sky.behave("half-way")
    err = command.run(*UP, code=1)[1]
    assert "sky: └── Instance is up." in err
    assert "sky failed: CommandError: Command rsync failed with return code 255.; m is left, INIT" in err
    assert "coldstream launch down m" in err
    assert command.json("launch", "status")["launches"][0]["state"] == "INIT"
    command.run("launch", "down", "m", "--yes")
    sky.behave("nothing")
    err = command.run(*UP, code=1)[1]
    assert "Failed to acquire resources" in err
    assert "nothing is left running" in err
    # What failed can be launched again.
    sky.behave()
    assert "ready in " in command.run(*UP)[0]
    assert launches.find("m")


def test_a_setup_that_breaks_down(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, where pip finds nothing"""
    sky.behave("setup-fails")
    err = command.run(*UP, code=1)[1]
    assert "m failed (FAILED_SETUP)" in err
    assert "Could not find a version that satisfies coldstream" in err
    assert "coldstream launch down m" in err


def test_a_machine_that_is_preempted(
    command: Command, sky: FakeSky, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, where the cloud preempts the machine before the model answers"""
    monkeypatch.setattr("coldstream.fleet.launch_run._STATE_SECONDS", 0.05)
    monkeypatch.setattr("coldstream.fleet.launch_run._POLL_SECONDS", 0.05)
    sky.behave("never", "taken-back")
    err = command.run(*UP, code=1)[1]
    assert "error: the machine of m is gone, before its model answered: it was preempted, or someone" in err
    assert "--replicas 1 it is a service" in err
    # What SkyPilot said of bringing it up has nothing to do with it.
    assert "sky: " not in err
    assert command.json("launch", "status")["launches"][0]["state"] == "gone"
    sky.behave()
    assert "ready in " in command.run(*UP)[0]


def test_it_never_answers(command: Command, sky: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, where the server does not come up"""
    # What a start may take counts too: nearly nothing is left.
    monkeypatch.setattr("coldstream.fleet.launch_run._PROVISION_SECONDS", {"node": -299.0})
    monkeypatch.setattr("coldstream.fleet.launch_run._POLL_SECONDS", 0.05)
    sky.behave("never")
    err = command.run(*UP, code=1)[1]
    assert "m does not answer yet, and is still starting" in err
    assert "coldstream launch logs m" in err


def test_ctrl_c_while_it_is_provisioned(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, and Ctrl-C"""
    sky.behave("slow")
    with command.start(*UP) as process:
        deadline = time.monotonic() + 60
        while not (sky.folder / "slow").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "SkyPilot may continue to start m, which costs money" in err
    assert "coldstream launch down m" in err
    assert launches.find("m").kind == "node"
    sky.behave()
    (row,) = command.json("launch", "status")["launches"]
    assert row["state"] == "INIT"


@pytest.mark.parametrize(
    ("modes", "arguments", "code", "stays"),
    [
        (("server",), ("--dry-run",), 0, False),
        (("server", "no-gpu"), ("--dry-run",), 2, False),
        (("server",), (), 2, False),  # there is no terminal for the question
        (("server", "busy"), ("--dry-run",), 0, True),
        (("server",), ("--yes", "--no-wait"), 0, True),
    ],
)
def test_a_server_of_skypilot_s_that_a_plan_started_goes_with_it(
    command: Command, sky: FakeSky, modes: tuple[str, ...], arguments: tuple[str, ...], code: int, stays: bool
) -> None:
    """coldstream launch org/m --gpus L4:1 --dry-run, where no server runs; one that others use, or a launch, stays"""
    command.environ["SKYPILOT_API_SERVER_LOCAL_PORT"] = str(free_port())
    sky.behave(*modes)
    command.run(*LAUNCH, *arguments, code=code)
    assert (sky.folder / "server.pid").exists() is stays


def test_a_server_that_ran_before_is_left_alone(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --dry-run, where one runs"""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command.environ["SKYPILOT_API_SERVER_LOCAL_PORT"] = str(listening.getsockname()[1])
        command.run(*LAUNCH, "--dry-run")
    assert not sky.calls("api")
