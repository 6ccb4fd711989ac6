"""Temporary credentials against R2's rules: one model can be read with them, and nothing else can be done.

The double checks what reaches it by Cloudflare's documents, so what passes here was signed as R2 wants it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import coldstream
from coldstream.errors import CredentialsError, NotFoundError
from coldstream.fleet.credentials import Credentials, plan_keys
from coldstream.node.adapter_source import AdapterSource
from coldstream.settings import load_settings
from tests.adapters import adapter_files
from tests.checkpoints import expected_tensors, raw_bytes, sharded_checkpoint
from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.manifests import strip_headers
from tests.models import write_model
from tests.servers.r2 import ACCOUNT, SECRET_KEY, FakeApi, FakeR2, cloudflare, keys_of, r2
from tests.servers.stores import S3Server

NAME, NEIGHBOUR = "org/model", "org/model-2"


@dataclass
class Place:
    """A bucket with two models behind the double, and the API that issues keys to it."""

    double: FakeR2
    api: FakeApi
    bucket: str
    tmp_path: Path

    def settings(self) -> Any:
        return load_settings({**self.double.environ(self.bucket), **self.api.environ()}, environ={})

    def mint(self, how: Any, **options: Any) -> Credentials:
        return plan_keys(self.settings(), NAME, 900, how, **options).mint()

    def command(self, keys: dict[str, str] | None = None) -> Command:
        """The command with these keys, or with the parent's."""
        command = Command(None, "", cwd=self.tmp_path)
        for name in list(command.environ):
            if name.startswith(("AWS_", "R2_", "CLOUDFLARE_", "COLDSTREAM_")):
                del command.environ[name]
        command.environ |= self.double.environ(self.bucket) | (keys or {})
        command.environ["COLDSTREAM_CACHE_DIR"] = str(self.tmp_path / "cache")
        command.environ["COLDSTREAM_RETRY_SECONDS"] = "5"
        return command


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=2, layers=2, rows=64, columns=64)


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expected_tensors(tmp_path_factory.mktemp("expected"), files)


@pytest.fixture(scope="module")
def folder(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), files | {"config.json": b"{}"})


