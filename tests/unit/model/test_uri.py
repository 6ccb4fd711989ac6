"""URIs that hold a secret: what is shown of them, and that nothing which holds one prints it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import coldstream
from coldstream.errors import ConfigError, UsageError
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.model.names import Uri, checked_name, model_name, without_secrets
from coldstream.node.inference_engine import ServeRequest
from coldstream.node.load_service import LoadService
from coldstream.places.opening import open_model_reader
from coldstream.settings import load_settings

SHOWN = [
    ("https://h.example/org/m?token=marker", "https://h.example/org/m"),
    ("https://h.example:8443/org/m?token=marker#marker", "https://h.example:8443/org/m"),
    ("https://user:marker@h.example:8443/m", "https://h.example:8443/m"),
    ("s3://AKIA:mar/ker@bucket/org/m", "s3://bucket/org/m"),
    ("s3://marker@bucket/org/m", "s3://bucket/org/m"),
    ("s3://AKIA:12/marker@bucket/org/m", "s3://bucket/org/m"),
    ("s3://bucket/org/m@1", "s3://bucket/org/m@1"),
    ("hf://user:marker@org/m@main", "hf://org/m@main"),
    ("hf://hf_marker@org/m", "hf://org/m"),
    ("hf://gpt2@refs/pr/1", "hf://gpt2@refs/pr/1"),
    ("hf://org/m@main", "hf://org/m@main"),
    ("http://[::1]:8080/m?token=marker", "http://[::1]:8080/m"),
    ("h.example/org/m?token=marker", "h.example/org/m"),
    ("org/m", "org/m"),
    ("/srv/a?b", "/srv/a?b"),
    ("file:///srv/a%3Fb", "file:///srv/a%3Fb"),
]


@pytest.mark.parametrize(("full", "shown"), SHOWN)
def test_what_is_shown_names_the_model_without_its_secret(full: str, shown: str) -> None:
    uri = Uri(full)
    assert str(uri) == f"{uri}" == shown
    assert repr(uri) == f"Uri({shown!r})"
    assert uri.full == full
    assert uri.has_user == (full.count("@") > shown.count("@"))


def test_a_text_that_holds_some_is_cut_in_the_same_way() -> None:
    assert without_secrets("extra arguments (s3://AKIA:mar/ker@bucket/m 'https://h/m?token=marker' s3://b/m@1)") == (
        "extra arguments (s3://bucket/m 'https://h/m' s3://b/m@1)"
    )


def test_a_library_that_names_the_path_alone_is_cut_too() -> None:
    assert without_secrets("retries exceeded with url: /m/a?X-Amz-Signature=marker&x=1 (Caused by)") == (
        "retries exceeded with url: /m/a (Caused by)"
    )
    assert without_secrets("no file https:/user:marker@h/m?token=marker") == "no file https:/h/m"
    assert without_secrets("'https://user:marker' 's3://AKIA:mar/ker' 'hf://hf_marker'") == "'https://' 's3://' 'hf://'"
    for text in ("http://127.0.0.1:9: refused", "(https://h:443, s3://models: gone).", "http://[::1]:9/m… s3://m/a/b."):
        assert without_secrets(text) == text
    assert without_secrets("is it there? yes") == "is it there? yes"
    assert without_secrets("GET https://user:pass@host/model?token=abc failed") == "GET https://host/model failed"


def test_what_holds_a_uri_does_not_print_it(tmp_path: Path) -> None:
    full = "https://h.example/org/m?token=marker"
    settings = load_settings({"COLDSTREAM_CACHE_DIR": str(tmp_path)}, environ={})
    options = Options(settings=settings)
    with Load(full, options) as loading, LoadService(full, options=options) as service:
        request = ServeRequest(uri=Uri(full), arguments=(), loader="coldstream", options=options)
        for holder in (loading, service, request):
            assert "https://h.example/org/m" in repr(holder)
            assert "marker" not in repr(holder)
    assert model_name(full) == "org/m"


@pytest.mark.parametrize("full", [full for full, shown in SHOWN if full.count("@") > shown.count("@")])
def test_a_user_or_a_password_is_refused_and_not_repeated(full: str) -> None:
    with pytest.raises(UsageError, match="a user or a password") as caught:
        open_model_reader(full, load_settings({}, environ={}))
    assert caught.value.hint
    assert "marker" not in f"{caught.value.message} {caught.value.hint}"


def test_a_store_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="the store s3://bucket contains") as caught:
        load_settings({"COLDSTREAM_STORE": "s3://AKIA:mar/ker@bucket"}, environ={}).store_uri()
    assert "mar/ker" not in f"{caught.value.message} {caught.value.hint}"


def test_a_url_where_a_name_is_due_is_not_repeated_with_its_token() -> None:
    with pytest.raises(UsageError, match=r"h\.example/org/m' is not a model's name") as caught:
        checked_name("https://h.example/org/m?token=marker")
    assert "marker" not in caught.value.message


def test_no_record_prints_a_secret_that_it_holds() -> None:
    package = Path(coldstream.__file__).parent
    record = re.compile(r"^    (?:secret|secret_key|api_key|token|password): [^,\n]*$", re.MULTILINE)
    fields = [line for path in package.rglob("*.py") for line in record.findall(path.read_text())]
    assert fields
    assert [line for line in fields if "repr=False" not in line] == []
