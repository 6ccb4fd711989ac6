from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coldstream.machine import hardware, limits
from coldstream.package import IMPORTED_AT


def test_there_is_some_of_everything() -> None:
    assert hardware.cores() >= 1
    assert hardware.available_bytes() > 1 << 20
    speed = hardware.link_bytes_per_second()
    assert speed is None or speed > 0


def test_a_process_began_before_its_first_line() -> None:
    before = time.monotonic()
    # However slow this machine is: by default, a process that is two seconds older was a shell before.
    program = (
        "import time; first = time.monotonic(); from coldstream.machine import hardware;"
        "hardware._PYTHON_SECONDS = 600; print(hardware.process_began(), first)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    began, first = map(float, out.split())
    # The kernel counts in hundredths of a second.
    assert before - 0.02 <= began < first


@pytest.mark.parametrize("stat", ["", "nonsense", "7 (a) b) S " + "0 " * 49, "7 (python) S 1 " + "9" * 400])
def test_of_a_process_that_was_a_shell_before_or_nobody_knows(stat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "read_text", lambda path: stat)
    assert hardware.process_began() == IMPORTED_AT


def groups(folder: Path, monkeypatch: pytest.MonkeyPatch, *, cgroup: str, mountinfo: str) -> None:
    """A /proc/self that says so; {} stands for the folder."""
    monkeypatch.setattr(limits, "_PROC", folder)
    (folder / "cgroup").write_text(cgroup)
    (folder / "mountinfo").write_text(mountinfo.replace("{}", str(folder)))


def limit(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


VERSION_2 = "31 23 0:28 / {}/fs rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
VERSION_1 = (
    "31 23 0:28 / {}/memory rw,relatime - cgroup cgroup rw,memory\n"
    "32 23 0:29 / {}/cpu\\040acct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)


def test_the_limits_of_every_control_group_around_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a unit of systemd has them, and a step of Slurm: the root has none, and not the innermost is the tightest."""
    place = "system.slice/slurmstepd.scope/job_7/step_0"
    groups(tmp_path, monkeypatch, cgroup=f"0::/{place}\n", mountinfo=VERSION_2)
    limit(tmp_path / "fs" / place, memory__max="max", memory__current=5, cpu__max="max 100000")
    assert hardware.left_in_group() is None
    cores = hardware.cores()
    job = (tmp_path / "fs" / place).parent
    limit(job, memory__max=1_000_000, memory__current=400_000, memory__stat="anon 5\ninactive_file 100000")
    assert hardware.left_in_group() == hardware.available_bytes() == 700_000
    limit(job, cpu__max="50000 100000")
    assert hardware.cores() == 1 <= cores
    limit(job.parent, memory__max="max", memory__high=500_000, memory__current=450_000)
    assert hardware.left_in_group() == 50_000


def test_the_first_version_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "/slurm/uid_0/job_7"
    groups(tmp_path, monkeypatch, cgroup=f"4:memory:{place}\n3:cpu,cpuacct:{place}\n0::/\n", mountinfo=VERSION_1)
    inner = tmp_path / f"memory{place}"
    limit(inner, memory__limit_in_bytes=0x7FFFFFFFFFFFF000, memory__usage_in_bytes=1000)
    assert hardware.left_in_group() is None, "the largest number is no limit"
    limit(inner, memory__limit_in_bytes=3000)
    assert hardware.left_in_group() == 2000
    limit(tmp_path / f"cpu acct{place}", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert hardware.cores() >= 1
    limit(tmp_path / "cpu acct/slurm", cpu__cfs_quota_us=100000, cpu__cfs_period_us=100000)
    assert hardware.cores() == 1


@pytest.mark.parametrize(("cgroup", "root"), [("0::/", "/"), ("0::/docker/abc", "/docker/abc"), ("0::/../..", "/")])
def test_in_a_container_the_top_is_its_own(
    cgroup: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups(tmp_path, monkeypatch, cgroup=f"{cgroup}\n", mountinfo=VERSION_2.replace(" / ", f" {root} ", 1))
    limit(tmp_path / "fs", memory__max=3000, memory__current=1000)
    assert hardware.left_in_group() == 2000


def test_without_proc_the_usual_place_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_PROC", tmp_path / "none")
    monkeypatch.setattr(limits, "_MOUNT", tmp_path)
    limit(tmp_path, memory__max=3000, memory__current=1000)
    assert hardware.left_in_group() == 2000


def test_what_nvidia_says() -> None:
    said = "NVIDIA H100 80GB HBM3, 9.0, 570.86.15\nNVIDIA H100 80GB HBM3, 9.0, 570.86.15\n"
    found = hardware.parse_nvidia(said)
    assert len(found) == 2
    assert found[0] == hardware.InstalledGpu(name="NVIDIA H100 80GB HBM3", capability="9.0", driver="570.86.15")
    assert hardware.parse_nvidia("No devices were found\n") == ()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("4, 81028\n512, 1024\n", ((81032 << 20, 81028 << 20), (1536 << 20, 1024 << 20))),
        ("[N/A], [N/A]\n", ()),
        ("No devices were found\n", ()),
    ],
)
def test_what_nvidia_says_of_memory(
    answer: str, found: tuple[tuple[int, int], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'.'\n{answer}.\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert hardware.gpu_memory() == found


def test_the_memory_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_PROC", tmp_path / "none")
    monkeypatch.setattr(limits, "_MOUNT", tmp_path)
    monkeypatch.setattr(hardware, "_NODES", tmp_path / "node")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {9, 5})
    whole = hardware.node_memory()
    assert whole is not None
    assert f"MemTotal: {whole[0] >> 10} kB" in " ".join(Path("/proc/meminfo").read_text().split())
    for index, (cpus, free) in enumerate((("0-3", 100), ("4,5-7\n", 200))):
        node = tmp_path / f"node/node{index}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(cpus)
        amounts = {"MemTotal": 1000, "MemFree": free, "Active(file)": 20, "Inactive(file)": 3, "SReclaimable": 4}
        lines = (f"Node {index} {name}: {amount} kB\n" for name, amount in amounts.items())
        (node / "meminfo").write_text("".join(lines))
    assert hardware.node_memory() == (1000 << 10, 227 << 10)
    limit(tmp_path, memory__max=3000, memory__current=1000)
    assert hardware.node_memory() == (3000, 2000)


def test_what_the_kernel_says_of_rocm(tmp_path: Path) -> None:
    for node, version in (("0", 0), ("1", 90402), ("2", 110000)):
        (tmp_path / node).mkdir()
        (tmp_path / node / "properties").write_text(f"simd_count 304\ngfx_target_version {version}\n")
    assert [card.capability for card in hardware._rocm(tmp_path, "6.1")] == ["gfx942", "gfx1100"]


def test_a_driver_that_fails_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    hardware.gpus.cache_clear()
    assert hardware.gpus() == hardware._rocm(Path("/sys/class/kfd/kfd/topology/nodes"), "")
    hardware.gpus.cache_clear()


def test_the_processor_s_instructions_have_one_name() -> None:
    assert hardware.instruction_sets() == hardware.instruction_sets()
    assert hardware.processor()
