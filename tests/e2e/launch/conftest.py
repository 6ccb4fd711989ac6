"""A bucket with models, a fake SkyPilot, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.fleet.launches import Launches
from coldstream.telemetry.timeline.start_record import format_ready_line
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.e2e.launch.arguments import TOKENS
from tests.e2e.test_tune import CONFIG
from tests.models import write_model
from tests.servers.fake_sky import FakeSky, fake_sky
from tests.servers.r2 import FakeR2, r2
from tests.servers.stores import S3Server
from tests.unit.telemetry.timeline.starts import streamed


@pytest.fixture(scope="package")
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
