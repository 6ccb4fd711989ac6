"""A bare machine, and buckets of several kinds with a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.machine import hardware
from coldstream.operate.doctor import node_checks
from tests.e2e.doctor.doctor_place import FILES, NAME, Place, make_place
from tests.servers.r2 import FakeR2, r2
from tests.servers.ranged import RangedServer
from tests.servers.stores import Faults, S3Server, fault_proxy


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a GPU, with a local disk, whatever this one has."""
    (tmp_path / "mounts").write_text("/dev/root / ext4 rw 0 0\n")
    monkeypatch.setattr(node_checks, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(node_checks, "_devices", lambda: False)
    hardware.gpus.cache_clear()
    yield
    hardware.gpus.cache_clear()


@pytest.fixture
def place(rclone: S3Server, tmp_path: Path) -> Place:
    return make_place(rclone, tmp_path)


@pytest.fixture
def double(moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, FakeR2]]:
    place = make_place(moto, tmp_path)
    with r2(moto) as found:
        place.command.environ |= found.environ(place.command.environ["R2_BUCKET"])
        yield place, found


@pytest.fixture
def proxied(moto: S3Server, tmp_path: Path) -> Iterator[tuple[Place, Faults]]:
    place = make_place(moto, tmp_path)
    with fault_proxy(moto) as (server, faults):
        place.command.environ["R2_ENDPOINT"] = server.endpoint
        yield place, faults


@pytest.fixture
def domain(place: Place) -> Iterator[RangedServer]:
    with RangedServer({f"/{NAME}/config.json": FILES["config.json"]}) as server:
        place.command.environ["R2_CDN_DOMAIN"] = server.url
        yield server
