"""`coldstream launch --dry-run`, and what happens only after confirmation."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coldstream.fleet.launches import Launches
from tests.e2e.command import Command
from tests.e2e.launch.arguments import KEYS, LAUNCH, UP, sha
from tests.servers.fake_sky import FakeSky
from tests.servers.r2 import FakeR2, cloudflare, keys_of
from tests.servers.stores import S3Server


def test_a_dry_run_leaves_nothing(command: Command, sky: FakeSky, launches: Launches, tmp_path: Path) -> None:
    """coldstream launch org/m --gpus L4:1 --dry-run"""
    out, err = command.run(*LAUNCH, "--dry-run")
    assert "g6.xlarge" in err
    assert "nothing was written" in err
    assert out.splitlines()[0] == "coldstream template org/m --target sky --gpus L4:1 -o m.yaml"
    assert out.splitlines()[1].startswith("sky launch -y -d -c m m.yaml --secret R2_ACCESS_KEY ")
    found = command.json(*LAUNCH, "--dry-run", "--on-demand", "--cloud", "aws")
    assert found["offer"]["infra"] == "AWS (us-east-1a)"
    assert not found["spot"]
    assert all("--dryrun" in row["argv"] for row in sky.calls())
    # Not even then does it see a key.
    assert {value for row in sky.calls() for value in row["secrets"].values()} == {sha("")}
    assert not launches.folder.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"skypilot", "cache", "hf", "default-cache"}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--on-demand", "--cloud", "aws", "--port", "9000", "--name", "prod", "--max-model-len", "2048"),
        ("--replicas", "2..3", "--loader", "runai", "--image", "registry.example.com/v:1", "--fallback", "hf"),
        ("--command", "python ask.py 'all of it'", "--no-image", "--spot"),
    ],
)
def test_what_a_dry_run_shows_comes_to_the_same(
    command: Command, sky: FakeSky, launches: Launches, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """coldstream launch … --dry-run, and its output by hand; coldstream launch … --yes"""
    command.environ |= {"R2_SESSION_TOKEN": "", "VLLM_API_KEY": "a-key-of-my-own"}
    (bucket,) = (command.environ.pop(name) for name in ("R2_BUCKET",))
    named = ("--store", f"s3://{bucket}")
    found = command.json(*LAUNCH, *more, *named, "--dry-run")
    program = tmp_path / "bin/coldstream"
    program.parent.mkdir()
    source = "from coldstream.cli import main, stored_runtimes as s; from tests.conftest import fill_with_one_file as f"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{source}; s.gather = f; main()' \"$@\"\n")
    program.chmod(0o755)
    environ = command.environ | {"PATH": f"{program.parent}:{command.environ['PATH']}"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[3])
    for shown in found["commands"]:
        subprocess.run(shown, shell=True, env=environ, cwd=tmp_path, capture_output=True, check=True)
    name = found["name"]
    by_hand = sky.calls()[-1]["argv"]
    sky.forget(name)
    command.run(*UP, *more, *named, "--no-wait")
    (launched,) = (row["argv"] for row in sky.calls() if str(launches.file(name)) in row["argv"])
    assert [word if word != str(launches.file(name)) else f"{name}.yaml" for word in launched] == by_hand

    def but_for_the_machine(text: str) -> list[str]:
        # Where the machine is known, its link decides how many connections there are, and how long it takes.
        return re.sub(r"(--connections) \d+|(at least) \d+ s", "", " ".join(text.replace("\\\n", "").split())).split()

    texts = [path.read_text() for path in (tmp_path / f"{name}.yaml", launches.file(name))]
    assert but_for_the_machine(texts[0]) == but_for_the_machine(texts[1])


def test_keys_are_created_only_after_confirmation(
    command: Command, sky: FakeSky, launches: Launches, stocked: tuple[FakeR2, S3Server, str]
) -> None:
    """coldstream launch org/m --gpus L4:1 --credentials api, with --dry-run, unanswered, and with --yes; renew m"""
    double, _, bucket = stocked
    own = command.environ["R2_SECRET_KEY"]
    issued = (*LAUNCH, "--credentials", "api")
    with cloudflare(double) as api:
        command.environ |= api.environ()
        # Keys that are temporary themselves leave the API as the only way.
        command.environ |= dict(
            zip(KEYS, keys_of(double.token(bucket, [""], scope="object-read-write")).values(), strict=True)
        )
        for dry in ((*issued, "--dry-run"), (*LAUNCH, "--dry-run")):
            found = command.json(*dry)
            assert found["keys"]["how"] == "issued"
            assert found["keys"]["expires"] == pytest.approx(time.time() + 86400, abs=60)
        command.environ |= {"R2_SECRET_KEY": own, "R2_SESSION_TOKEN": ""}
        assert "temporary (issued by Cloudflare), read-only for org/m, expire " in command.run(*issued, code=2)[1]
        assert api.requests == []
        assert not launches.folder.exists()
        command.run(*issued, "--yes", "--no-wait")
        assert len(api.requests) == 1
        assert "without confirmation" in command.run("launch", "renew", "m", code=2)[1]
        assert len(api.requests) == 1
        # Whoever agrees and gets none has launched nothing, and lost nothing.
        command.environ["CLOUDFLARE_API_TOKEN"] = "another-token-of-some-length"
        command.run(*issued, "--name", "x", "--yes", code=12)
        command.run("launch", "renew", "m", "--yes", code=12)
    assert [launch.name for launch in launches.all()] == ["m"]
    assert launches.api_key("x") is None
    assert len(sky.calls("launch", "-y")) == 1
