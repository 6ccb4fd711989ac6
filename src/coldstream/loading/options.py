"""How a load is done: one frozen record that checks itself, and the keyword arguments that it is made from."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from coldstream.errors import UsageError
from coldstream.machine.extras import install_hint
from coldstream.model.tensor_choice import Names
from coldstream.places.cdn_domain import VIAS
from coldstream.settings import Settings
from coldstream.units import GIB

_Function = TypeVar("_Function", bound=Callable[..., Any])

PINNED_BYTES_MAX = 2 * GIB  # pinned memory is touched at once, and no other process can use it

OnProgress = Callable[[int, int], None]  # bytes loaded, bytes of all tensors
# Parameters that were renamed after the command's flags.
_RENAMED = {"concurrency": "connections", "memory_limit": "memory"}


def has_torch() -> bool:
    """Whether torch can be imported; does not import it."""
    return importlib.util.find_spec("torch") is not None


def require_torch(what: str) -> None:
    """Raises UsageError if torch, which `what` needs, is not installed."""
    if not has_torch():
        raise UsageError(f"{what} needs torch, which is not installed", hint=install_hint("torch"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a load is done.

    Attributes:
        device: Where the tensors go, as torch names it: "cpu", "cuda", "cuda:1".
        framework: "pt" for torch tensors, "buffer" for `TypedBuffer`. None: torch if it is installed.
        connections: Maximum parallel connections; the actual number adapts to the bucket. None: as many as suit this
            machine, from 64 to 1,024, shared with the other loads of this user.
        memory: Memory limit for data in flight, in bytes. None: half of the available memory; for a device, 1 GiB.
        verify: Whether every chunk is compared with its hash in the manifest.
        cache: Whether the local cache is read and filled, or the directory of another cache.
        in_order: Whether tensors come in the order of the files instead of as they arrive.
        pin: With device "cpu": whether to pin up to `PINNED_BYTES_MAX` of the memory for CUDA, for callers that copy
            the tensors to a device themselves.
        names: Which tensors to load: a name or a pattern ("model.layers.0.*"), several of them, or a function of the
            name. None: all. Only the chunks with these tensors are fetched.
        keep_all: Whether the caller keeps all tensors; memory for the whole model is then reserved from the start.
        workers: Fetching processes. None: one per core, at most 8; above 64 connections one per 8, up to 64.
        via: Whether weights come through the CDN in front of the bucket: "auto" if `R2_CDN_DOMAIN` names one, "cdn",
            or "s3" for the bucket only.
        attach_seconds: How long after the first reader of a shared load the last one may attach.
        settings: Used instead of the environment and `.env`.
        metrics: Whether the load is counted in the file that `COLDSTREAM_METRICS_FILE` names. Commands write their
            own metrics and turn this off.
        on_progress: Called regularly with (bytes loaded, bytes of all tensors), from the iterating thread.

    Raises:
        UsageError: A value is invalid.
    """

    device: str = "cpu"
    framework: str | None = None
    connections: int | None = None
    memory: int | None = None
    verify: bool = True
    cache: bool | str | Path = True
    in_order: bool = False
    pin: bool = False
    names: Names | None = None
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
                f"framework is {self.framework!r}", hint="use 'pt' for torch tensors or 'buffer' for typed buffers"
            )
        if self.via not in VIAS:
            raise UsageError(f"via is {self.via!r}", hint=f"use one of {', '.join(VIAS)}")
        for name in ("connections", "memory", "workers"):
            value = getattr(self, name)
            # bool is an int in Python, but True does not mean one connection.
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name} is {value!r}", hint="use a whole number from 1")
        if self.names is not None and not isinstance(self.names, str) and not callable(self.names):
            # An iterator could be read only once.
            object.__setattr__(self, "names", tuple(self.names))
        if self.device != "cpu" and self.framework == "buffer":
            raise UsageError("typed buffers exist on the CPU only", hint="leave out framework or device")
        if self.device != "cpu":
            require_torch(f"the device {self.device}")
        elif self.framework == "pt" or self.pin:
            require_torch("framework='pt'" if self.framework == "pt" else "pinned memory")


class LoadOptions(TypedDict, total=False):
    """The keyword arguments of every kind of load; `Options` describes these and those of the other kinds."""

    device: str
    connections: int | None
    memory: int | None
    workers: int | None
    via: str
    cache: bool | str | Path
    verify: bool
    in_order: bool
    settings: Settings | None
    metrics: bool
    on_progress: OnProgress | None


class TensorOptions(LoadOptions, total=False):
    """Those of a load whose tensors the caller gets one by one."""

    names: Names | None
    framework: str | None
    pin: bool


def takes_options(*ignored: str, listed: type[LoadOptions] = LoadOptions) -> Callable[[_Function], _Function]:
    """Shows the options `listed` in a signature, for `help`, and accepts old names with a `DeprecationWarning`.

    `ignored` are parameters that the function used to accept and that never had an effect on it. Type checkers see the
    present names only.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in [name for name in kwargs if name in _RENAMED or name in ignored]:
                value = kwargs.pop(old)
                new = _RENAMED.get(old, old)
                advice = "has no effect here" if new in ignored else f"is deprecated; use {new}"
                warnings.warn(f"the parameter {old} {advice}", DeprecationWarning, stacklevel=2)
                if new not in ignored:
                    kwargs.setdefault(new, value)
            return function(*args, **kwargs)

        signature = inspect.signature(function)
        *own, last = signature.parameters.values()
        if last.kind is last.VAR_KEYWORD:
            own += [
                last.replace(name=field.name, kind=last.KEYWORD_ONLY, default=field.default, annotation=field.type)
                for field in fields(Options)
                if field.name in listed.__annotations__
            ]
            call.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


if not TYPE_CHECKING:
    Options.__init__ = takes_options()(Options.__init__)
