"""The keys that a launch creates, renews, or is given."""

from __future__ import annotations

import time

import msgspec
import pytest

from coldstream.fleet.launches import Launches
from tests.e2e.command import Command
from tests.e2e.launch.arguments import UP, sha, status_of
from tests.servers.fake_sky import FakeSky


def test_a_key_of_one_s_own(command: Command, sky: FakeSky, launches: Launches) -> None:
    """VLLM_API_KEY=… coldstream launch org/m --gpus L4:1 --yes"""
    # Of an earlier launch, whose machine is gone.
    launches.make_api_key("m")
    command.environ["VLLM_API_KEY"] = "a-key-of-my-own"
    out, _ = command.run(*UP)
    assert '"$VLLM_API_KEY"' in out
    assert "a-key-of-my-own" not in out
    assert not launches.key_file("m").exists()
    assert sky.calls("launch", "-y")[0]["secrets"]["VLLM_API_KEY"] == sha("a-key-of-my-own")
    (row,) = command.json("launch", "status")["launches"]
    assert status_of(row["url"], "a-key-of-my-own") == 200


def test_new_keys(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch renew m, of a node and of a service"""
    command.run(*UP, "--ttl", "1h", "--no-wait")
    first = sky.calls("launch", "-y")[0]["secrets"]
    assert "without confirmation" in command.run("launch", "renew", "m", code=2)[1]
    out, _ = command.run("launch", "renew", "m", "--ttl", "3h", "--yes")
    assert "ready in " in out
    assert sky.calls("cancel")[0]["argv"] == ["cancel", "-y", "-a", "m"]
    second = sky.calls("launch", "-y")[1]
    assert second["argv"][:6] == sky.calls("launch", "-y")[0]["argv"][:6]
    assert {*second["secrets"]} == {*first}
    assert {name for name in first if first[name] != second["secrets"][name]} == {"R2_SECRET_KEY", "R2_SESSION_TOKEN"}
    assert not {"HF_TOKEN", "CLOUDFLARE_API_TOKEN"} & {*second["names"]}
    assert launches.find("m").expires == pytest.approx(time.time() + 3 * 3600, abs=60)
    command.run(*UP, "--replicas", "2", "--name", "s", "--no-wait")
    # Keys that are signed in one second for one time are the same ones.
    found = command.json("launch", "renew", "s", "--ttl", "6d", "--yes")
    assert found["launch"]["expires"] == pytest.approx(time.time() + 6 * 86400, abs=60)
    (updated,) = sky.calls("serve", "update")
    assert updated["argv"][:5] == ["serve", "update", "-y", "s", str(launches.file("s"))]
    assert updated["secrets"]["R2_SECRET_KEY"] != sky.calls("serve", "up")[0]["secrets"]["R2_SECRET_KEY"]
    launches.key_file("m").unlink()
    assert "the API key of m is not known here" in command.run("launch", "renew", "m", "--yes", code=2)[1]
    launches.file("s").unlink()
    assert "s.yaml, the file of the launch, is missing" in command.run("launch", "renew", "s", "--yes", code=10)[1]


def test_keys_that_end_soon(command: Command, launches: Launches) -> None:
    """coldstream launch status, of a service"""
    command.run(*UP, "--replicas", "1", "--no-wait")
    assert "expire soon" not in command.run("launch", "status")[1]
    launches.keep(msgspec.structs.replace(launches.find("m"), expires=time.time() + 3600))
    assert "the keys of m expire soon; run: coldstream launch renew m" in command.run("launch", "status")[1]
    launches.keep(msgspec.structs.replace(launches.find("m"), expires=time.time() - 3600))
    assert "expired " in command.run("launch", "status")[0]


def test_own_keys(own: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, with a bucket that is not R2's; renew m"""
    err = own.run(*UP, "--no-wait")[1]
    assert "keys      your own, unchanged" in err
    assert "with all their permissions" in err
    (row,) = sky.calls("launch", "-y")
    assert row["secrets"]["R2_SECRET_KEY"] == sha(own.environ["R2_SECRET_KEY"])
    assert row["secrets"]["R2_SESSION_TOKEN"] == sha("")
    assert "your own keys, which do not expire" in own.run("launch", "renew", "m", "--yes", code=2)[1]
    assert own.json("launch", "status")["launches"][0]["expires"] is None


def test_keys_that_do_not_open_the_runtime(command: Command, sky: FakeSky, monkeypatch: pytest.MonkeyPatch) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, where the nodes' keys could not read what nodes start from"""
    monkeypatch.setattr("coldstream.fleet.credentials.prefixes_of", lambda *_args, **_options: ("org/m/",))
    assert "manifest.json" in command.run(*UP, code=12)[1]
    assert not sky.calls("launch", "-y")
