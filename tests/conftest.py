"""Servers and stores that tests share. Servers are real and live as long as the test process."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import botocore.session
import hypothesis
import pytest

from coldstream.net.retry import Backoff, Retry
from coldstream.package import __version__
from coldstream.places.opening import open_store
from coldstream.places.place import Store
from coldstream.runtime import node_runtimes
from coldstream.runtime.runtime_manifest import Platform
from coldstream.settings import load_settings
from tests.servers.stores import Faults, S3Server, fault_proxy, moto_server, rclone_server

# Containers often set it, and then each process that a test starts compiles all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Each session of botocore reads all that it knows of S3 from the disk, for 0.1 s, and the tests open thousands.
botocore.session.create_loader = cache(botocore.session.create_loader)
# How long an example takes says something of the machine alone.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

# A machine may reach the package index through a proxy; it is not to be asked for servers of this machine.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, ["127.0.0.1", "localhost", os.environ.get(_name)]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slow ones first: one of xdist's workers begins with them, and the others take over the rest."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        ours = ("AWS_", "R2_", "HF_", "CLOUDFLARE_", "COLDSTREAM_", "CF_ACCESS_")
        if name.startswith(ours) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "default-cache"))
    # Without it, how full the machine's disk is decides whether models are cached.
    monkeypatch.setenv("COLDSTREAM_CACHE_LIMIT", "20GB")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    # Runtimes of this machine are no test's.
    monkeypatch.setattr(node_runtimes, "PLACES", (tmp_path / "places",))


@pytest.fixture(autouse=True)
def few_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """`template` and `launch` publish one file for coldstream's packages, which take seconds to pack."""
    monkeypatch.setattr("coldstream.cli.stored_runtimes.gather", fill_with_one_file)


def fill_with_one_file(out: Path) -> Platform:
    (out / "bin").mkdir()
    (out / "bin/coldstream").write_text("# none\n")
    return Platform(machine="x86_64", glibc="2.17", python="3.12.1", vllm="", torch="", coldstream=__version__)


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


def quick_store(flags: dict[str, str], *, give_up_seconds: float = 5.0) -> Store:
    """A store whose back-off is quick."""
    retry = Retry(Backoff(first_seconds=0.01, longest_seconds=0.1, give_up_seconds=give_up_seconds))
    return open_store(load_settings(flags, environ={}), retry=retry)


def fresh_bucket(server: S3Server) -> str:
    """A new bucket's name."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    server.create_bucket(name)
    return name


@pytest.fixture(params=["folder", "rclone", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})
    server: S3Server = request.getfixturevalue(request.param)
    return quick_store(server.environ(fresh_bucket(server)))


@pytest.fixture
def moto_store(moto: S3Server) -> Store:
    """A store that honours conditions."""
    return quick_store(moto.environ(fresh_bucket(moto)))


@pytest.fixture
def proxied(moto: S3Server) -> Iterator[tuple[Store, Faults]]:
    """A store behind the fault proxy, and what breaks it."""
    bucket = fresh_bucket(moto)
    with fault_proxy(moto) as (server, faults):
        yield quick_store(server.environ(bucket)), faults
