"""What is remembered of launches, and by whom it can be read."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from coldstream.errors import DiskError, IntegrityError, NotFoundError, UsageError
from coldstream.fleet.launches import Launch, Launches

ONE = Launch(
    name="m", kind="node", model="org/m", port=8000, began=1.5, keys="signed", ttl_seconds=86400, expires=86401.5
)


@pytest.fixture
def launches(tmp_path: Path) -> Launches:
    return Launches(tmp_path / "cache")


def test_kept_and_found(launches: Launches) -> None:
    assert list(launches.all()) == []
    assert not launches.folder.exists()
    other = msgspec.structs.replace(ONE, name="a", kind="job", port=None, job=7, expires=None)
    launches.keep(ONE)
    launches.keep(other)
    assert launches.find("m") == ONE
    assert list(launches.all()) == [other, ONE]
    changed = msgspec.structs.replace(ONE, expires=9.0)
    launches.keep(changed)
    assert launches.find("m") == changed


def test_only_the_user_reads_a_key(launches: Launches) -> None:
    before = os.umask(0)
    try:
        key = launches.make_api_key("m")
        launches.keep(ONE)
    finally:
        os.umask(before)
    assert launches.key_file("m").stat().st_mode & 0o777 == 0o600
    assert launches.folder.stat().st_mode & 0o077 == 0
    assert launches.api_key("m") == key
    assert launches.make_api_key("n") != key
    assert len(bytes.fromhex(key)) == 32
    assert key not in (launches.folder / "m.json").read_text()
    assert launches.api_key("other") is None


def test_a_launch_is_forgotten_with_all_that_belongs_to_it(launches: Launches) -> None:
    for name in ("m", "m2"):
        launches.keep(msgspec.structs.replace(ONE, name=name))
        launches.keep_file(name, "resources: {}")
        launches.make_api_key(name)
    launches.forget("m")
    launches.forget("m")
    assert sorted(os.listdir(launches.folder)) == ["m2.json", "m2.key", "m2.yaml"]
    with pytest.raises(NotFoundError, match="nothing was launched as m from this machine"):
        launches.find("m")


@pytest.mark.parametrize("name", ["../m", "M", "", "a/b", ".", "m.json", "a" * 41])
def test_what_is_no_name(launches: Launches, name: str) -> None:
    with pytest.raises(UsageError, match="is not a name of a launch"):
        launches.find(name)


GOOD = msgspec.json.encode(ONE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 60_000,
        b"\xff",
        GOOD[:-5],
        GOOD.replace(b'"m"', b'"other"'),
        GOOD.replace(b'"node"', b'"ship"'),
        GOOD.replace(b"8000", b'"8000"'),
        GOOD.replace(b'"port"', b'"door"'),
    ],
)
def test_a_damaged_record(launches: Launches, data: bytes) -> None:
    launches.keep(ONE)
    launches.keep(msgspec.structs.replace(ONE, name="n"))
    (launches.folder / "m.json").write_bytes(data)
    with pytest.raises((IntegrityError, DiskError), match=r"m\.json"):
        launches.find("m")
    assert [launch.name for launch in launches.all()] == ["n"]


def test_strange_files_are_passed_over(launches: Launches) -> None:
    launches.keep(ONE)
    for name in ("Strange.json", "m.json.1", "other.txt"):
        (launches.folder / name).write_bytes(GOOD)
    assert list(launches.all()) == [ONE]


def test_a_folder_that_others_write_to(launches: Launches, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(DiskError):
        launches.make_api_key("m")
    assert list((tmp_path / "cache").iterdir()) == []