@pytest.fixture(scope="module")
def stocked(moto: S3Server, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With both models in it; an upload to R2 waits a second between two writes to one key."""
    with r2(moto) as double, cloudflare(double) as api:
        place = Place(double, api, fresh_bucket(moto), tmp_path_factory.mktemp("parent"))
        parent = place.command()
        for name in (NAME, NEIGHBOUR):
            parent.run("upload", str(folder), "--as", name, "--quiet")
        assert set(parent.states()) == {NAME, NEIGHBOUR}
        yield place


@pytest.fixture
def place(stocked: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in stocked.double.environ("").items():
        if name.lower().endswith("_proxy"):
            monkeypatch.setenv(name, value)
    stocked.double.log.clear()
    stocked.double.ahead_seconds, stocked.double.expired = 0.0, (400, "ExpiredToken")
    return replace(stocked, tmp_path=tmp_path)


@pytest.mark.parametrize("how", ["sign", "api"])
def test_one_model_can_be_read(
    place: Place, how: str, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """coldstream load org/model, with minted keys; the same bytes by the library, in processes that hold no keys"""
    found = place.mint(how)
    command = place.command(found.environment)
    report = command.json("load", NAME, "--no-cache")
    assert report["received_bytes"] == report["bytes"] == sum(map(len, expected.values()))
    assert report["verified"]
    for name, value in command.environ.items():
        monkeypatch.setenv(name, value)
    with coldstream.stream(NAME, cache=False, framework="buffer") as loading:
        assert {name: raw_bytes(tensor) for name, tensor in loading} == expected
    assert all(line.endswith(("206 ok", "200 ok")) for line in place.double.log)
    assert any(".safetensors 206 ok" in line for line in place.double.log)
    out, _ = command.process("load", NAME, "--json")
    assert json.loads(out)["received_bytes"] == report["bytes"]


@pytest.mark.parametrize("how", ["sign", "api"])
def test_nothing_else_can_be_done(place: Place, how: str, folder: Path) -> None:
    """coldstream load org/model-2; upload; remove; list: 12, and a hint that says why"""
    command = place.command(place.mint(how).environment)
    for arguments in (
        ("load", NEIGHBOUR, "--no-cache"),
        ("upload", str(folder), "--as", "org/model/deeper"),
        ("upload", str(folder), "--as", "org/other"),
        ("remove", NAME, "--yes"),
        ("remove", NEIGHBOUR, "--yes"),
        ("list",),
    ):
        _, err = command.run(*arguments, code=12)
        assert "refused (403" in err, arguments
        assert "temporary" in err, arguments
    assert "AccessDenied" in "".join(place.double.log)
    assert not any(line.startswith(("PUT", "POST", "DELETE")) and line.endswith("ok") for line in place.double.log)
    assert set(place.command().states()) == {NAME, NEIGHBOUR}


@pytest.mark.parametrize("how", ["sign", "api"])
def test_the_store_only_reads(place: Place, how: str) -> None:
    """The operations themselves, inside of the prefixes and outside."""
    store = quick_store({**place.double.environ(place.bucket), **place.mint(how).environment})
    neighbour, beside = f"{NEIGHBOUR}/config.json", ".coldstream/bundles/org/model-2/x.bundle"
    refused: list[Callable[[], object]] = [
        lambda: store.put(f"{NAME}/x", b"x"),
        lambda: store.put(f"{NAME}/x", b"x", if_absent=True),
        lambda: store.delete([f"{NAME}/config.json"]),
        lambda: store.create_upload(f"{NAME}/x"),
        lambda: store.get(neighbour),
        lambda: store.head(neighbour),
        lambda: store.get(beside),
        lambda: list(store.list("")),
        lambda: list(store.list("org/")),
        lambda: list(store.list(NAME)),
        lambda: list(store.list(f"{NEIGHBOUR}/")),
    ]
    for operation in refused:
        with pytest.raises(CredentialsError, match="403"):
            operation()
    assert store.get(f"{NAME}/config.json")[0] == b"{}"
    assert f"{NAME}/config.json" in {info.key for info in store.list(f"{NAME}/")}
    with pytest.raises(NotFoundError):
        store.get(".coldstream/bundles/org/model/none.bundle")


@pytest.mark.parametrize("how", ["sign", "api"])
def test_the_named_adapters_can_be_read_and_no_others(place: Place, moto: S3Server, how: str) -> None:
    """coldstream download me/sql, with keys for it; me/sql-2, which is an adapter of the same base"""
    place.bucket = fresh_bucket(moto)
    parent = quick_store(place.double.environ(place.bucket))
    for name in ("me/sql", "me/sql-2", "me/chat"):
        for path, content in adapter_files(NAME).items():
            parent.put(f"{name}/{path}", content)
    keys = place.mint(how, beside=("me/sql", "me/chat"))
    assert keys.terms.prefixes == (f"{NAME}/", f".coldstream/bundles/{NAME}/", "me/sql/", "me/chat/")
    command = place.command(keys.environment)
    for name in ("me/sql", "me/chat"):
        command.run("download", name, name)
        assert (place.tmp_path / name / "adapter_model.safetensors").read_bytes()
    for name in ("me/sql-2", "me/none"):
        assert "refused (403" in command.run("download", name, name, code=12)[1]
    assert "refused (403" in command.run("list", code=12)[1]
    # As `serve --adapters` reads them on the node.
    settings = load_settings({**place.double.environ(place.bucket), **keys.environment}, environ={})
    source = AdapterSource(settings, base=NAME, store=settings.store_uri(), cache=place.tmp_path / "adapters")
    with source.fetch(source.find("me/sql", seconds=5)) as copy:
        assert (copy.folder / "adapter_model.safetensors").exists()
    with pytest.raises(CredentialsError, match="403"):
        source.find("me/sql-2", seconds=5)


def test_a_model_without_a_manifest_can_be_read(place: Place, moto: S3Server, files: dict[str, bytes]) -> None:
    """Its folder is listed, with the prefix that the token allows."""
    place.bucket = fresh_bucket(moto)
    parent = quick_store(place.double.environ(place.bucket))
    for path, content in files.items():
        parent.put(f"{NAME}/{path}", content)
    report = place.command(place.mint("sign").environment).json("load", NAME, "--no-cache")
    assert report["received_bytes"] == report["bytes"]
    assert f"GET /{place.bucket} 200 ok" in place.double.log


@pytest.mark.parametrize("expired", [(400, "ExpiredToken"), (403, "ExpiredToken"), (401, "Unauthorized")])
@pytest.mark.parametrize("how", ["sign", "api"])
def test_expired_keys_are_reported_as_expired(place: Place, how: str, expired: tuple[int, str]) -> None:
    keys = place.mint(how)
    place.double.expired, place.double.ahead_seconds = expired, 901
    _, err = place.command(keys.environment).run("load", NAME, "--no-cache", code=12)
    assert "expired" in err
    assert "new ones" in err
    assert keys.secret_key not in err
    assert str(keys.session_token) not in err
    store = quick_store({**place.double.environ(place.bucket), **keys.environment})
    with pytest.raises(CredentialsError) as raised:
        store.head(f"{NAME}/config.json")  # whose answer has no body to say why in
    assert "expired" in str(raised.value.hint)


@pytest.mark.parametrize("expired", [(400, "ExpiredToken"), (401, "Unauthorized")])
@pytest.mark.parametrize("answers", [1, 3])
def test_keys_that_end_during_a_load_end_it(place: Place, answers: int, expired: tuple[int, str]) -> None:
    """After the manifest; after the headers, when the streamer asks with links that were good until then."""
    double = place.double
    if answers > 1:
        # The manifest of an earlier version, after which headers are read.
        strip_headers(quick_store(double.environ(place.bucket)), NAME)
        double.log.clear()
    double.expired = expired

    class Clock:
        """Of the token's judge: late once so many requests were let through."""

        def __get__(self, instance: FakeR2, _owner: object) -> float:
            return 901.0 if sum(line.endswith("ok") for line in instance.log) >= answers else 0.0

        def __set__(self, instance: FakeR2, value: float) -> None:
            pass

    keys = place.mint("sign")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeR2, "ahead_seconds", Clock())
        _, err = place.command(keys.environment).run("load", NAME, "--no-cache", code=12)
    assert "expired" in err
    assert sum(line.endswith("ok") for line in double.log) == answers
    assert any(line.endswith(f".safetensors {expired[0]} {expired[1]}") for line in double.log)


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda d, b: d.token(b, [""]), id="another-prefix-than-the-secret-s"),
        pytest.param(lambda d, b: d.token(b, ["org/"], key=SECRET_KEY[::-1]), id="another-parent"),
        pytest.param(lambda d, b: d.token(b, ["org/"], header={"alg": "none", "typ": "JWT"}), id="no-algorithm"),
        pytest.param(lambda d, b: d.token(b, ["org/"], aud="elsewhere.r2.cloudflarestorage.com"), id="another-host"),
        pytest.param(lambda d, b: d.token(b, ["org/"], sub="f" * 32), id="another-account"),
        pytest.param(lambda d, b: d.token(b, ["org/"], iss="f" * 32), id="another-key"),
        pytest.param(lambda d, b: d.token("another-bucket", ["org/"]), id="another-bucket"),
        pytest.param(lambda d, b: d.token(b, ["org/"], iat=0), id="too-long-a-life"),
    ],
)
def test_forged_tokens_are_refused(place: Place, request: pytest.FixtureRequest, forge: Any) -> None:
    """Of the double: what it lets through is what R2's documents allow."""
    keys = keys_of(forge(place.double, place.bucket))
    environment = {
        "R2_ACCESS_KEY": keys["accessKeyId"],
        "R2_SECRET_KEY": keys["secretAccessKey"],
        "R2_SESSION_TOKEN": keys["sessionToken"],
    }
    if "than-the-secret-s" in request.node.name:
        environment["R2_SECRET_KEY"] = place.mint("sign").secret_key
    _, err = place.command(environment).run("load", NAME, "--no-cache", code=12)
    assert keys["sessionToken"] not in err


