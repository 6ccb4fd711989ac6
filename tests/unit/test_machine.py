from __future__ import annotations

from pathlib import Path

import pytest

from coldstream import machine


def test_there_is_some_of_everything() -> None:
    assert machine.cores() >= 1
    assert machine.available_bytes() > 1 << 20
    speed = machine.link_bytes_per_second()
    assert speed is None or speed > 0


def test_the_control_group_limits_memory_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert machine.available_bytes() == 700_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_bytes() > 700_000
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cores() >= 1


def test_the_first_version_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("3000\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("1000\n")
    assert machine.available_bytes() == 2000
