"""Recommends how to split a model over GPUs, and settings for coldstream's loader and for Run:ai's. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coldstream.tune.gpus import Gpus, parse_gpus
from coldstream.tune.model_shape import Model
from coldstream.tune.predict import NetworkPath, Prediction, predict
from coldstream.units import GIB, format_bytes, plural

# Streamed weights need no second copy on the GPU.
_UTILIZATION_STREAMED = 0.95
# vLLM's memory beside the weights and the KV cache: activations of its largest batch, CUDA graphs, the CUDA context.
# An estimate, not a measurement; vLLM logs the real value when it starts.
_RESERVE_BYTES = 2 * GIB
# A KV cache below this does not hold a single useful conversation.
_TOKENS_MIN = 2048
_ROUND_TOKENS = 256
# coldstream's connections: a multiple of the first value, and at most the second, to be gentle to the bucket.
_CONNECTIONS = (8, 256)
# Twice the data in flight on 256 connections with chunks of 8 MiB.
_MEMORY_BYTES = 5 * GIB
_ANY = float("inf")
# The common rules for Run:ai: maximum number of parameters; the ranges of threads and of GiB of buffer.
_RUNAI = ((13.5e9, (16, 32), (2, 5)), (45e9, (32, 48), (5, 8)), (_ANY, (48, 64), (10, 15)))
_LARGE_GIB = 40
# Models in bfloat16 with the shapes of Llama 2 and 3.
_MODELS = {
    "7B": Model(name="7B", bytes=14_000_000_000, parameters=7_000_000_000, dtype="BF16", layers=32, heads=32,
                kv_heads=8, kv_bytes=131_072, context=8192),
    "13B": Model(name="13B", bytes=26_000_000_000, parameters=13_000_000_000, dtype="BF16", layers=40, heads=40,
                 kv_heads=40, kv_bytes=819_200, context=4096),
    "70B": Model(name="70B", bytes=141_000_000_000, parameters=70_600_000_000, dtype="BF16", layers=80, heads=64,
                 kv_heads=8, kv_bytes=327_680, context=8192),
}  # fmt: skip
# GPU, model, the usual machine's network in Gbit/s and its cores, and the often claimed load times in seconds.
_ROWS = (
    ("A10G:1", "7B", 10, 8, (5, 8)),
    ("A100:1", "7B", 100, 96, (4, 6)),
    ("A100:1", "13B", 100, 96, (6, 10)),
    ("A100:1", "70B", 100, 96, (15, 23)),
    ("A100:4", "70B", 100, 96, (8, 12)),
    ("L4:1", "7B", 10, 8, None),
    ("A100-80GB:2", "70B", 100, 96, None),
    ("H100:1", "13B", 100, 96, None),
    ("H100:2", "70B", 200, 96, None),
    ("H200:1", "70B", 200, 96, None),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a model is split over GPUs."""

    gpus: Gpus
    tensor_parallel: int
    utilization: float
    weights_bytes: int  # the weights on each GPU
    room_bytes: int  # the memory left on each GPU for the KV cache; negative if even the weights do not fit
    tokens: int | None  # how many tokens the KV cache holds; None if the shape of the model's attention is unknown
    context: int | None  # the value for `--max-model-len`; None for vLLM's default
    fault: str | None  # why the model does not fit, or None

    def flags(self) -> tuple[str, ...]:
        """The flags for `vllm serve`."""
        parallel = ["--tensor-parallel-size", str(self.tensor_parallel)] if self.tensor_parallel > 1 else []
        context = ["--max-model-len", str(self.context)] if self.context is not None else []
        return (*parallel, "--gpu-memory-utilization", f"{self.utilization:.2f}", *context)

    def sglang_flags(self) -> tuple[str, ...]:
        """The flags for `sglang serve`, which chooses its share of the memory itself."""
        parallel = ["--tp-size", str(self.tensor_parallel)] if self.tensor_parallel > 1 else []
        return (*parallel, *(["--context-length", str(self.context)] if self.context is not None else []))


