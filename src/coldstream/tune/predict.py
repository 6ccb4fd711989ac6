"""Predicts how long a load takes: the slowest of the stages that every byte passes decides."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coldstream.errors import UsageError
from coldstream.machine import hardware
from coldstream.units import GIB, format_rate

if TYPE_CHECKING:
    from coldstream.tune.connection_curve import Curve

# By the names that SkyPilot 0.14 and dstack 0.22 use.
CLOUDS = (
    *("amddevcloud", "aws", "azure", "cloudrift", "crusoe", "cudo", "datacrunch", "daytona", "digitalocean", "do"),
    *("dstack", "fluidstack", "gcp", "hotaisle", "hyperbolic", "ibm", "jarvislabs", "kubernetes", "lambda", "lium"),
    *("mithril", "nebius", "oci", "paperspace", "primeintellect", "remote", "runpod", "scp", "seeweb", "shadeform"),
    *("slurm", "ssh", "tensordock", "vast", "vastai", "verda", "vsphere", "vultr", "yotta"),
)
# One connection to R2: 18 to 70 MB/s are reported, most of them near this.
CONNECTION_BYTES_PER_SECOND = 30e6
# CPU seconds per GiB received over TLS and verified (docs/benchmarks.md, two cores).
_CPU_SECONDS_PER_GIB = {"coldstream": 1.3, "runai": 1.6}
# Manifest, presigned URLs and handshakes before the first byte, and the end after the last one.
SETUP_SECONDS = 0.5
# AWS caps traffic to other networks, such as R2: 5 Gbit/s for instances below 32 cores, half the link for others.
_AWS_CORES = 32
_AWS_SMALL_BYTES_PER_SECOND = 5e9 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPath:
    """The network path from the bucket to a machine with so many cores. None means unknown."""

    link_bytes_per_second: float | None = None
    connection_bytes_per_second: float = CONNECTION_BYTES_PER_SECOND
    cores: int | None = None
    cloud: str | None = None
    setup_seconds: float = SETUP_SECONDS  # before the first and after the last byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted load, until all weights are on the GPUs."""

    seconds: float
    limit: str  # the bottleneck: "connections", "link", "cloud", "cpu" or "pcie"
    rates: tuple[tuple[str, float], ...]  # the throughput of each known stage, in bytes of the model per second

    @property
    def limited_by(self) -> str:
        return _SENTENCES[self.limit].format(rate=format_rate(dict(self.rates)[self.limit], 1))


_SENTENCES = {
    "connections": "bottleneck: the connections ({rate} together)",
    "link": "bottleneck: the machine's network ({rate})",
    "cloud": "bottleneck: the cloud (AWS caps traffic from other networks at {rate})",
    "cpu": "bottleneck: TLS on the CPU ({rate})",
    "pcie": "bottleneck: the copy to the GPUs ({rate})",
}


def predict(
    size: int,
    way: NetworkPath,
    *,
    connections: int,
    loader: str = "coldstream",
    crossings: int = 1,
    copies_bytes_per_second: float | None = None,
) -> Prediction:
    """Predicts the load of a model of `size` bytes, by "coldstream" or "runai", with the connections of all ranks.

    `crossings` is how often each byte crosses the network: once per rank if every rank reads the whole model. The copy
    to all GPUs together is None without GPUs.
    """
    rates = {"connections": connections * way.connection_bytes_per_second / crossings}
    if way.link_bytes_per_second is not None:
        rates["link"] = way.link_bytes_per_second / crossings
    if way.cloud == "aws" and way.cores is not None and way.cores < _AWS_CORES:
        rates["cloud"] = _AWS_SMALL_BYTES_PER_SECOND / crossings
    elif way.cloud == "aws" and way.cores is not None and way.link_bytes_per_second is not None:
        rates["cloud"] = way.link_bytes_per_second / 2 / crossings
    if way.cores is not None:
        rates["cpu"] = way.cores * GIB / _CPU_SECONDS_PER_GIB[loader] / crossings
    if copies_bytes_per_second is not None:
        rates["pcie"] = copies_bytes_per_second
    limit = min(rates, key=lambda stage: rates[stage])
    return Prediction(seconds=way.setup_seconds + size / rates[limit], limit=limit, rates=tuple(rates.items()))


def parse_cloud(text: str) -> str:
    """Parses a cloud with an optional region, `aws` or `gcp/us-central1`, in any case; UsageError if unknown."""
    name, slash, place = text.strip().lower().partition("/")
    if name not in CLOUDS:
        near = difflib.get_close_matches(name, CLOUDS, n=1)
        hint = f"did you mean {near[0]}{slash}{place}?" if near else f"known: {', '.join(CLOUDS)}"
        raise UsageError(f"{name[:40]!r} is not a known cloud", hint=hint)
    return f"{name}{slash}{place}"


def path_to_bucket(way: NetworkPath, curve: Curve | None) -> NetworkPath:
    """The network path from the bucket to this machine: as measured, or else as the user specified it."""
    if curve is not None:
        return replace(way, connection_bytes_per_second=curve.each, link_bytes_per_second=curve.most, cloud=None)
    link = way.link_bytes_per_second or hardware.link_bytes_per_second()
    return replace(way, link_bytes_per_second=link, cores=way.cores or hardware.cores())
