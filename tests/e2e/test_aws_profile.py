"""A bucket that only a profile of the AWS configuration describes: private authority, endpoint, keys of a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.models import sharded_model, write_model
from tests.servers.ranged import certificates
from tests.servers.stores import S3Server, fault_proxy

CONFIG = """
[profile lab]
region = eu-west-1
ca_bundle = {authority}
services = lab
credential_process = cat {keys}
[services lab]
s3 =
  endpoint_url = {endpoint}
"""


def test_every_part_honours_the_profile(moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    folder = write_model(tmp_path / "m", sharded_model())
    keys = {"Version": 1, "AccessKeyId": moto.access_key, "SecretAccessKey": moto.secret_key}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    command = Command(None, "", cwd=tmp_path)
    command.environ |= {"COLDSTREAM_STORE": f"s3://{fresh_bucket(moto)}", "AWS_PROFILE": "lab"}
    command.environ["AWS_CONFIG_FILE"] = str(tmp_path / "config")
    authority = certificates().ca_file
    with fault_proxy(moto, tls=certificates().good) as (server, faults):
        text = CONFIG.format(authority=authority, keys=tmp_path / "keys.json", endpoint=server.endpoint)
        (tmp_path / "config").write_text(text)
        out, _ = command.run("setup")
        assert f"{server.endpoint}   (AWS_ENDPOINT_URL_S3 from the profile lab in {tmp_path}/config)" in out
        assert "clock" in out
        assert f"export AWS_CA_BUNDLE={authority}" in out
        command.run("upload", str(folder), "--as", "org/model")
        assert command.json("verify", "org/model", "--deep")["ok"] is True
        faults.requests.clear()
        command.run("load", "org/model", "--no-cache")
        assert sum("X-Amz-Signature" in line for line, _ in faults.requests) >= 3, "the engine's own connections"
        out, _ = command.run("doctor", "org/model")
        assert "the certificate is valid" in out
        out, _ = command.run("template", "org/model", "--target", "k8s", "--gpus", "L4:1")
        assert server.endpoint in out
        assert "eu-west-1" in out
        (tmp_path / "config").write_text(text.replace(f"ca_bundle = {authority}\n", ""))
        _, err = command.run("list", code=1)
        assert "TLS failed" in err


def test_doctor_names_a_profile_that_does_not_exist(tmp_path: Path) -> None:
    command = Command(None, "", cwd=tmp_path)
    command.environ |= {"COLDSTREAM_STORE": "s3://bucket", "AWS_PROFILE": "nowhere"}
    command.environ["AWS_CONFIG_FILE"] = str(tmp_path / "config")
    checks = {check["name"]: check for check in command.json("doctor", code=1)["checks"]}
    assert "(nowhere) could not be found" in checks["configuration"]["found"]
