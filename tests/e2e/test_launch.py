"""`coldstream launch` with a SkyPilot that brings up processes, and a bucket behind R2's rules."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import yaml

from coldstream.engines.vllm.endpoint import free_port
from coldstream.fleet.launch_record import Launches
from coldstream.fleet.sky import INSTALL
from coldstream.telemetry.timeline.ready_line import format_ready_line
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.e2e.test_tune import CONFIG
from tests.models import write_model
from tests.servers.fake_sky import FakeSky, fake_sky
from tests.servers.r2 import SECRET_KEY, FakeR2, cloudflare, keys_of, r2
from tests.servers.stores import S3Server, fault_proxy
from tests.unit.telemetry.timeline.starts import streamed
from tests.unit.tune.models import SEVENTY

LAUNCH = ("launch", "org/m", "--gpus", "L4:1")
UP = (*LAUNCH, "--yes")
KEYS = ("R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN")
TOKENS = {
    "CLOUDFLARE_API_TOKEN": "cloudflare-token-of-the-user",
    "HF_TOKEN": "hf_token-of-the-user",
    "COLDSTREAM_BUNDLE_KEY": "bundle-key-of-the-user-0123456789",
}


@pytest.fixture(scope="module")
def stocked(moto: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeR2, S3Server, str]]:
    """A bucket with one model: behind R2's rules, and as another server's."""
    folder = tmp_path_factory.mktemp("model")
    files = sharded_checkpoint(shards=2, layers=2, rows=64, columns=64) | {"config.json": json.dumps(CONFIG).encode()}
    write_model(folder, files)
    bucket = fresh_bucket(moto)
    Command(moto, bucket, cwd=folder.parent).run("upload", str(folder), "--as", "org/m", "--quiet")
    with r2(moto) as double:
        yield double, moto, bucket


@pytest.fixture
def sky(tmp_path: Path) -> Iterator[FakeSky]:
    log = [format_ready_line(streamed(), "http://0.0.0.0:8000")]
    with fake_sky(tmp_path / "skypilot", log) as made:
        yield made


@pytest.fixture
def command(stocked: tuple[FakeR2, S3Server, str], sky: FakeSky, tmp_path: Path) -> Command:
    double, _, bucket = stocked
    made = Command(None, "", cwd=tmp_path)
    made.environ |= double.environ(bucket) | TOKENS
    made.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    made.environ["PATH"] = f"{sky.program.parent}:{made.environ['PATH']}"
    return made


@pytest.fixture
def own(command: Command, stocked: tuple[FakeR2, S3Server, str]) -> Command:
    """The same bucket at a server that gives no temporary keys; this address counts as one that nodes reach."""
    _, moto, bucket = stocked
    command.environ |= moto.environ(bucket) | dict.fromkeys(("HTTP_PROXY", "http_proxy"), "")
    command.environ["R2_ENDPOINT"] = moto.endpoint.replace("127.0.0.1", "0.0.0.0")
    return command


@pytest.fixture
def launches(tmp_path: Path) -> Launches:
    return Launches(tmp_path / "cache")


def asked(url: str, key: str) -> int:
    """The status of a question to a model's API."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_node_from_yes_to_ready(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/m --gpus L4:1 --yes; the command that is shown at its end"""
    out, err = command.run(*UP)
    for said in (
        "org/m",
        "g6.xlarge   AWS (us-east-1a)   4 cores, 16 GiB   $0.30/h spot",
        "temporary, read-only for org/m, expire ",
    ):
        assert said in err
    assert "use --replicas 1 for a service" in err
    assert "the cloud is starting the machine" in err
    assert "SkyPilot has accepted it" in err
    shown = [line.split()[0] for line in out.splitlines()]
    assert shown[:5] == ["ask", "provision", "files", "setup", "start"]
    assert "    compile" in out
    assert "ready in " in out
    (tried,) = (line.removeprefix("try:") for line in out.splitlines() if line.startswith("try:"))
    environ = {name: value for name, value in command.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(tried, shell=True, env=environ, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["data"]
    assert "coldstream launch down m" in out
    record = launches.find("m")
    assert (record.kind, record.model, record.keys, record.port) == ("node", "org/m", "signed", 8000)
    assert record.expires == pytest.approx(time.time() + 86400, abs=60)
    # The node has keys of its own; only what it is given in secret is given to SkyPilot.
    (row,) = sky.calls("launch", "-y")
    assert row["argv"][2:5] == ["-d", "-c", "m"]
    assert {*row["secrets"]} == {
        *("R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN", "VLLM_API_KEY", "COLDSTREAM_BUNDLE_KEY")
    }
    assert row["secrets"]["R2_SECRET_KEY"] != sha(SECRET_KEY)
    assert row["secrets"]["R2_SESSION_TOKEN"] != sha("")
    assert row["secrets"]["COLDSTREAM_BUNDLE_KEY"] == sha(TOKENS["COLDSTREAM_BUNDLE_KEY"])
    assert not {"CLOUDFLARE_API_TOKEN", "HF_TOKEN"} & {*row["names"]}


def test_the_document_of_a_node(command: Command, launches: Launches) -> None:
    """coldstream launch org/m --gpus L4:1 --yes --name prod --ttl 2h --json"""
    found = command.json(*UP, "--name", "prod", "--ttl", "2h")
    assert found["kind"] == "node"
    assert found["offer"]["instance"] == "g6.xlarge"
    assert found["dollars_per_hour"] == [0.3, 0.3]
    assert found["keys"]["prefixes"] == ["org/m/", ".coldstream/bundles/org/m/"]
    assert found["launch"]["name"] == "prod"
    assert found["launch"]["expires"] == pytest.approx(time.time() + 7200, abs=60)
    names = {phase["name"] for phase in found["phases"] if not phase["of_start"]}
    assert names == {"ask", "provision", "files", "setup", "start"}
    assert {"compile", "stream"} <= {phase["name"] for phase in found["phases"] if phase["of_start"]}
    key = Path(found["key_file"])
    assert key == launches.key_file("prod")
    assert key.stat().st_mode & 0o777 == 0o600
    assert asked(found["url"], key.read_text().strip()) == 200
    assert asked(found["url"], "guessed") == 401


def test_no_secret_shows(command: Command, sky: FakeSky, launches: Launches, tmp_path: Path) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, with all that is kept of it"""
    out, err = command.run(*UP)
    document = json.dumps(command.json("launch", "status"))
    key = launches.key_file("m")
    secrets = {SECRET_KEY, key.read_text().strip(), *TOKENS.values()}
    (row,) = sky.calls("launch", "-y")
    hashes = row["secrets"]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != key]
    texts = [out, err, document, *(path.read_text("utf-8", "replace") for path in files)]
    assert launches.file("m") in files
    assert launches.folder / "m.json" in files
    for text in texts:
        for secret in secrets:
            assert secret not in text
        # The temporary keys, which appear nowhere else.
        for word in text.replace('"', " ").replace("'", " ").split():
            assert sha(word) not in {hashes["R2_SECRET_KEY"], hashes["R2_SESSION_TOKEN"]}
    asked_for = yaml.safe_load(launches.file("m").read_text())["secrets"]
    assert {*asked_for} == {*hashes}
    assert {*asked_for.values()} == {None}


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
    assert asked(row["url"], "a-key-of-my-own") == 200


def test_gated_models_get_the_hub_s_token(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --fallback hf --yes --no-wait"""
    out, _ = command.run(*UP, "--fallback", "hf", "--no-wait")
    assert "check its progress with: coldstream launch status" in out
    assert sky.calls("launch", "-y")[0]["secrets"]["HF_TOKEN"] == sha(TOKENS["HF_TOKEN"])
    assert not sky.calls("logs")


CDN = {
    "COLDSTREAM_CDN_HEADER": "X-Key: the-header-of-the-user",
    "CF_ACCESS_CLIENT_ID": "the-client-of-the-user",
    "CF_ACCESS_CLIENT_SECRET": "the-client-secret-of-the-user",
}


def test_nodes_read_through_the_cdn(command: Command, sky: FakeSky, launches: Launches) -> None:
    """R2_CDN_DOMAIN=… coldstream launch org/m --gpus L4:1 --yes; renew m; and as what cannot use it"""
    command.environ |= CDN
    # Without a domain they open nothing.
    command.run(*UP, "--name", "without", "--no-wait")
    command.environ["R2_CDN_DOMAIN"] = "models.example.com"
    out, err = command.run(*UP, "--no-wait")
    assert "  cdn       nodes read through https://models.example.com\n" in err
    assert (
        "passed on unchanged and do not expire: COLDSTREAM_CDN_HEADER, CF_ACCESS_CLIENT_ID, CF_ACCESS_CLIENT_SECRET"
        in err
    )
    command.run("launch", "renew", "m", "--yes")
    before, *with_it = sky.calls("launch", "-y")
    assert not {*CDN} & {*before["names"]}
    assert len(with_it) == 2
    for row in with_it:
        assert {name: row["secrets"][name] for name in CDN} == {name: sha(value) for name, value in CDN.items()}
        assert not [value for value in CDN.values() if value in json.dumps(row)]
    file = launches.file("m").read_text()
    assert yaml.safe_load(file)["envs"]["R2_CDN_DOMAIN"] == "https://models.example.com"
    assert not [value for value in CDN.values() if value in out + err + file]
    # Run:ai's loader supports only S3.
    found = command.json(*UP, "--name", "runai", "--loader", "runai", "--no-wait")
    assert found["cdn"] is None
    assert not {*CDN} & {*sky.calls("launch", "-y")[-1]["names"]}
    del command.environ["COLDSTREAM_CDN_HEADER"]
    err = command.run("launch", "renew", "m", "--yes", code=2)[1]
    assert "COLDSTREAM_CDN_HEADER is not set, and the nodes of m need it for the CDN" in err
    command.environ["R2_CDN_DOMAIN"] = "http://127.0.0.1:9000"
    assert "no node reaches the CDN there" in command.run(*UP, "--name", "x", code=2)[1]
    assert "-c x " not in json.dumps(sky.calls())


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
    assert asked(shown["url"], launches.api_key("m") or "") == 200


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
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m coldstream "$@"\n')
    program.chmod(0o755)
    environ = command.environ | {"PATH": f"{program.parent}:{command.environ['PATH']}"}
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
        return re.sub(r"(--connections) \d+|(take) \d+ s", "", " ".join(text.replace("\\\n", "").split())).split()

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


def test_skypilot_says_its_version_once(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --yes --no-wait; renew m"""
    command.run(*UP, "--no-wait")
    assert sky.versions_asked() == 1
    command.run("launch", "renew", "m", "--yes")
    assert sky.versions_asked() == 2


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
    assert asked(found["url"], key) == 200
    sky.behave()
    assert command.json("launch", "down", "m", "--yes") == {"down": ["m"]}
    assert list(launches.folder.iterdir()) == []
    with pytest.raises(urllib.error.URLError):
        asked(found["url"], key)
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
    monkeypatch.setattr("coldstream.tune.model_facts.read_model", lambda *_: replace(SEVENTY, name="org/70B"))
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


def test_another_key_opens_it(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, where another user's server answers"""
    sky.behave("other-key")
    assert "rejected the API key" in command.run(*UP, code=1)[1]


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


def test_help_names_all(command: Command) -> None:
    """coldstream launch --help"""
    text = command.run("launch", "--help")[0]
    for verb in ("status", "logs", "down", "renew", "Exit codes"):
        assert verb in text
    assert "--credentials" in command.run("launch", "up", "--help")[0]


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
