"""A small catalogue in SkyPilot's format (v8): SkyPilot downloads one if there is none, and keeps existing files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# SkyPilot asks EC2 for zones by their ids, which moto gives these.
ZONES = {"us-east-1": ("use1-az6", "use1-az1"), "us-west-2": ("usw2-az2", "usw2-az1")}
# An image that moto knows.
_IMAGE = "ami-785db401"


@dataclass(frozen=True)
class _Machine:
    name: str
    cores: int
    memory_gib: int
    price: float
    spot: float
    gpu: str = ""
    gpus: int = 0
    gpu_mib: int = 0

    @property
    def row(self) -> list[object]:
        """Its columns, up to where it is."""
        gpus = float(self.gpus) if self.gpus else ""
        return [self.name, self.gpu, gpus, float(self.cores), float(self.memory_gib), self._info, self.price, self.spot]

    @property
    def _info(self) -> str:
        if not self.gpu:
            return ""
        one = {
            "Name": self.gpu,
            "Manufacturer": "NVIDIA",
            "Count": self.gpus,
            "MemoryInfo": {"SizeInMiB": self.gpu_mib},
        }
        return repr({"Gpus": [one], "TotalGpuMemoryInMiB": self.gpus * self.gpu_mib})


_MACHINES = (
    _Machine("m6i.large", 2, 8, 0.096, 0.04),
    _Machine("m6i.xlarge", 4, 16, 0.192, 0.08),
    _Machine("m6i.2xlarge", 8, 32, 0.384, 0.16),
    _Machine("g6.xlarge", 4, 16, 0.8048, 0.30, "L4", 1, 22888),
    _Machine("g6.12xlarge", 48, 192, 4.6016, 1.80, "L4", 4, 22888),
    _Machine("g6e.xlarge", 4, 32, 1.861, 0.85, "L40S", 1, 45776),
    _Machine("p5.48xlarge", 192, 2048, 98.32, 40.1, "H100", 8, 81920),
)
_MEMORY_GIB = {"L4": 24, "L40S": 48, "H100": 80}
_QUOTAS = {"m": ("L-1216C47A", "L-34B43A08"), "g": ("L-DB2E81BA", "L-3819A6DF"), "p": ("L-417A185B", "L-C4BD4855")}


def write_catalogue(home: Path) -> None:
    """Puts one into a home: a few machines of AWS in two regions."""
    root = home / ".sky/catalogs/v8"
    _write(root / "common/accelerators.csv", ["AcceleratorName", "Clouds"], [[g, "['AWS']"] for g in _MEMORY_GIB])
    gpus = [[name, size, "NVIDIA"] for name, size in _MEMORY_GIB.items()]
    _write(root / "common/metadata.csv", ["GPU", "MemoryGB", "Manufacturer"], gpus)
    head = "InstanceType AcceleratorName AcceleratorCount vCPUs MemoryGiB GpuInfo Price SpotPrice Region"
    _write(
        root / "aws/vms.csv",
        [*head.split(), "AvailabilityZone", "Arch"],
        [[*m.row, region, zone, "x86_64"] for region, zones in ZONES.items() for zone in zones for m in _MACHINES],
    )
    tags = [f"skypilot:{kind}" for kind in ("custom-cpu-ubuntu", "custom-gpu-ubuntu", "custom-gpu-ubuntu-cuda13")]
    tags += ["skypilot:custom-cpu-ubuntu-2204", "skypilot:custom-gpu-ubuntu-2204", "skypilot:gpu-ubuntu-2004"]
    _write(
        root / "aws/images.csv",
        ["Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate", "BaseImageId"],
        [[tag, region, "ubuntu", "22.04", _IMAGE, "20251101", ""] for tag in tags for region in ZONES],
    )
    _write(
        root / "aws/instance_quota_mapping.csv",
        ["InstanceType", "OnDemandInstanceCode", "SpotInstanceCode"],
        [[m.name, *_QUOTAS[m.name[0]]] for m in _MACHINES],
    )


def _write(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
