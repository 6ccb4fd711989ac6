"""Whether a model fits GPUs, and how it is spread over them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coldstream.tune.gpus import Gpus
from coldstream.tune.model_shape import Model
from coldstream.units import GIB, format_bytes, plural

# What vLLM needs besides weights and keys and values: activations of its largest batch, CUDA graphs, the CUDA context.
# Measured by nobody here; vLLM's own start-up says what it really was.
RESERVE_BYTES = 2 * GIB
# A model that cannot hold one conversation is of no use.
_TOKENS_MIN = 2048
_ROUND_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A model spread over GPUs.

    Attributes:
        gpus: Over which.
        tensor_parallel: How many hold one copy of it.
        utilization: Of each GPU's memory, `--gpu-memory-utilization`.
        weights_bytes: On each.
        room_bytes: What is left on each for keys and values; negative when the weights alone are too large.
        tokens: For which that is enough; None when the model's attention is not known.
        context: What `--max-model-len` should be; None to leave it to vLLM.
        fault: Why it does not fit; None when it does.
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
        """For `vllm serve`."""
        flags: list[str] = []
        if self.tensor_parallel > 1:
            flags += ["--tensor-parallel-size", str(self.tensor_parallel)]
        flags += ["--gpu-memory-utilization", f"{self.utilization:.2f}"]
        if self.context is not None:
            flags += ["--max-model-len", str(self.context)]
        return tuple(flags)


def fit(model: Model, gpus: Gpus, *, utilization: float, context: int | None = None) -> Fit:
    """Spreads a model over all of these GPUs, or over as many of them as its heads can be divided by.

    Args:
        model: Which.
        gpus: Over which.
        utilization: The share of each GPU's memory that vLLM may use.
        context: The most tokens that a conversation needs to have; None: what the model was made for.
    """
    parallel = max(_divisions(model, gpus.count))
    weights = -(-model.bytes // parallel)
    room = int(gpus.gpu.memory_bytes * utilization) - RESERVE_BYTES - weights
    wanted = context or model.context
    tokens = None if model.kv_bytes is None else max(0, room) // _kv_bytes_on_each(model, parallel)
    shortened = None
    if tokens is not None and wanted is not None and tokens < wanted:
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
    """As many GPUs of this kind as it needs; None when eight are not enough."""
    for count in (1, 2, 4, 8):
        found = Gpus(gpus.gpu, count)
        if fit(model, found, utilization=utilization).fault is None:
            return found
    return None


def _divisions(model: Model, count: int) -> Iterator[int]:
    """The parallelisms that vLLM accepts: it divides the heads of attention."""
    for parallel in range(1, count + 1):
        if model.heads is None or model.heads % parallel == 0:
            yield parallel


def _kv_bytes_on_each(model: Model, parallel: int) -> int:
    assert model.kv_bytes is not None
    heads = model.kv_heads or 1
    # Fewer heads than ranks are copied to each of them.
    shared = min(parallel, heads)
    return max(1, -(-model.kv_bytes // shared))


def _fault(
    model: Model, gpus: Gpus, room: int, tokens: int | None, context: int | None, utilization: float
) -> str | None:
    kind = f"{gpus.count} x {gpus.gpu.name}"
    if room <= 0:
        usable = int(gpus.gpu.memory_bytes * utilization) - RESERVE_BYTES
        return (
            f"{format_bytes(model.bytes)} of weights do not fit {kind}: "
            f"{format_bytes(-room)} too much for each GPU, which has {format_bytes(usable)} for them"
        )
    needed = min(context or _TOKENS_MIN, model.context or _TOKENS_MIN) if context is None else context
    if tokens is not None and tokens < needed:
        return f"beside the weights {kind} has room for {plural(tokens, 'token')} alone, and {needed} are needed"
    return None
