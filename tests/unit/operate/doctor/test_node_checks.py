"""The machine's checks, each with a machine that lacks just that."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from coldstream.machine import hardware, limits
from coldstream.operate.doctor import node_checks
from coldstream.operate.doctor.case import Case
from coldstream.tune.model_shape import Model
from tests.checkpoints import sharded_checkpoint
from tests.servers.fake_vllm import fake_vllm
from tests.unit.operate.doctor.cases import case_of, install, looked, write_script

GB = 10**9


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a GPU, with a local disk."""
    (tmp_path / "mounts").write_text("/dev/root / ext4 rw 0 0\n")
    monkeypatch.setattr(node_checks, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(node_checks, "_devices", lambda: False)
    monkeypatch.setattr(limits, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(limits, "_MOUNT", tmp_path / "cgroup")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    hardware.gpus.cache_clear()
    yield
    hardware.gpus.cache_clear()


def with_model(tmp_path: Path, **values: str) -> Case:
    """A case with a model in a folder."""
    folder = tmp_path / "store/org/m"
    folder.mkdir(parents=True)
    for path, content in sharded_checkpoint(shards=1, layers=1, rows=64, columns=64).items():
        (folder / path).write_bytes(content)
    return case_of(tmp_path, "org/m", **values)


def test_cache_folder(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    check = looked(case, "cache folder")
    assert check.state == "ok"
    assert "not created yet, on ext4" in check.detail
    root = tmp_path / "cache"
    root.mkdir(0o700)
    assert "private to this user" in looked(case, "cache folder").detail
    root.chmod(0o777)
    check = looked(case, "cache folder")
    assert check.state == "ok"
    assert f"{root}/coldstream-{os.geteuid()}, not created yet" in check.detail, "a folder of this user's own"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_cache_folder_of_another_user(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(0o777)
    theirs = root / f"coldstream-{os.geteuid()}"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    case = case_of(tmp_path)
    assert looked(case, "cache folder", "disk").detail == "skipped: cache folder failed"
    check = case.checks["cache folder"]
    assert check.state == "fail"
    assert "belongs to user 12345" in check.detail
    assert "COLDSTREAM_CACHE_DIR" in (check.hint or "")


def test_a_cache_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    assert "not a directory" in looked(case_of(tmp_path), "cache folder").detail


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    check = looked(case_of(tmp_path), "cache folder")
    assert check.state == "fail"
    assert f"{tmp_path} is not writable" in check.detail


@pytest.mark.parametrize(("kind", "says"), [("nfs4", "a network file system"), ("tmpfs", "which is in memory")])
def test_a_cache_folder_on_the_wrong_disk(tmp_path: Path, kind: str, says: str) -> None:
    point = str(tmp_path).replace(" ", "\\040")
    (tmp_path / "mounts").write_text(f"/dev/root / ext4 rw 0 0\nserver:/x {point} {kind} rw 0 0\nx /proc proc rw 0 0\n")
    check = looked(case_of(tmp_path), "cache folder")
    assert check.state == "warn"
    assert says in check.detail


def test_a_system_without_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "_MOUNTS", tmp_path / "none")
    assert looked(case_of(tmp_path), "cache folder").state == "ok"


def small_disk(monkeypatch: pytest.MonkeyPatch, *, size: int, free: int) -> None:
    found = SimpleNamespace(f_blocks=size // 4096, f_frsize=4096, f_bavail=free // 4096)
    monkeypatch.setattr(os, "statvfs", lambda _: found)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_disk(monkeypatch, size=100 * GB, free=GB // 2)
    check = looked(case_of(tmp_path), "disk")
    assert check.state == "fail"
    assert "500 MB free" in check.detail
    assert "coldstream cache prune" in (check.hint or "")


def test_a_model_without_room_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_disk(monkeypatch, size=100 * GB, free=50 * GB)
    case = with_model(tmp_path)
    assert "50.0 GB free; the cache may use 40.0 GB; this model needs" in looked(case, "disk").detail
    check = looked(case_of(tmp_path, "org/m", COLDSTREAM_CACHE_LIMIT="1kB"), "disk")
    assert check.state == "warn"
    assert "its starts will never be warm" in check.detail


def test_memory_in_a_container(tmp_path: Path) -> None:
    group = tmp_path / "cgroup"
    group.mkdir()
    (group / "memory.max").write_text("100000000\n")
    (group / "memory.current").write_text("1000\n")
    check = looked(case_of(tmp_path), "memory")
    assert check.state == "fail"
    assert check.detail == ("100 MB available, limited by the control group; the buffer of a load needs 268 MB")
    assert check.hint == "give the container more memory"
    (group / "memory.max").write_text("max\n")
    assert looked(case_of(tmp_path), "memory").state == "ok"


def test_memory_for_vllm_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = with_model(tmp_path)
    case.vllm = str(fake_vllm(tmp_path / "env"))
    size = case.checkpoint.bytes
    monkeypatch.setattr(hardware, "available_bytes", lambda: size)
    monkeypatch.setattr(hardware, "left_in_group", lambda: None)
    check = looked(case, "memory")
    assert check.state == "fail"
    assert "vLLM on the CPU, which holds the model" in check.detail
    assert check.hint == "use a machine with more memory, or free some"
    monkeypatch.setattr(hardware, "available_bytes", lambda: size + (256 << 20))
    monkeypatch.setattr(hardware, "node_memory", lambda: (size, size))
    assert looked(case, "memory").state == "ok"
    monkeypatch.setattr(hardware, "node_memory", lambda: (size, size * 9 // 10))
    check = looked(case, "memory")
    assert check.state == "warn", "vLLM takes 92% of all"
    assert "vLLM will not start: it needs" in check.detail
    assert "VLLM_CPU_KVCACHE_SPACE" in (check.hint or "")


def test_locked_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, hard))
    try:
        check = looked(case_of(tmp_path), "locked memory")
        assert (check.state, check.detail) == ("ok", "65.5 kB; it only matters with a GPU")
        nvidia(tmp_path, "echo 'NVIDIA H100 80GB HBM3, 9.0, 570.86.15'")
        hardware.gpus.cache_clear()
        check = looked(case_of(tmp_path), "locked memory")
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    assert check.state == "warn"
    assert "65.5 kB may be locked, the buffer has 1.07 GB" in check.detail
    assert "ulimit -l unlimited" in (check.hint or "")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert looked(case_of(tmp_path), "locked memory").detail == "no limit"


def test_open_files(tmp_path: Path) -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2); "
        "from coldstream.cli import main; main(['doctor', '--only', 'open-files', '--store', sys.argv[2]])"
    )

    def run(limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(limit), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = run(128)
    assert done.returncode == 1, done.stderr
    assert "fail  open files" in done.stdout
    assert "hard limit 128, soft limit 128: enough for 32 connections, 64 need 192" in done.stdout
    assert "ulimit -Hn 4096" in done.stdout
    assert run(192).returncode == 0


def test_no_limit_of_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert looked(case_of(tmp_path), "open files").state == "ok"


def nvidia(tmp_path: Path, lines: str) -> None:
    write_script(tmp_path / "bin/nvidia-smi", lines)


def test_no_gpu_is_no_fault(tmp_path: Path) -> None:
    assert looked(case_of(tmp_path), "gpu").state == "ok"


def test_a_driver_that_does_not_answer(tmp_path: Path) -> None:
    nvidia(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9")
    check = looked(case_of(tmp_path), "gpu")
    assert check.state == "fail"
    assert "nvidia-smi" in check.detail


def test_a_device_without_its_driver_s_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "_devices", lambda: True)
    assert looked(case_of(tmp_path), "gpu").state == "fail"


def test_a_driver_that_is_too_old(tmp_path: Path) -> None:
    nvidia(tmp_path, "echo 'NVIDIA L4, 8.9, 520.61.05'")
    vllm = fake_vllm(tmp_path / "env", version="0.32.0")
    check = looked(case_of(tmp_path, vllm=vllm), "gpu")
    assert check.state == "warn"  # its torch says +cpu
    assert "is a CPU build" in check.detail
    site = tmp_path / "env/lib/python3.11/site-packages"
    (site / "torch-2.13.0+cpu.dist-info").rename(site / "torch-2.13.0.dist-info")
    assert looked(case_of(tmp_path, vllm=vllm), "gpu").state == "ok"
    install(site, "nvidia_cuda_runtime_cu12", "12.8.90")
    check = looked(case_of(tmp_path, vllm=vllm), "gpu")
    assert check.state == "fail"
    assert "the torch of vLLM is built for CUDA 12, which needs driver 525 or newer" in check.detail
    nvidia(tmp_path, "echo 'NVIDIA L4, 8.9, 525.60.13'")
    hardware.gpus.cache_clear()
    check = looked(case_of(tmp_path, vllm=vllm), "gpu")
    assert (check.state, check.detail) == ("ok", "1 x NVIDIA L4, capability 8.9, driver 525.60.13")
    nvidia(tmp_path, "case $1 in *memory*) echo '12000, 11000';; *) echo 'NVIDIA L4, 8.9, 525.60.13';; esac")
    check = looked(case_of(tmp_path, vllm=vllm), "gpu")
    assert check.state == "fail"
    assert "vLLM will not start: it needs 22.2 GB of GPU 0 (92%), but only 11.5 GB is free" in check.detail
    assert "--gpu-memory-utilization" in (check.hint or "")


def test_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia(tmp_path, "echo 'NVIDIA L4, 8.9, 570.1'")
    case = with_model(tmp_path)
    assert looked(case, "gpu").state == "ok"
    large = Model(name="org/m", bytes=140 * GB, parameters=70 * GB, dtype="BF16", heads=64)
    monkeypatch.setattr(node_checks, "read_model", lambda *_: large)
    check = looked(case, "gpu")
    assert check.state == "fail"
    assert "140 GB of weights do not fit on 1 x L4" in check.detail
    assert check.hint == "see: coldstream tune org/m"
