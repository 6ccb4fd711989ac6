"""What a profile of the AWS configuration adds to the settings, and what it gives way to."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import ConfigError
from coldstream.settings import Settings, load_settings

CONFIG = """
[default]
region = eu-north-1

[profile lab]
region = eu-west-1
ca_bundle = ~/lab.pem
endpoint_url = https://all.lab
services = storage

[profile plain]
endpoint_url = https://plain.lab:9000
ignore_configured_endpoint_urls = false

[profile off]
endpoint_url = https://plain.lab:9000
ignore_configured_endpoint_urls = true

[services storage]
s3 =
  endpoint_url = https://s3.lab
ec2 =
  endpoint_url = https://ec2.lab
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(CONFIG)
    (tmp_path / ".aws/credentials").write_text("[lab]\nregion = eu-west-9\n[default]\naws_access_key_id = a\n")
    return {"HOME": str(tmp_path)}


def seen(settings: Settings) -> tuple[str | None, str | None, str | None]:
    return settings.endpoint(), settings.region, settings.get("AWS_CA_BUNDLE")


def test_a_profile_gives_endpoint_region_and_certificates(environ: dict[str, str], tmp_path: Path) -> None:
    settings = load_settings(environ=environ | {"AWS_PROFILE": "lab"})
    assert seen(settings) == ("https://s3.lab", "eu-west-9", f"{tmp_path}/lab.pem")
    origin = f"AWS_ENDPOINT_URL_S3 from the profile lab in {tmp_path}/.aws/config"
    assert settings.origin("R2_ENDPOINT", "AWS_ENDPOINT_URL_S3") == origin
    assert seen(load_settings(environ=environ)) == (None, "eu-north-1", None)
    assert seen(load_settings({"AWS_PROFILE": "plain"}, environ=environ))[0] == "https://plain.lab:9000"
    assert seen(load_settings(environ=environ | {"AWS_DEFAULT_PROFILE": "plain"}))[0] == "https://plain.lab:9000"


def test_what_is_nearer_wins_and_its_region_is_not_the_profiles(environ: dict[str, str], tmp_path: Path) -> None:
    environ["AWS_PROFILE"] = "lab"
    certificates = f"{tmp_path}/lab.pem"
    for name in ("R2_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        assert seen(load_settings(environ=environ | {name: "https://near.example"})) == (
            "https://near.example", "us-east-1", certificates,
        )  # fmt: skip
    near = load_settings(environ=environ | {"AWS_DEFAULT_REGION": "ap-east-1", "AWS_CA_BUNDLE": "/near.pem"})
    assert seen(near) == ("https://s3.lab", "ap-east-1", "/near.pem")


def test_configured_endpoints_can_be_ignored(environ: dict[str, str]) -> None:
    assert load_settings(environ=environ | {"AWS_PROFILE": "off"}).endpoint() is None
    ignoring = environ | {"AWS_PROFILE": "plain", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
    assert load_settings(environ=ignoring).endpoint() is None


def test_the_files_can_be_named_and_broken_ones_are_left_to_boto3(environ: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("[default]\nendpoint_url = https://other.example/with/path\n")
    with pytest.raises(ConfigError, match=rf"endpoint_url \(in the profile default in {other}\) has the path"):
        load_settings(environ=environ | {"AWS_CONFIG_FILE": str(other)}).endpoint()
    other.write_text("no section\n")
    assert seen(load_settings(environ=environ | {"AWS_CONFIG_FILE": str(other)})) == (None, None, None)
