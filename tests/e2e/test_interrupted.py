"""Uploads that are killed, broken off, or run twice at once."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.store import Store
from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.models import sharded_model
from tests.servers.hub import FakeHub
from tests.servers.stores import S3Server

REPO = "org/model"
KILLS = 25


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        yield server


@pytest.fixture(params=["moto", "folder"])
def command(request: pytest.FixtureRequest, hub: FakeHub, tmp_path: Path) -> Command:
    if request.param == "folder":
        command = Command(None, "", hub=hub.endpoint, cwd=tmp_path)
        command.environ["COLDSTREAM_STORE"] = (tmp_path / "store").as_uri()
        return command
    server: S3Server = request.getfixturevalue(request.param)
    return Command(server, fresh_bucket(server), hub=hub.endpoint, cwd=tmp_path)


def opened(command: Command) -> Store:
    names = ("R2_ENDPOINT", "R2_BUCKET", "R2_ACCESS_KEY", "R2_SECRET_KEY", "COLDSTREAM_STORE")
    return quick_store({name: command.environ[name] for name in names if name in command.environ})


def stored(store: Store, name: str) -> dict[str, bytes]:
    found = {info.key.removeprefix(f"{name}/"): store.get(info.key)[0] for info in store.list(f"{name}/")}
    found.pop("coldstream.json", None)
    return found


def wait_for_bytes(hub: FakeHub, count: int, *, deadline_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + deadline_seconds
    while hub.bytes_sent(".safetensors") < count and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_anywhere_it_ends_equal(command: Command, hub: FakeHub) -> None:
    """kill -9 at 25 random points, each followed by a new run; every revision ends equal to the source."""
    rng = random.Random(20261124)
    store = opened(command)
    kills = 0
    seed = 0
    while kills < KILLS:
        seed += 1
        files = sharded_model(shards=3, shard_bytes=7 << 20, seed=seed)
        size = sum(map(len, files.values()))
        hub.add_repo(REPO, files)
        for _ in range(5):
            hub.clear_requests()
            process = command.start("upload", REPO, "--part-size", "5MiB", "--connections", "3")
            # By progress, not by the clock, so that every stage is hit on fast and slow machines; and a little later.
            wait_for_bytes(hub, rng.randrange(1, size), deadline_seconds=1.5)
            time.sleep(rng.random() * 0.3)
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            if command.states().get(REPO) == "ready":
                assert stored(store, REPO) == files, "ready too early"
        command.run("upload", REPO, "--part-size", "5MiB")
        assert stored(store, REPO) == files
        assert list(store.uploads("")) == []
        assert command.states() == {REPO: "ready"}
    assert command.json("verify", REPO, "--deep")["ok"] is True


def test_a_killed_upload_keeps_what_is_stored(command: Command, hub: FakeHub) -> None:
    files = sharded_model(shards=2, shard_bytes=40 << 20)
    hub.add_repo(REPO, files)
    hub.faults.throttle = 8 << 20
    process = command.start("upload", REPO, "--part-size", "5MiB", "--connections", "4")
    wait_for_bytes(hub, 30 << 20)
    process.kill()
    process.communicate()
    hub.faults.throttle = 0
    report = command.json("upload", REPO, "--part-size", "5MiB")
    assert report["kept_bytes"] >= 5 << 20
    assert stored(opened(command), REPO) == files


def test_ctrl_c_ends_soon_with_130_and_goes_on_later(command: Command, hub: FakeHub) -> None:
    files = sharded_model(shards=2, shard_bytes=20 << 20)
    hub.add_repo(REPO, files)
    hub.faults.throttle = 2 << 20
    process = command.start("upload", REPO, "--part-size", "5MiB")
    wait_for_bytes(hub, 5 << 20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "cancelled" in err
    assert "Traceback" not in err
    assert command.states()[REPO] == "incomplete"
    hub.faults.throttle = 0
    command.run("upload", REPO, "--part-size", "5MiB")
    assert stored(opened(command), REPO) == files


def test_of_two_uploads_at_once_the_result_is_whole(command: Command, hub: FakeHub) -> None:
    files = sharded_model(shards=3, shard_bytes=12 << 20)
    hub.add_repo(REPO, files)
    processes = [command.start("upload", REPO, "--part-size", "5MiB") for _ in range(2)]
    codes = []
    for process in processes:
        _, err = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert "Traceback" not in err
        assert process.returncode == 0 or "error:" in err
    assert 0 in codes
    assert stored(opened(command), REPO) == files
    assert command.states() == {REPO: "ready"}
    assert command.json("verify", REPO, "--deep")["ok"] is True
