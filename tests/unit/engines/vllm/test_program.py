"""Which vLLM is installed, told by the names of files, and memory that it would refuse to start with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.program import Program, memory_shortage
from coldstream.errors import NotFoundError
from coldstream.machine import hardware
from coldstream.runtime import environment
from tests.runtimes import Venv
from tests.servers.fake_vllm import fake_vllm

CUDA = Program(path="/bin/vllm", version="0.32.0", compiled=True, packages={"vllm": "0.32.0", "torch": "2.13.0"})
CPU = Program(path="/bin/vllm", version="0.32.0+cpu", compiled=True, packages={"vllm": "0.32.0+cpu"})
GB = 10**9


def test_its_packages_and_its_python(tmp_path: Path) -> None:
    path = fake_vllm(tmp_path / "env")
    program = Program.find(str(path))
    assert program.version == "0.32.0+cpu"
    assert program.packages["torch"] == "2.13.0+cpu"
    assert program.python == "python3.11"
    assert program.site == str(tmp_path / "env/lib/python3.11/site-packages")
    assert program.is_cpu_build
    assert program.compiled
    assert program.launcher == (str(path),)


def test_with_coldstream_beside_it_starts_by_its_launcher(tmp_path: Path) -> None:
    path = fake_vllm(tmp_path / "env")
    (tmp_path / "env/lib/python3.11/site-packages/coldstream-0.1.0.dist-info").mkdir()
    program = Program.find(str(path))
    assert program.interpreter is not None
    assert program.launcher == (program.interpreter, "-P", "-m", "coldstream.engines.vllm.entry")
    # Older Pythons know no -P, and would look for modules in the working directory first.
    os.rename(tmp_path / "env/lib/python3.11", tmp_path / "env/lib/python3.10")
    assert Program.find(str(path)).launcher == (str(path),)


@pytest.mark.parametrize(
    ("start", "python"),
    [
        ("#!/opt/python3.11\n", "/opt/python3.11"),
        ("#!/bin/sh\n'''exec' /long/python3 \"$0\" \"$@\"\n' '''\n", "/long/python3"),
        ("#!/bin/sh\n'''exec' \"/long/python\" \"$0\" \"$@\"\n' '''\n", "/long/python"),
        ('#!/bin/sh\n\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")"/\'python3\' "$0" "$@"\n', "BESIDE/python3"),
        (environment._SCRIPT_START.decode(), "BESIDE/python3"),
        ("#!/bin/sh\nexec /opt/python3 -m vllm\n", None),
        ('#!/bin/sh\nexec "$(dirname "$0")"/python3 -m vllm\n', None),
        ("#!/usr/bin/env python3\n", None),
    ],
)
def test_the_python_that_runs_it(start: str, python: str | None, tmp_path: Path) -> None:
    """pip and uv begin scripts for `sh` if an interpreter's path is too long, and a runtime all of its scripts."""
    program = fake_vllm(tmp_path / "env")
    program.write_text(f"{start}import vllm\n")
    (tmp_path / "linked").symlink_to(program)
    for path in (program, tmp_path / "linked"):
        assert Program.find(str(path)).interpreter == (python and python.replace("BESIDE", str(program.parent)))


def test_the_vllm_of_a_runtime_starts_by_its_launcher(tmp_path: Path) -> None:
    venv = Venv(tmp_path / "venv")
    venv.script("vllm", "#!PYTHON\n")
    out = venv.relocated(tmp_path / "out")
    program = Program.find(str(out / "bin/vllm"))
    assert program.launcher == (f"{out}/bin/python3", "-P", "-m", "coldstream.engines.vllm.entry")
    assert program.site == str(out / f"lib/{program.python}/site-packages")


def test_debian_s_python_has_another_folder(tmp_path: Path) -> None:
    path = fake_vllm(tmp_path / "env")
    os.rename(tmp_path / "env/lib/python3.11/site-packages", tmp_path / "env/lib/python3.11/dist-packages")
    assert Program.find(str(path)).version == "0.32.0+cpu"


def test_a_wrapper_tells_nothing(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\nexec /opt/vllm\n")
    program.chmod(0o755)
    found = Program.find(str(program))
    assert (found.version, found.interpreter, dict(found.packages)) == (None, None, {})
    assert found.launcher == (str(program),)
    with pytest.raises(NotFoundError, match="no program"):
        Program.find(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("arguments", "environ", "place"),
    [
        ((), {}, None),
        (("-tp", "2"), {}, "92.0 GB of GPU 1 (92%), but only 50.0 GB is free"),
        (("-tp", "2", "--gpu-memory-utilization", "0.5"), {}, None),
        (("-tp", "2", "--gpu_memory_utilization=0.6"), {}, "60.0 GB of GPU 1 (60%), but only 50.0 GB is free"),
        (("-tp", "2", "--device-memory-utilization", "0.6"), {}, "60.0 GB of GPU 1 (60%), but only 50.0 GB is free"),
        ((), {"CUDA_VISIBLE_DEVICES": "1,0"}, "92.0 GB of GPU 1 (92%), but only 50.0 GB is free"),
        ((), {"CUDA_VISIBLE_DEVICES": "0"}, None),
        ((), {"CUDA_VISIBLE_DEVICES": "GPU-5ebe9f43"}, None),
        ((), {"CUDA_VISIBLE_DEVICES": "7"}, None),
    ],
)
def test_a_gpu_that_others_use(
    arguments: tuple[str, ...], environ: dict[str, str], place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpu_memory", lambda: ((100 * GB, 92 * GB), (100 * GB, 50 * GB)))
    shortage = memory_shortage(CUDA, Flags(arguments), environ)
    assert shortage is None if place is None else shortage and place in shortage[0]


def test_earlier_versions_ask_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpu_memory", lambda: ((100 * GB, 91 * GB),))
    assert memory_shortage(CUDA, Flags(()), {}) is not None
    earlier = Program(path="/bin/vllm", version="0.28.0", compiled=True)
    assert memory_shortage(earlier, Flags(()), {}) is None


def test_the_cpu_build_asks_for_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "node_memory", lambda: (100 * GB, 91 * GB))
    assert memory_shortage(CPU, Flags(()), {}) == (
        "vLLM will not start: it needs 92.0 GB of the memory node (92%), but only 91.0 GB is free",
        "set VLLM_CPU_KVCACHE_SPACE to the size of the KV cache in GiB",
    )
    assert memory_shortage(CPU, Flags(()), {"VLLM_CPU_KVCACHE_SPACE": "4"}) is None
    assert memory_shortage(CPU, Flags(("--kv-cache-memory-bytes", "4G")), {}) is None
    assert memory_shortage(CPU, Flags(("--gpu-memory-utilization", "0.9")), {}) is None
    monkeypatch.setattr(hardware, "node_memory", lambda: None)
    assert memory_shortage(CPU, Flags(()), {}) is None


def test_versions() -> None:
    def warning(version: str) -> str | None:
        return Program(path="/bin/vllm", version=version, compiled=True).version_warning()

    assert warning("0.32.0+cpu") is None
    assert warning("0.28.1") is None
    assert warning("0.33.0") is None
    for version in ("0.27.0", "1.0", "dev"):
        assert "0.28 to 0.33" in (warning(version) or "")
