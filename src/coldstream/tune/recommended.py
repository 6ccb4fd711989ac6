"""Recommends settings for a model on GPUs, for coldstream's loader and for Run:ai's. Pure.

Run:ai's follow the common rules for it: 16 to 32 threads and 2 to 5 GiB of buffer for models up to 13 billion
parameters, 32 to 48 threads and 5 to 8 GiB up to 40 billion, 48 to 64 threads and 10 to 15 GiB beyond. coldstream needs
only a maximum: it adapts the number of connections while it loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coldstream.tune.fit import Fit, fit
from coldstream.tune.gpus import Gpus
from coldstream.tune.model_shape import Model
from coldstream.tune.predict import NetworkPath, Prediction, predict
from coldstream.units import GIB

# Streamed weights need no second copy on the GPU.
_UTILIZATION_STREAMED = 0.95
_UTILIZATION = 0.90
# coldstream's connections: a multiple of the first value, and at most the second, to be gentle to the bucket.
_CONNECTIONS = (8, 256)
# Twice the data in flight on 256 connections with chunks of 8 MiB.
_MEMORY_BYTES = 5 * GIB
_ANY = float("inf")
# Maximum number of parameters; the ranges of threads and of GiB of buffer.
_RUNAI = ((13.5e9, (16, 32), (2, 5)), (45e9, (32, 48), (5, 8)), (_ANY, (48, 64), (10, 15)))
_LARGE_GIB = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """The recommended settings of one loader, and the predicted load.

    Attributes:
        loader: "coldstream" or "runai".
        connections: The maximum number of connections; Run:ai's threads.
        memory_bytes: The memory limit for data in flight.
    """

    loader: str
    connections: int
    memory_bytes: int
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The recommendation for a model on GPUs; coldstream's loader is the first."""

    model: Model
    fit: Fit
    loaders: tuple[LoaderSettings, ...]


def advise(
    model: Model,
    gpus: Gpus,
    way: NetworkPath,
    *,
    connections: int | None = None,
    utilization: float | None = None,
    context: int | None = None,
) -> Advice:
    """Recommends settings for a model.

    Args:
        connections: The measured number of connections that is enough; None to estimate it.
        utilization: The share of each GPU's memory that vLLM may use; None for 0.95.
        context: See `fit`.
    """
    spread = fit(model, gpus, utilization=utilization or _UTILIZATION_STREAMED, context=context)
    ranks = spread.tensor_parallel
    copies = gpus.gpu.copy_bytes_per_second
    ours = connections or enough_connections(model.bytes, way, copies * ranks)
    threads, buffer = runai_rule(model.size, gpus)
    return Advice(
        model=model,
        fit=spread,
        loaders=(
            LoaderSettings(
                loader="coldstream",
                connections=ours,
                memory_bytes=min(_MEMORY_BYTES, max(GIB, model.bytes)),
                prediction=predict(
                    model.bytes, way, connections=ours, crossings=1, copies_bytes_per_second=copies * ranks
                ),
            ),
            LoaderSettings(
                loader="runai",
                connections=threads,
                memory_bytes=buffer,
                # Each rank reads the whole model with its own threads.
                prediction=predict(
                    model.bytes,
                    way,
                    connections=threads * ranks,
                    loader="runai",
                    crossings=ranks,
                    copies_bytes_per_second=copies,
                ),
            ),
        ),
    )


def enough_connections(size: int, way: NetworkPath, copies_bytes_per_second: float) -> int:
    """Returns how many connections saturate the rest of the path, plus 10 %; 64 if nothing else is known of it.

    Args:
        size: The model's bytes.
        copies_bytes_per_second: The copy to all GPUs together.
    """
    rates = dict(predict(size, way, connections=1, copies_bytes_per_second=copies_bytes_per_second).rates)
    del rates["connections"]
    if rates.keys() == {"pcie"}:
        return 64
    needed = 1.1 * min(rates.values()) / way.connection_bytes_per_second
    step, connections_max = _CONNECTIONS
    return int(min(connections_max, max(step, math.ceil(needed / step) * step)))


def runai_rule(parameters: float, gpus: Gpus) -> tuple[int, int]:
    """Returns Run:ai's `concurrency`, and its `memory_limit` in bytes.

    It is the lower end of each range for small GPUs, whose machines have slow networks, and for a large model on a
    single GPU.
    """
    parameters_max, threads, gib = next(rule for rule in _RUNAI if parameters <= rule[0])
    high = gpus.count > 1 if parameters_max == _ANY else gpus.gpu.memory_gib >= _LARGE_GIB
    return threads[high], gib[high] * GIB
