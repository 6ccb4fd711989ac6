from __future__ import annotations

import re

import gpuhunt
import pytest

from coldstream.errors import UsageError
from coldstream.machine import hardware
from coldstream.tune.gpus import GPUS, GpuModel, Gpus, detect_gpus, find_gpu, parse_gpus


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_the_table_agrees_with_gpuhunt(gpu: GpuModel) -> None:
    known = {(re.sub(r"[^a-z0-9]", "", card.name.lower()), card.memory): card for card in gpuhunt.KNOWN_NVIDIA_GPUS}
    plain = re.sub(r"-\d+gb$|-", "", gpu.name.lower())
    card = known.get((plain, gpu.memory_gib)) or known.get((plain.replace("rtxa", "a"), gpu.memory_gib))
    assert card is not None, sorted(known)
    assert tuple(card.compute_capability) == gpu.capability


def test_names_as_people_write_them() -> None:
    assert parse_gpus("A100:4") == Gpus(find_gpu("A100"), 4)
    assert parse_gpus("a100-80gb").gpu.memory_gib == 80
    assert find_gpu("A100-40GB") is find_gpu("A100")
    assert find_gpu("H100-80GB").name == "H100"
    assert str(parse_gpus("L4")) == "L4:1"


@pytest.mark.parametrize("text", ["L5", "", "A100:0", "A100:", "A100:-1", "A100:x", "A100:1000", ":4"])
def test_what_is_no_gpu(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gpus(text)


def test_what_is_meant_is_guessed() -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu("A100-80G")
    assert caught.value.hint is not None
    assert "A100-80GB" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("Something else", None),
    ],
)
def test_what_the_driver_calls_them(name: str, found: str | None) -> None:
    cards = [hardware.InstalledGpu(name=name, capability="8.0", driver="570")] * 2
    here = detect_gpus(cards)
    assert (here and here.gpu.name) == found
    assert here is None or here.count == 2


def test_several_kinds_are_nothing_to_advise_for() -> None:
    cards = [hardware.InstalledGpu(name=name, capability="8.0", driver="1") for name in ("NVIDIA L4", "NVIDIA T4")]
    assert detect_gpus(cards) is None
    assert detect_gpus([]) is None
