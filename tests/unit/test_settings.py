"""Settings: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import ConfigError
from coldstream.settings import ambient_settings, load_settings

KEYS = {"R2_ACCESS_KEY": "access-key-0000000000", "R2_SECRET_KEY": "secret-key-0000000000"}


def test_flags_beat_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("R2_BUCKET=from-file\nHF_TOKEN=file-token\nR2_ENDPOINT=https://file.example\n")
    environ = {"R2_BUCKET": "from-environment", "HF_TOKEN": "environment-token", "R2_ENDPOINT": " "}
    settings = load_settings({"R2_BUCKET": "from-flag", "HF_TOKEN": None}, env_file=file, environ=environ)
    assert settings.store_uri() == "s3://from-flag"
    assert settings.origin("HF_TOKEN") == "HF_TOKEN from environment"
    assert settings.endpoint() == "https://file.example"


def test_a_shells_way_of_writing_the_file_works(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("export R2_ENDPOINT='https://a.example'\nAWS_ENDPOINT_URL=$R2_ENDPOINT        # alias\n")
    settings = load_settings(env_file=file, environ={})
    assert settings.get("AWS_ENDPOINT_URL") == "https://a.example"


def test_a_misspelt_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="COLDSTREAM_STOER") as caught:
        load_settings(environ={"COLDSTREAM_STOER": "x"})
    assert "COLDSTREAM_STORE" in (caught.value.hint or "")


def test_the_prefix_makes_no_two_settings_alike() -> None:
    with pytest.raises(ConfigError, match="COLDSTREAM_CONNECTIONS") as caught:
        load_settings(environ={"COLDSTREAM_CONNECTIONS": "8"})
    assert caught.value.hint == "see docs/environment.md"


def test_lines_that_set_nothing_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "env"
    file.write_bytes(b'\xef\xbb\xbfR2_BUCKET=models\r\n\r\n# a remark\nHF_TOKEN hf_secret\nR2_CDN_DOMAIN="open\n')
    settings = load_settings(env_file=file, environ={})
    assert settings.values == {"R2_BUCKET": "models"}
    assert settings.warning == f"{file} has lines that are not NAME=value and are ignored: 4, 5"
    assert not caplog.records


@pytest.mark.parametrize("text", ["R2_BUCKET=models\n".encode("utf-16"), b"R2_BUCKET=\xff\n"])
def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "env"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match="env is not UTF-8"):
        load_settings(env_file=file, environ={})


def test_a_named_file_must_be_one() -> None:
    with pytest.raises(ConfigError, match="/dev/null is not a regular file"):
        load_settings(env_file=Path("/dev/null"), environ={})


def services(*names: str) -> dict[str, str]:
    """What Kubernetes puts into every container of a namespace with Services of these names."""
    found = {}
    for name in names:
        stem = name.upper().replace("-", "_")
        found |= {
            f"{stem}_SERVICE_HOST": "10.96.0.7",
            f"{stem}_SERVICE_PORT": "8000",
            f"{stem}_SERVICE_PORT_HTTP": "8000",
            f"{stem}_PORT": "tcp://10.96.0.7:8000",
            f"{stem}_PORT_8000_TCP": "tcp://10.96.0.7:8000",
            f"{stem}_PORT_8000_TCP_PROTO": "tcp",
            f"{stem}_PORT_8000_TCP_PORT": "8000",
            f"{stem}_PORT_8000_TCP_ADDR": "10.96.0.7",
        }
    return found


def test_what_kubernetes_says_of_services_is_no_setting() -> None:
    environ = services("coldstream", "coldstream-metrics", "coldstream-qwen3-8b", "coldstream-cache")
    assert not load_settings(environ=environ).values
    assert (
        load_settings(environ={**environ, "COLDSTREAM_METRICS_PORT": "9000"}).get("COLDSTREAM_METRICS_PORT") == "9000"
    )
    assert load_settings({"COLDSTREAM_METRICS_PORT": "9000"}, environ=environ).values == {
        "COLDSTREAM_METRICS_PORT": "9000"
    }


@pytest.mark.parametrize("name", ["COLDSTREAM_METRIC_PORT", "COLDSTREAM_METRICS_PROT", "COLDSTREAM_HOST"])
def test_what_only_looks_like_a_service_is_misspelt(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_settings(environ={name: "9000"})


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_that_docker_kept_are_named(quote: str) -> None:
    with pytest.raises(ConfigError, match=r"R2_SECRET_KEY \(in environment\): the quotes are part") as caught:
        load_settings(environ={"R2_SECRET_KEY": f"{quote}marked-secret{quote}"})
    assert "marked" not in caught.value.message
    assert "docker" in (caught.value.hint or "")


def test_placeholders_are_refused_without_showing_secrets() -> None:
    with pytest.raises(ConfigError, match=r"R2_SECRET_KEY.*placeholder"):
        load_settings(environ={"R2_SECRET_KEY": "your_r2_secret_access_key"})
    with pytest.raises(ConfigError, match="account-id"):
        load_settings(environ={"R2_ENDPOINT": "https://<account-id>.r2.cloudflarestorage.com"})


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="R2_SECRET_KEY is not"):
        load_settings(environ={"R2_ACCESS_KEY": "x" * 20}).keys()


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "ftp://x", "https://", "https://a.example/bucket", "https://u:p@a.example", "http://a:x"]
)
def test_a_malformed_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="R2_ENDPOINT"):
        load_settings(environ={"R2_ENDPOINT": endpoint}).endpoint()


def test_regions_follow_the_endpoint() -> None:
    assert load_settings(environ={"R2_ENDPOINT": "https://a.eu.r2.cloudflarestorage.com"}).region == "auto"
    assert load_settings(environ={"R2_ENDPOINT": "https://minio.example"}).region == "us-east-1"
    assert load_settings(environ={}).region is None
    assert load_settings(environ={"AWS_REGION": "eu-west-1", "R2_ENDPOINT": "https://x.example"}).region == "eu-west-1"


def test_no_bucket_says_where_was_looked() -> None:
    with pytest.raises(ConfigError, match=r"the environment or \.env"):
        load_settings(environ={}).store_uri()


def test_the_repr_holds_no_secret() -> None:
    assert KEYS["R2_SECRET_KEY"] not in repr(load_settings(environ=KEYS))


@pytest.mark.parametrize("mark", ["config.json", "coldstream.json", "model_index.json", "m-00001-of-00002.safetensors"])
def test_a_file_that_may_have_come_with_a_model_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    (tmp_path / ".env").write_text("HF_ENDPOINT=https://evil.example\nR2_BUCKET=theirs\n")
    (tmp_path / mark).write_bytes(b"{}")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(environ={})
    assert settings.get("HF_ENDPOINT") is None
    assert mark in (settings.warning or "")
    with pytest.raises(ConfigError, match=f"not read: it is beside {mark}"):
        settings.store_uri()
    with pytest.warns(UserWarning, match="is not read"):
        ambient_settings()
    named = load_settings(env_file=Path(".env"), environ={})
    assert (named.get("R2_BUCKET"), named.warning) == ("theirs", None)


def test_a_file_in_a_folder_without_a_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("R2_BUCKET=mine\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "config.json").write_bytes(b"{}")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(environ={})
    assert (settings.get("R2_BUCKET"), settings.warning) == ("mine", None)
