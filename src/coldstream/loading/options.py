"""How a load is to be done: one frozen record, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coldstream.errors import UsageError
from coldstream.loading.tensors import require_torch
from coldstream.machine.hardware import cores
from coldstream.places.cdn_domain import VIAS
from coldstream.settings import Settings
from coldstream.units import GIB

CONNECTIONS_MAX = 64
WORKERS_MAX = 8
# Pinning touches memory, and takes it from everybody else.
PINNED_BYTES_MAX = 2 * GIB

OnProgress = Callable[[int, int], None]  # bytes that are there, bytes of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a load is to be done.

    Attributes:
        device: Where the tensors go, as torch names it: "cpu", "cuda", "cuda:1".
        framework: "pt" for torch tensors, "buffer" for `TypedBuffer`; None: torch where it is installed.
        concurrency: Most connections at once; how many are used is found out.
        memory_limit: Most bytes of memory for data on its way; None: as much as is sensible.
        verify: Whether every chunk is compared with the manifest's hash.
        cache: Whether the local cache is read and filled, or the folder of another one.
        in_order: Tensors in the order of the files rather than as they arrive.
        pin: With device "cpu": whether the memory is pinned for CUDA as far as `PINNED_BYTES_MAX`, for a caller who
            copies the tensors to a device by itself.
        keep_all: All tensors will be kept: memory for the whole model is used from the start.
        workers: Fetching processes; None: one per core, at most 8.
        via: Whether weights come through the CDN in front of the bucket: "auto" when `R2_CDN_DOMAIN` names one, "cdn",
            or "s3" for the bucket alone.
        attach_seconds: How long after the first reader of a shared load the last one may come.
        settings: Instead of the environment and `.env`.
        metrics: Whether the load is counted in the file that `COLDSTREAM_METRICS_FILE` names, if it does. Commands
            have the metrics around them, and say no.
        on_progress: Called with (bytes there, bytes in all), every now and then, from the iterating thread.

    Raises:
        UsageError: One of them makes no sense.
    """

    device: str = "cpu"
    framework: str | None = None
    concurrency: int = CONNECTIONS_MAX
    memory_limit: int | None = None
    verify: bool = True
    cache: bool | str | Path = True
    in_order: bool = False
    pin: bool = False
    keep_all: bool = False
    workers: int | None = None
    via: str = "auto"
    attach_seconds: float = 600.0
    settings: Settings | None = None
    metrics: bool = True
    on_progress: OnProgress | None = None

    def __post_init__(self) -> None:
        if self.framework not in {None, "pt", "buffer"}:
            raise UsageError(
                f"framework is {self.framework!r}", hint="'pt' for torch tensors, 'buffer' for typed buffers"
            )
        if self.via not in VIAS:
            raise UsageError(f"via is {self.via!r}", hint=f"one of {', '.join(VIAS)}")
        for name in ("concurrency", "memory_limit", "workers"):
            value = getattr(self, name)
            # bool is an int in Python; nobody means one connection by True.
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name} is {value!r}", hint="a whole number from 1 on")
        if self.device != "cpu" and self.framework == "buffer":
            raise UsageError("typed buffers are in this machine's memory", hint="leave framework or device out")
        if self.device != "cpu":
            require_torch(f"the device {self.device}")
        elif self.framework == "pt" or self.pin:
            require_torch("framework='pt'" if self.framework == "pt" else "pinned memory")

    @property
    def processes(self) -> int:
        """How many fetching processes there will be."""
        return self.workers or max(1, min(WORKERS_MAX, cores()))
