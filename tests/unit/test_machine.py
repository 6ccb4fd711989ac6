from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import coldstream
from coldstream import machine


def test_there_is_some_of_everything() -> None:
    assert machine.cores() >= 1
    assert machine.available_bytes() > 1 << 20
    speed = machine.link_bytes_per_second()
    assert speed is None or speed > 0


def test_a_process_began_before_its_first_line() -> None:
    before = time.monotonic()
    program = (
        "import time; first = time.monotonic(); from coldstream import machine; print(machine.process_began(), first)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    began, first = map(float, out.split())
    # The kernel counts in hundredths of a second.
    assert before - 0.02 <= began < first


@pytest.mark.parametrize("stat", ["", "nonsense", "7 (a) b) S " + "0 " * 49, "7 (python) S 1 " + "9" * 400])
def test_of_a_process_that_was_a_shell_before_or_nobody_knows(stat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: stat)
    assert machine.process_began() == coldstream.IMPORTED


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


def test_what_nvidia_says() -> None:
    said = "NVIDIA H100 80GB HBM3, 9.0, 570.86.15\nNVIDIA H100 80GB HBM3, 9.0, 570.86.15\n"
    found = machine.parse_nvidia(said)
    assert len(found) == 2
    assert found[0] == machine.Gpu(name="NVIDIA H100 80GB HBM3", capability="9.0", driver="570.86.15")
    assert machine.parse_nvidia("No devices were found\n") == ()


def test_what_the_kernel_says_of_rocm(tmp_path: Path) -> None:
    for node, version in (("0", 0), ("1", 90402), ("2", 110000)):
        (tmp_path / node).mkdir()
        (tmp_path / node / "properties").write_text(f"simd_count 304\ngfx_target_version {version}\n")
    assert [card.capability for card in machine._rocm(tmp_path, "6.1")] == ["gfx942", "gfx1100"]


def test_a_driver_that_fails_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    machine.gpus.cache_clear()
    assert machine.gpus() == machine._rocm(Path("/sys/class/kfd/kfd/topology/nodes"), "")
    machine.gpus.cache_clear()


def test_the_processor_s_instructions_have_one_name() -> None:
    assert machine.instruction_sets() == machine.instruction_sets()
    assert machine.processor()
