"""Weights in segments, by the command line, against real servers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.models import safetensors_bytes, write_model
from tests.servers.hub import FakeHub
from tests.servers.stores import Faults, S3Server, fault_proxy

REPO = "org/model"
SHARD = "model.safetensors"
TENSOR = 600_000
SIZES = {f"layers.{number}.weight": TENSOR for number in range(20)}
FLAGS = ("--object-bytes-max", "2MiB")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        yield server


@pytest.fixture(params=["rclone", "moto"])
def command(request: pytest.FixtureRequest, hub: FakeHub, tmp_path: Path) -> Command:
    server: S3Server = request.getfixturevalue(request.param)
    return Command(server, fresh_bucket(server), hub=hub.endpoint, cwd=tmp_path)


@pytest.fixture
def watched(moto: S3Server, hub: FakeHub, tmp_path: Path) -> Iterator[tuple[Command, Faults]]:
    """A command whose requests to the bucket are seen."""
    bucket = fresh_bucket(moto)
    with fault_proxy(moto) as (server, faults):
        yield Command(server, bucket, hub=hub.endpoint, cwd=tmp_path), faults


def files(changed: int | None = None) -> dict[str, bytes]:
    """A model of one shard; the tensor with this number has other bytes."""
    shard = bytearray(safetensors_bytes(SIZES, seed=1))
    if changed is not None:
        start = len(shard) - TENSOR * (len(SIZES) - changed)
        shard[start : start + TENSOR] = bytes([changed]) * TENSOR
    return {SHARD: bytes(shard), "config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}


def operations(faults: Faults) -> Counter[str]:
    """What the bucket was asked for since the last call: method and, in short, what of."""
    kinds = (
        ("UploadPart", r"^PUT .*partNumber"),
        ("PutObject", r"^PUT "),
        ("CreateMultipartUpload", r"^POST .*\?uploads"),
        ("CompleteMultipartUpload", r"^POST .*uploadId"),
        ("DeleteObjects", r"^POST .*\?delete"),
        ("HeadObject", r"^HEAD "),
        ("List", r"^GET /[^/?]+(\?|/\?)"),
        ("GetObject", r"^GET "),
    )
    found = Counter(next((kind for kind, what in kinds if re.search(what, line)), line) for line, _ in faults.requests)
    faults.requests.clear()
    return found


def downloaded(command: Command, name: str, folder: str) -> dict[str, bytes]:
    command.run("download", name, folder)
    root = command.cwd / folder
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("plain", [False, True], ids=["no-plain", "plain"])
def test_a_model_in_segments_comes_back_equal_and_goes_without_a_trace(
    command: Command, hub: FakeHub, plain: bool
) -> None:
    """coldstream upload org/model --object-bytes-max 2MiB [--no-plain]; list; verify --deep; download; remove"""
    hub.add_repo(REPO, files())
    flags = FLAGS if plain else (*FLAGS, "--no-plain")
    report = command.json("upload", REPO, *flags)
    assert report["sent_segments"] + report["copied_segments"] > 6
    (model,) = command.json("list")["models"]
    assert (model["state"], model["layout"]) == ("ready", "segments 2 MiB" + (" + plain" if plain else ""))
    assert "segments 2 MiB" in command.run("list")[0]
    verified = command.json("verify", REPO, "--deep")
    assert verified["ok"] is True
    assert verified["segments"] == report["sent_segments"] + report["copied_segments"]
    assert "segments 2 MiB" in command.run("verify", REPO)[0]
    assert downloaded(command, REPO, "out") == files()
    assert command.json("upload", REPO, *flags)["up_to_date"] is True
    command.run("remove", REPO, "--yes")
    store = quick_store({name: command.environ[name] for name in command.environ if name.startswith("R2_")})
    assert list(store.list("")) == []
    assert list(store.uploads("")) == []


def test_only_the_segment_of_a_changed_tensor_is_sent(watched: tuple[Command, Faults], hub: FakeHub) -> None:
    command, faults = watched
    hub.add_repo(REPO, files())
    first = command.json("upload", REPO, *FLAGS, "--no-plain")
    operations(faults)
    hub.add_repo(REPO, files(changed=7))
    report = command.json("upload", REPO, *FLAGS, "--no-plain")
    assert (report["sent_segments"], report["kept_segments"]) == (1, first["sent_segments"] - 1)
    assert report["sent_bytes"] <= 2 << 20
    assert report["swept_segments"] == 1
    asked = operations(faults)
    assert asked["UploadPart"] == asked["CreateMultipartUpload"] == asked["CompleteMultipartUpload"] == 1
    # The journal as it is opened, the probe of its condition, what is noted in it, and the manifest.
    assert 3 <= asked["PutObject"] <= 5
    assert asked["HeadObject"] <= first["sent_segments"] + 8
    assert downloaded(command, REPO, "out") == files(changed=7)


def test_models_share_segments(watched: tuple[Command, Faults], tmp_path: Path) -> None:
    """upload ./a --as me/a; upload ./b --as me/b; remove me/a --dry-run; remove me/a"""
    command, _ = watched
    write_model(tmp_path / "a", files())
    write_model(tmp_path / "b", files(changed=3))
    first = command.json("upload", "./a", "--as", "me/a", *FLAGS, "--no-plain")
    second = command.json("upload", "./b", "--as", "me/b", *FLAGS, "--no-plain")
    assert second["sent_segments"] == 1
    planned = command.json("remove", "me/a", "--dry-run")
    assert (planned["segments"], planned["shared_segments"]) == (1, first["sent_segments"] - 1)
    out, err = command.run("remove", "me/a", "--yes")
    assert "1 segment of weights" in out
    assert "of weights that other models share" in err
    assert command.json("verify", "me/b", "--deep")["ok"] is True
    assert downloaded(command, "me/b", "out") == files(changed=3)


def test_a_dry_run_says_what_each_layout_costs(command: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, files())
    alone = command.json("upload", REPO, "--dry-run", *FLAGS, "--no-plain")
    beside = command.json("upload", REPO, "--dry-run", *FLAGS)
    usual = command.json("upload", REPO, "--dry-run")
    assert alone["stored_bytes"] == usual["stored_bytes"] == usual["bytes"]
    assert beside["stored_bytes"] == usual["bytes"] + len(files()[SHARD])
    assert beside["r2_dollars_per_month"] == pytest.approx(2 * usual["r2_dollars_per_month"], rel=0.01)
    assert beside["r2_dollars_once"] > alone["r2_dollars_once"] > usual["r2_dollars_once"] > 0
    assert usual["segments"] == 0
    assert alone["segments"] > 6
    assert "with --no-plain" in command.run("upload", REPO, "--dry-run", *FLAGS)[0]
    assert "only coldstream" in command.run("upload", REPO, "--dry-run", *FLAGS, "--no-plain")[0]
    assert command.states() == {}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--no-plain",), "needs --object-bytes-max"),
        (("--object-bytes-max", "1000B"), "1 MiB and 5 GiB"),
        (("--object-bytes-max", "6GiB"), "1 MiB and 5 GiB"),
        (("--object-bytes-max", "lots"), "is not a size"),
        (("--object-bytes-max", "480MiB", "--memory", "100MiB"), "raise --memory"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    watched: tuple[Command, Faults], hub: FakeHub, flags: tuple[str, ...], said: str
) -> None:
    command, _ = watched
    hub.add_repo(REPO, files())
    assert said in command.run("upload", REPO, *flags, code=2)[1]
    assert command.states() == {}


def test_the_command_that_repairs_a_model_keeps_its_layout(watched: tuple[Command, Faults], hub: FakeHub) -> None:
    command, _ = watched
    hub.add_repo(REPO, files())
    command.run("upload", REPO, *FLAGS, "--no-plain")
    store = quick_store({name: command.environ[name] for name in command.environ if name.startswith("R2_")})
    victim = max(store.list(".coldstream/segments/"), key=lambda info: info.size)
    store.delete([victim.key])
    (model,) = command.json("list")["models"]
    assert model["state"] == "damaged"
    mend = model["detail"].partition("run: coldstream ")[2].split()
    assert mend == ["upload", REPO, "--object-bytes-max", str(2 << 20), "--no-plain"]
    report = command.json(*mend)
    assert (report["sent_segments"], report["sent_bytes"]) == (1, victim.size)
    assert command.json("verify", REPO, "--deep")["ok"] is True
    assert "deleting its segments" in command.run("upload", REPO, "--dry-run")[1]


def test_a_killed_upload_keeps_the_segments_that_are_stored(watched: tuple[Command, Faults], hub: FakeHub) -> None:
    command, faults = watched
    hub.add_repo(REPO, files())
    hub.faults.throttle = 4 << 20
    process = command.start("upload", REPO, *FLAGS, "--no-plain", "--connections", "2", "--memory", "4MiB")
    stored = 0

    def seen(line: str) -> None:
        nonlocal stored
        stored += line.startswith("POST") and "segments" in line and "uploadId" in line
        if stored == 3:
            process.kill()

    faults.on_request = seen
    process.communicate(timeout=120)
    faults.on_request = None
    assert stored >= 3
    assert command.states() == {REPO: "incomplete"}
    hub.faults.throttle = None
    report = command.json("upload", REPO, *FLAGS, "--no-plain")
    assert report["kept_segments"] >= 2
    assert command.json("verify", REPO, "--deep")["ok"] is True
    assert downloaded(command, REPO, "out") == files()


def test_a_bucket_that_refuses_to_copy_is_sent_the_segments(watched: tuple[Command, Faults], hub: FakeHub) -> None:
    command, faults = watched
    hub.add_repo(REPO, files())
    faults.add("fail", "^PUT .*segments.*partNumber", times=3, status=501, code="NotImplemented")
    report = command.json("upload", REPO, *FLAGS, "--connections", "3")
    assert report["copied_segments"] == 0
    assert report["sent_segments"] > 6
    assert command.json("verify", REPO, "--deep")["ok"] is True


def test_a_bad_bucket_is_survived(watched: tuple[Command, Faults], hub: FakeHub) -> None:
    command, faults = watched
    hub.add_repo(REPO, files())
    faults.add("fail", "^PUT", times=3)
    faults.add("lose_answer", "uploadId", times=3)
    faults.add("cut_request", "partNumber", times=2, after_bytes=1000)
    command.run("upload", REPO, *FLAGS)
    assert command.json("verify", REPO, "--deep")["ok"] is True