def fit(model: Model, gpus: Gpus, *, utilization: float, context: int | None = None) -> Fit:
    """Splits a model over these GPUs, or over as many of them as divide its number of attention heads.

    `utilization` is the share of each GPU's memory that vLLM may use; a `context` of None is the model's maximum.
    """
    # vLLM accepts only tensor-parallel sizes that divide the number of attention heads.
    parallel = max(count for count in range(1, gpus.count + 1) if model.heads is None or model.heads % count == 0)
    weights = -(-model.bytes // parallel)
    usable = int(gpus.gpu.memory_gib * GIB * utilization) - _RESERVE_BYTES
    room = usable - weights
    tokens = None
    if model.kv_bytes is not None:
        # If there are fewer KV heads than ranks, each rank holds a copy.
        tokens = max(0, room) // max(1, -(-model.kv_bytes // min(parallel, model.kv_heads or 1)))
    full_context, needed = context or model.context, context
    if needed is None:
        needed = min(_TOKENS_MIN, model.context or _TOKENS_MIN)
    kind, fault = f"{gpus.count} x {gpus.gpu.name}", None
    if room <= 0:
        fault = (
            f"{format_bytes(model.bytes)} of weights do not fit on {kind}: "
            f"{format_bytes(-room)} too much for each GPU, which has {format_bytes(usable)} for weights"
        )
    elif tokens is not None and tokens < needed:
        fault = f"beside the weights, {kind} can hold only {plural(tokens, 'token')}, but {needed} are needed"
    if tokens is not None and full_context is not None and tokens < full_context:
        context = tokens // _ROUND_TOKENS * _ROUND_TOKENS
    return Fit(
        gpus=gpus,
        tensor_parallel=parallel,
        utilization=utilization,
        weights_bytes=weights,
        room_bytes=room,
        tokens=tokens,
        context=context,
        fault=fault,
    )


def smallest(model: Model, gpus: Gpus, *, utilization: float) -> Gpus | None:
    """The smallest number of these GPUs that the model fits on; None if eight are not enough."""
    candidates = (Gpus(gpus.gpu, count) for count in (1, 2, 4, 8))
    return next((each for each in candidates if fit(model, each, utilization=utilization).fault is None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """Settings of "coldstream" or "runai", whose connections are threads; `memory_bytes` limits the data in flight."""

    loader: str
    connections: int
    memory_bytes: int
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The recommendation for a model on GPUs; coldstream's loader is the first."""

    model: Model
    fit: Fit
    loaders: tuple[LoaderSettings, LoaderSettings]


def advise(
    model: Model,
    gpus: Gpus,
    way: NetworkPath,
    *,
    connections: int | None = None,
    utilization: float | None = None,
    context: int | None = None,
) -> Advice:
    """Recommends settings for a model; see `fit`. `connections` are measured to be enough; None estimates them."""
    split = fit(model, gpus, utilization=utilization or _UTILIZATION_STREAMED, context=context)
    ranks, copies = split.tensor_parallel, gpus.gpu.copy_bytes_per_second
    ours = connections or _enough_connections(model.bytes, way, copies * ranks)
    prediction = predict(model.bytes, way, connections=ours, copies_bytes_per_second=copies * ranks)
    memory = min(_MEMORY_BYTES, max(GIB, model.bytes))
    threads, buffer = runai_rule(model.size, gpus)
    # Each rank reads the whole model with its own threads.
    runai = predict(
        model.bytes, way, connections=threads * ranks, loader="runai", crossings=ranks, copies_bytes_per_second=copies
    )
    loaders = (
        LoaderSettings(loader="coldstream", connections=ours, memory_bytes=memory, prediction=prediction),
        LoaderSettings(loader="runai", connections=threads, memory_bytes=buffer, prediction=runai),
    )
    return Advice(model=model, fit=split, loaders=loaders)


def _enough_connections(size: int, way: NetworkPath, copies_bytes_per_second: float) -> int:
    """How many connections saturate the rest of the path, plus 10 %; 64 if nothing else is known of it."""
    rates = dict(predict(size, way, connections=1, copies_bytes_per_second=copies_bytes_per_second).rates)
    del rates["connections"]
    if rates.keys() == {"pcie"}:
        return 64
    needed = 1.1 * min(rates.values()) / way.connection_bytes_per_second
    step, connections_max = _CONNECTIONS
    return int(min(connections_max, max(step, math.ceil(needed / step) * step)))


def runai_rule(parameters: float, gpus: Gpus) -> tuple[int, int]:
    """Run:ai's `concurrency`, and its `memory_limit` in bytes; less for small GPUs, and a large model on one GPU."""
    parameters_max, threads, gib = next(rule for rule in _RUNAI if parameters <= rule[0])
    high = gpus.count > 1 if parameters_max == _ANY else gpus.gpu.memory_gib >= _LARGE_GIB
    return threads[high], gib[high] * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsRow:
    """One combination of a common GPU and model, in the usual machine with these GPUs."""

    gpus: str
    model: str
    way: NetworkPath
    advice: Advice
    # The load times that are often claimed, from and to, in seconds; None without a claim.
    promised: tuple[int, int] | None

    @property
    def remark(self) -> str:
        """Whether the claim is realistic and what it needs, or why the model does not fit; empty without a claim."""
        if self.advice.fit.fault is not None:
            return self.advice.fit.fault
        if self.promised is None:
            return ""
        ours, (fewest, most) = self.advice.loaders[0], self.promised
        claim = f"the claimed {fewest} to {most} s"
        if ours.prediction.seconds <= most:
            return f"{claim} are realistic with {ours.connections} connections"
        needed = self.advice.model.bytes / most * 8 / 1e9
        return f"{claim} need {needed:.0f} Gbit/s; {ours.prediction.limited_by}"


def settings_table(cloud: str = "aws") -> list[SettingsRow]:
    """The table of common GPUs and models for machines in this cloud, with the cloud's network caps."""
    rows = []
    for gpus, name, gigabits, cores, promised in _ROWS:
        way = NetworkPath(link_bytes_per_second=gigabits * 1e9 / 8, cores=cores, cloud=cloud)
        advice = advise(_MODELS[name], parse_gpus(gpus), way)
        rows.append(SettingsRow(gpus=gpus, model=name, way=way, advice=advice, promised=promised))
    return rows
