"""Memory that vLLM would refuse to start with, by its own rule."""

from __future__ import annotations

import pytest

from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.memory_budget import memory_shortage
from coldstream.engines.vllm.program import Program
from coldstream.machine import hardware

CUDA = Program(path="/bin/vllm", version="0.32.0", compiled=True, packages={"vllm": "0.32.0", "torch": "2.13.0"})
CPU = Program(path="/bin/vllm", version="0.32.0+cpu", compiled=True, packages={"vllm": "0.32.0+cpu"})
GB = 10**9


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