def test_a_tampered_token_is_refused(place: Place) -> None:
    """Somebody widens the prefixes, and keeps the signature."""
    keys = place.mint("sign").environment
    head, claims, signature = base64.b64decode(keys["R2_SESSION_TOKEN"]).removeprefix(b"jwt/").decode().split(".")
    wider = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    wider["paths"]["prefixPaths"] = ["org/"]
    claims = base64.urlsafe_b64encode(json.dumps(wider).encode()).decode().rstrip("=")
    forged = keys_of(f"{head}.{claims}.{signature}")
    keys |= {"R2_SECRET_KEY": forged["secretAccessKey"], "R2_SESSION_TOKEN": forged["sessionToken"]}
    for name in (NAME, NEIGHBOUR):
        place.command(keys).run("load", name, "--no-cache", code=12)


def test_without_the_token_the_secret_is_worth_nothing(place: Place) -> None:
    keys = place.mint("sign").environment | {"R2_SESSION_TOKEN": ""}
    _, err = place.command(keys).run("load", NAME, "--no-cache", code=12)
    assert "SignatureDoesNotMatch" in err


def test_a_jurisdiction_s_host(moto: S3Server, folder: Path, tmp_path: Path) -> None:
    host = f"{ACCOUNT}.eu.r2.cloudflarestorage.com"
    with r2(moto, host=host) as double, cloudflare(double) as api:
        place = Place(double, api, fresh_bucket(moto), tmp_path)
        place.command().run("upload", str(folder), "--as", NAME, "--quiet")
        place.command(place.mint("sign").environment).run("load", NAME, "--no-cache")


def test_a_prefix_in_the_bucket(moto: S3Server, folder: Path, tmp_path: Path) -> None:
    """COLDSTREAM_STORE=s3://bucket/team/a"""
    with r2(moto) as double, cloudflare(double) as api:
        place = Place(double, api, fresh_bucket(moto), tmp_path)
        store = {"COLDSTREAM_STORE": f"s3://{place.bucket}/team/a"}
        place.command(store).run("upload", str(folder), "--as", NAME, "--quiet")
        found = plan_keys(load_settings({**double.environ(place.bucket), **store}, environ={}), NAME, 900).mint()
        place.command(store | found.environment).run("load", NAME, "--no-cache")
        place.command(found.environment).run("load", NAME, "--no-cache", code=12)
