"""Uploads that are killed, broken off, or run twice at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coldstream.cli import main
from coldstream.mirror.listing import list_models
from coldstream.places.place import Store
from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.models import sharded_model
from tests.servers.hub import FakeHub
from tests.servers.stores import S3Server

REPO = "org/model"
KILLS = 25
# Starting an interpreter and importing boto3 would be most of the time that 25 uploads take.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [__name__, "coldstream.cli.upload_command", "coldstream.places.hub", "coldstream.places.s3_store"]
)


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


def states(store: Store) -> dict[str, str]:
    """Model to state: what `coldstream list` shows, without starting it."""
    return {model.name: model.state for model in list_models(store)}


def hashes(files: dict[str, bytes]) -> dict[str, str]:
    """Path to SHA-256: short enough for a failing assertion to print."""
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def stored(store: Store, name: str) -> dict[str, str]:
    """Path to SHA-256 of what is there, the manifest left out."""
    found = {info.key.removeprefix(f"{name}/"): store.get(info.key)[0] for info in store.list(f"{name}/")}
    found.pop("coldstream.json", None)
    return hashes(found)


def upload_here(environ: dict[str, str], cwd: Path) -> None:
    """The whole command, in a process that was forked for it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.stderr = nothing
        main(["upload", REPO, "--part-size", "5MiB", "--connections", "3"])


def wait_for_bytes(hub: FakeHub, count: int, alive: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Until the Hub has sent so much of the weights, or the upload has ended by itself."""
    deadline = time.monotonic() + seconds
    while hub.bytes_sent(".safetensors") < count and alive():
        assert time.monotonic() < deadline, f"{hub.bytes_sent('.safetensors')} of {count} bytes after {seconds} s"
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_anywhere_it_ends_equal(command: Command, hub: FakeHub) -> None:
    """kill -9 at 25 random points (8 on a folder): ready is always one whole revision; the next run ends equal."""
    rng = random.Random(20261124)
    store = opened(command)
    # A folder differs from a bucket only in the store, so fewer kills are enough and keep the suite short.
    wanted_kills = KILLS if "R2_ENDPOINT" in command.environ else KILLS // 3
    kills = seed = 0
    old: dict[str, str] = {}
    while kills < wanted_kills:
        seed += 1
        files = sharded_model(shards=2, shard_bytes=(5 << 20) + 4096, seed=seed)
        size = sum(map(len, files.values()))
        new = hashes(files)
        hub.add_repo(REPO, files)
        hub.faults.throttle = 16 << 20  # or all is under way at once, and every kill comes after the last byte
        for _ in range(6):
            hub.clear_requests()
            process = FORKS.Process(target=upload_here, args=(command.environ, command.cwd))
            process.start()
            # By progress, so that every stage is hit on fast and slow machines, and then by a little time, so that
            # what comes before the first byte and after the last one is hit too.
            wait_for_bytes(hub, rng.randrange(-size // 4, size), process.is_alive)
            time.sleep(rng.random() * 0.3)
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            if states(store).get(REPO) == "ready":
                # Killed before it took the model over, the revision before is as whole as ever.
                assert stored(store, REPO) in (old, new), "ready, and not one whole revision"
            if process.exitcode == 0 or kills == wanted_kills:
                break
        hub.faults.throttle = None
        command.run("upload", REPO, "--part-size", "5MiB")
        assert stored(store, REPO) == new
        assert list(store.uploads("")) == []
        assert states(store) == {REPO: "ready"}
        old = new
    assert command.json("verify", REPO, "--deep")["ok"] is True


def test_a_killed_upload_keeps_stored_files(command: Command, hub: FakeHub) -> None:
    files = sharded_model(shards=2, shard_bytes=40 << 20)
    hub.add_repo(REPO, files)
    hub.faults.throttle = 8 << 20
    store = opened(command)
    process = command.start("upload", REPO, "--part-size", "5MiB", "--connections", "4")
    wait_for_bytes(hub, 5 << 20, lambda: process.poll() is None)
    deadline = time.monotonic() + 60
    # What the Hub has sent may not have been stored yet.
    while not any(store.parts(pending.key, pending.upload_id) for pending in store.uploads("")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    hub.faults.throttle = 0
    report = command.json("upload", REPO, "--part-size", "5MiB")
    assert report["kept_bytes"] >= 5 << 20
    assert stored(store, REPO) == hashes(files)


def test_ctrl_c_ends_soon_with_130_and_goes_on_later(command: Command, hub: FakeHub) -> None:
    files = sharded_model(shards=2, shard_bytes=20 << 20)
    hub.add_repo(REPO, files)
    hub.faults.throttle = 2 << 20
    process = command.start("upload", REPO, "--part-size", "5MiB")
    wait_for_bytes(hub, 5 << 20, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "cancelled" in err
    assert "Traceback" not in err
    assert command.states()[REPO] == "incomplete"
    hub.faults.throttle = 0
    command.run("upload", REPO, "--part-size", "5MiB")
    assert stored(opened(command), REPO) == hashes(files)


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
    assert stored(opened(command), REPO) == hashes(files)
    assert command.states() == {REPO: "ready"}
    assert command.json("verify", REPO, "--deep")["ok"] is True
