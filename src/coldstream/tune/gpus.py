"""Known GPUs: their memory and capability, as in gpuhunt's table, and how fast data is copied to them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from coldstream.errors import UsageError
from coldstream.machine.hardware import InstalledGpu

_COUNT_MAX = 64
# Bytes per second to one GPU over 16 lanes, by PCI Express generation: about 80 % of the nominal bandwidth.
_PCIE = {3: 12e9, 4: 25e9, 5: 50e9}


@dataclass(frozen=True, slots=True)
class GpuModel:
    """A GPU model, by SkyPilot's name for it; `pcie` is the generation of PCI Express, with so many `lanes`."""

    name: str
    memory_gib: int
    capability: tuple[int, int]
    pcie: int
    lanes: int = 16

    @property
    def copy_bytes_per_second(self) -> float:
        """From host memory."""
        return _PCIE[self.pcie] * self.lanes / 16


GPUS = (
    GpuModel("T4", 16, (7, 5), 3),
    GpuModel("V100", 16, (7, 0), 3),
    GpuModel("V100-32GB", 32, (7, 0), 3),
    GpuModel("A10", 24, (8, 6), 4),
    GpuModel("A10G", 24, (8, 6), 4),
    GpuModel("A40", 48, (8, 6), 4),
    GpuModel("A100", 40, (8, 0), 4),
    GpuModel("A100-80GB", 80, (8, 0), 4),
    GpuModel("L4", 24, (8, 9), 4, 8),
    GpuModel("L40", 48, (8, 9), 4),
    GpuModel("L40S", 48, (8, 9), 4),
    GpuModel("RTX3090", 24, (8, 6), 4),
    GpuModel("RTX4090", 24, (8, 9), 4),
    GpuModel("RTX5090", 32, (12, 0), 5),
    GpuModel("RTXA6000", 48, (8, 6), 4),
    GpuModel("RTX6000-Ada", 48, (8, 9), 4),
    GpuModel("RTXPRO6000", 96, (12, 0), 5),
    GpuModel("H100", 80, (9, 0), 5),
    GpuModel("H200", 141, (9, 0), 5),
    GpuModel("GH200", 96, (9, 0), 5),
    GpuModel("B200", 180, (10, 0), 5),
    GpuModel("B300", 270, (10, 0), 5),
)
# Parts of "NVIDIA A100-SXM4-80GB" and "NVIDIA H100 80GB HBM3" that are not the model's name.
_NOISE_WORDS = re.compile(r"NVIDIA|Tesla|GeForce|SXM\d?|PCIe?|HBM\w*|NVL|Generation|Graphics")
_ALIASES = {"a10040": "a100", "h10080": "h100", "v10016": "v100", "a6000": "rtxa6000", "rtx6000ada48": "rtx6000ada"}


@dataclass(frozen=True, slots=True)
class Gpus:
    """One or more GPUs of one model in one machine."""

    gpu: GpuModel
    count: int

    def __str__(self) -> str:
        return f"{self.gpu.name}:{self.count}"


def parse_gpus(text: str) -> Gpus:
    """Parses `A100:4`, or `L4` for a single one; UsageError if the GPU is unknown or the number is not valid."""
    name, colon, number = text.partition(":")
    if colon and not (number.isdecimal() and 1 <= int(number) <= _COUNT_MAX):
        raise UsageError(f"{number!r} is not a valid number of GPUs", hint=f"1 to {_COUNT_MAX}, like A100:4")
    return Gpus(find_gpu(name), int(number) if colon else 1)


def find_gpu(name: str) -> GpuModel:
    """The GPU with this name, whatever its case and dashes; UsageError if it is unknown."""
    known = {_plain(gpu.name): gpu for gpu in GPUS}
    plain = _plain(name)
    if gpu := known.get(_ALIASES.get(plain, plain)):
        return gpu
    near = difflib.get_close_matches(plain, known, n=1)
    hint = f"did you mean {known[near[0]].name}?" if near else f"known: {', '.join(gpu.name for gpu in GPUS)}"
    raise UsageError(f"{name[:40]!r} is not a known GPU", hint=hint)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]|gb$", "", name.lower())


def detect_gpus(cards: Sequence[InstalledGpu]) -> Gpus | None:
    """A machine's GPUs; None if it has none, unknown ones, or different models."""
    if len({card.name for card in cards}) != 1:
        return None
    words = _NOISE_WORDS.sub(" ", cards[0].name).replace("-", " ").split()
    # The name with its memory first: an A100 has 40 or 80 GB.
    for name in ("-".join(words), "".join(words[:1])):
        with suppress(UsageError):
            return Gpus(find_gpu(name), len(cards))
    return None
