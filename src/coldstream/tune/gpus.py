"""GPUs: what fits into them, and how fast bytes get there. Pure.

Memory and compute capability are those of gpuhunt's table, with which the tests compare them. The copy to a GPU goes
through PCI Express: large copies from pinned memory reach about four fifths of its nominal speed.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from coldstream.errors import UsageError
from coldstream.units import GIB

_COUNT_MAX = 64
# Bytes a second to one GPU over 16 lanes, by generation; 8 lanes carry half of it.
_PCIE = {3: 12e9, 4: 25e9, 5: 50e9}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: As SkyPilot writes it.
        memory_gib: Nominal.
        capability: CUDA's.
        pcie: Its generation.
        lanes: Of PCI Express.
    """

    name: str
    memory_gib: int
    capability: tuple[int, int]
    pcie: int
    lanes: int = 16

    @property
    def memory_bytes(self) -> int:
        """Nominal."""
        return self.memory_gib * GIB

    @property
    def copy_bytes_per_second(self) -> float:
        """From this machine's memory."""
        return _PCIE[self.pcie] * self.lanes / 16


GPUS = (
    Gpu("T4", 16, (7, 5), 3),
    Gpu("V100", 16, (7, 0), 3),
    Gpu("V100-32GB", 32, (7, 0), 3),
    Gpu("A10", 24, (8, 6), 4),
    Gpu("A10G", 24, (8, 6), 4),
    Gpu("A40", 48, (8, 6), 4),
    Gpu("A100", 40, (8, 0), 4),
    Gpu("A100-80GB", 80, (8, 0), 4),
    Gpu("L4", 24, (8, 9), 4, 8),
    Gpu("L40", 48, (8, 9), 4),
    Gpu("L40S", 48, (8, 9), 4),
    Gpu("RTX3090", 24, (8, 6), 4),
    Gpu("RTX4090", 24, (8, 9), 4),
    Gpu("RTX5090", 32, (12, 0), 5),
    Gpu("RTXA6000", 48, (8, 6), 4),
    Gpu("RTX6000-Ada", 48, (8, 9), 4),
    Gpu("RTXPRO6000", 96, (12, 0), 5),
    Gpu("H100", 80, (9, 0), 5),
    Gpu("H200", 141, (9, 0), 5),
    Gpu("GH200", 96, (9, 0), 5),
    Gpu("B200", 180, (10, 0), 5),
    Gpu("B300", 270, (10, 0), 5),
)
# What people write for them.
_ALIASES = {"a10040": "a100", "h10080": "h100", "v10016": "v100", "a6000": "rtxa6000", "rtx6000ada48": "rtx6000ada"}


@dataclass(frozen=True, slots=True)
class Gpus:
    """Some GPUs of one kind, in one machine."""

    gpu: Gpu
    count: int

    def __str__(self) -> str:
        return f"{self.gpu.name}:{self.count}"


def parse_gpus(text: str) -> Gpus:
    """Reads `A100:4`, or `L4`, which is one.

    Raises:
        UsageError: There is no such GPU, or so many are in no machine.
    """
    name, colon, number = text.partition(":")
    if colon and not (number.isdecimal() and 1 <= int(number) <= _COUNT_MAX):
        raise UsageError(f"{number!r} is no number of GPUs", hint=f"1 to {_COUNT_MAX}, like A100:4")
    return Gpus(find_gpu(name), int(number) if colon else 1)


def find_gpu(name: str) -> Gpu:
    """The GPU of this name; case and dashes do not matter.

    Raises:
        UsageError: There is none in the table.
    """
    known = {_plain(gpu.name): gpu for gpu in GPUS}
    plain = _plain(name)
    if gpu := known.get(_ALIASES.get(plain, plain)):
        return gpu
    near = difflib.get_close_matches(plain, known, n=1)
    hint = f"did you mean {known[near[0]].name}?" if near else f"known: {', '.join(gpu.name for gpu in GPUS)}"
    raise UsageError(f"{name[:40]!r} is no GPU that is known here", hint=hint)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]|gb$", "", name.lower())
