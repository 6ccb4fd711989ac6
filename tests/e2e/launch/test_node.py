"""`coldstream launch`: one node, from confirmation to ready."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from coldstream.fleet.launches import Launches
from tests.e2e.command import Command
from tests.e2e.launch.arguments import TOKENS, UP, sha, status_of
from tests.servers.fake_sky import FakeSky
from tests.servers.r2 import SECRET_KEY


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
    digest = found["software"]["runtime"]["digest"]
    assert found["keys"]["prefixes"] == ["org/m/", ".coldstream/bundles/org/m/", f".coldstream/runtimes/{digest}/"]
    assert found["launch"]["runtime"] == digest
    assert f"sha256:{digest} \\\n    serve org/m " in launches.file("prod").read_text()
    assert found["launch"]["name"] == "prod"
    assert found["launch"]["expires"] == pytest.approx(time.time() + 7200, abs=60)
    names = {phase["name"] for phase in found["phases"] if not phase["of_start"]}
    assert names == {"ask", "provision", "files", "setup", "start"}
    assert {"compile", "stream"} <= {phase["name"] for phase in found["phases"] if phase["of_start"]}
    key = Path(found["key_file"])
    assert key == launches.key_file("prod")
    assert key.stat().st_mode & 0o777 == 0o600
    assert status_of(found["url"], key.read_text().strip()) == 200
    assert status_of(found["url"], "guessed") == 401


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


def test_skypilot_says_its_version_once(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --yes --no-wait; renew m"""
    command.run(*UP, "--no-wait")
    assert sky.versions_asked() == 1
    command.run("launch", "renew", "m", "--yes")
    assert sky.versions_asked() == 2


def test_another_key_opens_it(command: Command, sky: FakeSky) -> None:
    """coldstream launch org/m --gpus L4:1 --yes, where another user's server answers"""
    sky.behave("other-key")
    assert "rejected the API key" in command.run(*UP, code=1)[1]


def test_help_names_all(command: Command) -> None:
    """coldstream launch --help"""
    text = command.run("launch", "--help")[0]
    for verb in ("status", "logs", "down", "renew", "Exit codes"):
        assert verb in text
    assert "--credentials" in command.run("launch", "up", "--help")[0]
