"""Decides whether a model fits on GPUs, and how it is split over them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coldstream.tune.gpus import Gpus
from coldstream.tune.model_shape import Model
from coldstream.units import GIB, format_bytes, plural

# vLLM's memory beside the weights and the KV cache: activations of its largest batch, CUDA graphs, the CUDA context.
# An estimate, not a measurement; vLLM logs the real value when it starts.
RESERVE_BYTES = 2 * GIB
# A KV cache below this does not hold a single useful conversation.
_TOKENS_MIN = 2048
_ROUND_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a model is split over GPUs.

    Attributes:
        tensor_parallel: The tensor-parallel size.
        utilization: The value for `--gpu-memory-utilization`.
        weights_bytes: The weights on each GPU.
        room_bytes: The memory left on each GPU for the KV cache; negative if even the weights do not fit.
        tokens: How many tokens the KV cache holds; None if the shape of the model's attention is unknown.
        context: The value for `--max-model-len`; None for vLLM's default.
        fault: Why the model does not fit, or None.
    """

    gpus: Gpus
    tensor_parallel: int
    utilization: float
    weights_bytes: int
    room_bytes: int
    tokens: int | None
    context: int | None
    fault: str | None

    def flags(self) -> tuple[str, ...]:
        """Returns the flags for `vllm serve`."""
        flags: list[str] = []
        if self.tensor_parallel > 1:
            flags += ["--tensor-parallel-size", str(self.tensor_parallel)]
        flags += ["--gpu-memory-utilization", f"{self.utilization:.2f}"]
        if self.context is not None:
            flags += ["--max-model-len", str(self.context)]
        return tuple(flags)


def fit(model: Model, gpus: Gpus, *, utilization: float, context: int | None = None) -> Fit:
    """Splits a model over these GPUs, or over as many of them as divide its number of attention heads.

    Args:
        utilization: The share of each GPU's memory that vLLM may use.
        context: The context length that is needed; None for the model's maximum.
    """
    parallel = max(_divisions(model, gpus.count))
    weights = -(-model.bytes // parallel)
    room = int(gpus.gpu.memory_bytes * utilization) - RESERVE_BYTES - weights
    full_context = context or model.context
    tokens = None if model.kv_bytes is None else max(0, room) // _kv_bytes_on_each(model, parallel)
    shortened = None
    if tokens is not None and full_context is not None and tokens < full_context:
        shortened = tokens // _ROUND_TOKENS * _ROUND_TOKENS
    return Fit(
        gpus=gpus,
        tensor_parallel=parallel,
        utilization=utilization,
        weights_bytes=weights,
        room_bytes=room,
        tokens=tokens,
        context=shortened if shortened is not None else context,
        fault=_fault(model, gpus, room, tokens, context, utilization),
    )


def smallest(model: Model, gpus: Gpus, *, utilization: float) -> Gpus | None:
    """Returns the smallest number of these GPUs that the model fits on; None if eight are not enough."""
    candidates = (Gpus(gpus.gpu, count) for count in (1, 2, 4, 8))
    return next((each for each in candidates if fit(model, each, utilization=utilization).fault is None), None)


def _divisions(model: Model, count: int) -> Iterator[int]:
    """Yields the tensor-parallel sizes that vLLM accepts: they must divide the number of attention heads."""
    for parallel in range(1, count + 1):
        if model.heads is None or model.heads % parallel == 0:
            yield parallel


def _kv_bytes_on_each(model: Model, parallel: int) -> int:
    assert model.kv_bytes is not None
    heads = model.kv_heads or 1
    # If there are fewer KV heads than ranks, each rank holds a copy.
    shared = min(parallel, heads)
    return max(1, -(-model.kv_bytes // shared))


def _fault(
    model: Model, gpus: Gpus, room: int, tokens: int | None, context: int | None, utilization: float
) -> str | None:
    kind = f"{gpus.count} x {gpus.gpu.name}"
    if room <= 0:
        usable = int(gpus.gpu.memory_bytes * utilization) - RESERVE_BYTES
        return (
            f"{format_bytes(model.bytes)} of weights do not fit on {kind}: "
            f"{format_bytes(-room)} too much for each GPU, which has {format_bytes(usable)} for weights"
        )
    needed = min(context or _TOKENS_MIN, model.context or _TOKENS_MIN) if context is None else context
    if tokens is not None and tokens < needed:
        return f"beside the weights, {kind} can hold only {plural(tokens, 'token')}, but {needed} are needed"
    return None
