"""How long a load takes, and what sets that: the slowest of the stages that every byte goes through. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from coldstream.units import GIB, format_rate

# What one connection to R2 gives: 18 to 70 MB/s were reported, most of them near this.
CONNECTION_BYTES_PER_SECOND = 30e6
# CPU seconds for a GiB received over TLS, verified: 1.3 by our engine, 1.6 by Run:ai's (docs/benchmarks.md, two cores).
_CPU_SECONDS_PER_GIB = {"coldstream": 1.3, "runai": 1.6}
# Before the first byte: manifest, links, handshakes; and after the last one.
SETUP_SECONDS = 0.5
# AWS: instances with fewer cores reach other networks, R2 among them, with 5 Gbit/s in all, others with half of theirs.
_AWS_CORES = 32
_AWS_SMALL_BYTES_PER_SECOND = 5e9 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way from the bucket to a machine.

    Attributes:
        link_bytes_per_second: Of the machine's network; None when it is not known.
        connection_bytes_per_second: That one connection gets.
        cores: That the machine has; None when it is not known.
        cloud: "aws", "gcp", …; None when it is not known.
        setup_seconds: Before the first byte and after the last one.
    """

    link_bytes_per_second: float | None = None
    connection_bytes_per_second: float = CONNECTION_BYTES_PER_SECOND
    cores: int | None = None
    cloud: str | None = None
    setup_seconds: float = SETUP_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a load will take.

    Attributes:
        seconds: Until all weights are on the GPUs.
        limit: The stage that sets it: "connections", "link", "cloud", "cpu" or "pcie".
        rates: Each stage that is known, and what it lets through, in bytes of the model a second.
    """

    seconds: float
    limit: str
    rates: tuple[tuple[str, float], ...]

    @property
    def limited_by(self) -> str:
        """The limit as a sentence."""
        return _SENTENCES[self.limit].format(rate=format_rate(dict(self.rates)[self.limit], 1))


_SENTENCES = {
    "connections": "limited by the connections: together they give {rate}",
    "link": "limited by the machine's network: {rate}",
    "cloud": "limited by the cloud: AWS lets {rate} through to other networks",
    "cpu": "limited by TLS on the CPU: {rate}",
    "pcie": "limited by the copy to the GPUs: {rate}",
}


def predict(
    size: int,
    way: Way,
    *,
    connections: int,
    loader: str = "coldstream",
    crossings: int = 1,
    copies_bytes_per_second: float | None = None,
) -> Prediction:
    """Predicts a load.

    Args:
        size: Bytes of the model.
        way: From the bucket.
        connections: At most, in all.
        loader: "coldstream" or "runai".
        crossings: How often each byte crosses the network: once for each rank when ranks read for themselves.
        copies_bytes_per_second: To all GPUs together; None without.
    """
    rates = {"connections": connections * way.connection_bytes_per_second / crossings}
    if way.link_bytes_per_second is not None:
        rates["link"] = way.link_bytes_per_second / crossings
    cap = cloud_bytes_per_second(way)
    if cap is not None:
        rates["cloud"] = cap / crossings
    if way.cores is not None:
        rates["cpu"] = way.cores * GIB / _CPU_SECONDS_PER_GIB[loader] / crossings
    if copies_bytes_per_second is not None:
        rates["pcie"] = copies_bytes_per_second
    limit = min(rates, key=lambda stage: rates[stage])
    return Prediction(seconds=way.setup_seconds + size / rates[limit], limit=limit, rates=tuple(rates.items()))


def cloud_bytes_per_second(way: Way) -> float | None:
    """What the cloud lets through to another one's bucket; None when nothing is known of a cap."""
    if way.cloud != "aws" or way.cores is None:
        return None
    if way.cores < _AWS_CORES:
        return _AWS_SMALL_BYTES_PER_SECOND
    return way.link_bytes_per_second / 2 if way.link_bytes_per_second is not None else None
