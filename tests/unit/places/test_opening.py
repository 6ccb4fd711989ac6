"""Which origin a URI names, what is refused, and what it costs to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coldstream.errors import ConfigError, UsageError
from coldstream.places.opening import open_model_reader
from coldstream.settings import load_settings

BUCKET = {"R2_ENDPOINT": "http://127.0.0.1:9", "R2_BUCKET": "models", "R2_ACCESS_KEY": "k", "R2_SECRET_KEY": "s"}


def label(uri: str, flags: dict[str, str]) -> str:
    return open_model_reader(uri, load_settings(flags, environ={})).label


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("org/model", "s3://models/org/model"),
        ("org/model/", "s3://models/org/model"),
        ("s3://models/org/model/", "s3://models/org/model"),
        ("s3://other/some folder/x=1", "s3://other/some folder/x=1"),
        ("S3://other/m", "s3://other/m"),
        ("file:///a/b%20c/../d/", "file:///a/d"),
        ("/a/b", "file:///a/b"),
        ("https://CDN.example.com:8443/a/b/?token=secret#x", "https://cdn.example.com:8443/a/b"),
        ("http://127.0.0.1/a b/ü", "http://127.0.0.1/a%20b/%C3%BC"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("hf://org/model", "hf://org/model"),
        ("hf://org/model/unet/", "hf://org/model/unet"),
        ("hf://org/model/a/b@refs/pr/1", "hf://org/model/a/b@refs/pr/1"),
        ("hf://gpt2@refs/pr/1", "hf://gpt2@refs/pr/1"),
    ],
)
def test_what_a_uri_names(uri: str, canonical: str) -> None:
    assert label(uri, BUCKET) == canonical


def test_paths_and_the_configured_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert label("./m", {}) == label("~/m", {}) == (tmp_path / "m").as_uri()
    assert label("org/m", {"COLDSTREAM_STORE": str(tmp_path)}) == (tmp_path / "org/m").as_uri()


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/a/../b",
        "hf://",
        "hf://a/b//c",
        "hf://a/b/../c",
        "hf://a/b@../x",
        "ftp://h/m",
        "https://",
        "https:///m",
        "http://h:0/m",
        "http://h:x/m",
        "https://user:pass@h/m",
        "file://host/m",
        "a b",
        "org//m",
    ],
)
def test_what_names_no_model_is_refused(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        label(uri, BUCKET)
    assert caught.value.hint
    assert "user:pass" not in str(caught.value)


def test_a_name_needs_a_store_and_nothing_else_does() -> None:
    with pytest.raises(ConfigError, match="no bucket is configured"):
        label("org/model", {})
    assert label("https://h/m", {}) == "https://h/m"


def test_nothing_heavy_is_imported_before_a_uri_needs_it(tmp_path: Path) -> None:
    code = """
import sys
from coldstream.settings import load_settings
from coldstream.places.opening import open_model_reader
heavy = ["boto3", "botocore", "msgspec", "huggingface_hub", "urllib3", "coldstream.net.connection"]
assert not [name for name in heavy if name in sys.modules]
settings = load_settings(environ={})
open_model_reader("http://127.0.0.1/m", settings)
open_model_reader("/m", settings)
open_model_reader("hf://org/m", settings)
assert not [name for name in heavy[:-1] if name in sys.modules]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60)
