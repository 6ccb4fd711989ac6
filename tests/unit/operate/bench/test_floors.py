"""The floors of a contestant."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from coldstream.operate.bench import floors
from coldstream.operate.bench.contestant import Contestant
from coldstream.operate.bench.floors import Floors


def test_floors_of_a_contestant() -> None:
    measured = Floors(link=1e9, bucket=5e8, connection=1e8, core=4e8, cores=2, disk=3e9, pcie=2e10, tls=True)
    bucket_reader = Contestant(name="runai", label="", command=(), environ={}, connections=8)
    assert measured.of(bucket_reader, from_disk=True) == {
        "pcie": 2e10,
        "link": 1e9,
        "bucket": 5e8,
        "connections": 8e8,
        "tls": 8e8,
    }
    warm = dataclasses.replace(bucket_reader, connections=None)
    assert measured.of(warm, from_disk=True) == {"pcie": 2e10, "disk": 3e9}
    assert measured.of(warm, from_disk=False) == {"pcie": 2e10}
    assert Floors().lines() == []


@pytest.mark.skipif(sys.platform != "linux", reason="posix_fadvise")
def test_files_are_dropped_where_the_whole_page_cache_may_not_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x" * (1 << 20))
    monkeypatch.setattr(floors, "_DROP_CACHES", tmp_path / "no-such-file")
    assert floors.drop_page_cache([tmp_path]) == "files"
    assert floors.drop_page_cache([tmp_path / "empty"]) == "nothing"
    monkeypatch.setattr(floors, "_DROP_CACHES", tmp_path / "drop")
    (tmp_path / "drop").touch()
    assert floors.drop_page_cache([tmp_path]) == "everything"
    assert (tmp_path / "drop").read_text() == "1\n"
    assert "memory" in floors.page_cache_text("nothing", requested=True)
    assert "left alone" in floors.page_cache_text("nothing", requested=False)
