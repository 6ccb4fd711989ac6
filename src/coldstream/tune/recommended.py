"""The settings for a model on GPUs, for our loader and for Run:ai's. Pure.

Run:ai's by the rules that are in use for it: 16 to 32 threads and 2 to 5 GiB of buffer for models up to 13 billion
parameters, 32 to 48 and 5 to 8 up to 40, 48 to 64 and 10 to 15 beyond. Ours need neither: how many connections help is
found out while loading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coldstream.tune.fit import Fit, fit
from coldstream.tune.gpus import Gpus
from coldstream.tune.model_shape import Model
from coldstream.tune.predict import Prediction, Way, predict
from coldstream.units import GIB

# Streaming needs no second copy of the weights on the GPU.
_UTILIZATION_STREAMED = 0.95
_UTILIZATION = 0.90
# Of our loader: as many as the rest of the way can use, in steps, and no more than a bucket should be asked to bear.
_CONNECTIONS = (8, 256)
# Twice what is on its way at the most, for chunks of 8 MiB.
_MEMORY_BYTES = 5 * GIB
_ANY = float("inf")
# Parameters at most, threads and GiB of buffer: the ranges.
_RUNAI = ((13.5e9, (16, 32), (2, 5)), (45e9, (32, 48), (5, 8)), (_ANY, (48, 64), (10, 15)))
_LARGE_GIB = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a loader is given, and what comes of it.

    Attributes:
        loader: "coldstream" or "runai".
        connections: At most; threads of Run:ai.
        memory_bytes: At most, for data on its way.
        prediction: Of the load.
    """

    loader: str
    connections: int
    memory_bytes: int
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """All of it.

    Attributes:
        model: Which.
        fit: How it is spread over the GPUs.
        loaders: For each.
    """

    model: Model
    fit: Fit
    loaders: tuple[Tuned, ...]


def advise(
    model: Model,
    gpus: Gpus,
    way: Way,
    *,
    connections: int | None = None,
    utilization: float | None = None,
    context: int | None = None,
) -> Advice:
    """The settings for a model.

    Args:
        model: Which.
        gpus: On which.
        way: To the bucket.
        connections: That were measured to be enough; None: as the rules say.
        utilization: The share of each GPU's memory that vLLM may use; None: 0.95 where the GPU is vLLM's alone.
        context: See `fit`.
    """
    found = fit(model, gpus, utilization=utilization or _UTILIZATION_STREAMED, context=context)
    ranks = found.tensor_parallel
    copies = gpus.gpu.copy_bytes_per_second
    ours = connections or enough_connections(model.bytes, way, copies * ranks)
    threads, buffer = runai_rule(model.size, gpus)
    return Advice(
        model=model,
        fit=found,
        loaders=(
            Tuned(
                loader="coldstream",
                connections=ours,
                memory_bytes=min(_MEMORY_BYTES, max(GIB, model.bytes)),
                prediction=predict(
                    model.bytes, way, connections=ours, crossings=1, copies_bytes_per_second=copies * ranks
                ),
            ),
            Tuned(
                loader="runai",
                connections=threads,
                memory_bytes=buffer,
                # Each rank reads all of it, with threads of its own.
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


def enough_connections(size: int, way: Way, copies_bytes_per_second: float) -> int:
    """How many connections keep the rest of the way busy, with a tenth to spare.

    Args:
        size: Bytes of the model: each connection needs some of them.
        way: From the bucket; nothing being known of it but the connections, 64.
        copies_bytes_per_second: To all GPUs together.
    """
    rates = dict(predict(size, way, connections=1, copies_bytes_per_second=copies_bytes_per_second).rates)
    del rates["connections"]
    if rates.keys() == {"pcie"}:
        return 64
    needed = 1.1 * min(rates.values()) / way.connection_bytes_per_second
    step, most = _CONNECTIONS
    return int(min(most, max(step, math.ceil(needed / step) * step)))


def runai_rule(parameters: float, gpus: Gpus) -> tuple[int, int]:
    """Run:ai's `concurrency`, and its `memory_limit` in bytes.

    The lower end of each range for small GPUs, whose machines have slow networks, and for a large model on one GPU.
    """
    most, threads, gib = next(rule for rule in _RUNAI if parameters <= rule[0])
    high = gpus.count > 1 if most == _ANY else gpus.gpu.memory_gib >= _LARGE_GIB
    return threads[high], gib[high] * GIB
