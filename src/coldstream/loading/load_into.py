"""Loads into a torch module, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldstream.engine.load_statistics import LoadReport
from coldstream.errors import UsageError
from coldstream.loading.options import LoadOptions, Options, takes_options
from coldstream.loading.streaming import Load
from coldstream.loading.tensors import require_torch
from coldstream.model.uri import Uri

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadIntoReport:
    """The result of `load_into`."""

    missing: tuple[str, ...]  # parameters and buffers that the checkpoint does not have
    unexpected: tuple[str, ...]  # tensors that the module does not have
    report: LoadReport


@takes_options("framework", "keep_all")
def load_into(
    module: torch.nn.Module,
    uri: str | Uri,
    *,
    strict: bool = True,
    prefix: str = "",
    pin: bool = False,
    **options: Unpack[LoadOptions],
) -> LoadIntoReport:
    """Copies a model's tensors into a module's parameters and buffers, in place, converting dtypes.

    The parameters that are not listed here are those of `Load` and `Options`.

    Args:
        module: On any device but "meta".
        strict: Whether missing or unexpected names are an error, raised after everything that fits was copied.
        prefix: Removed from the checkpoint's names ("model."); names without it are unexpected.
        device: Where the tensors are loaded before they are copied to the module's own device.

    Raises:
        UsageError: A shape differs, the module is on "meta", or names differ and `strict` is set.
        ColdstreamError: As for `Load`; the module is then partly filled.
    """
    require_torch("load_into")
    import torch

    # With tied weights several names are one tensor, and one of them is enough.
    targets: dict[str, torch.Tensor] = dict(module.state_dict(keep_vars=True))
    if any(target.is_meta for target in targets.values()):
        raise UsageError("the module is on the meta device", hint="allocate it first: module.to_empty(device=...)")
    copied: set[str] = set()
    unexpected: list[str] = []
    with Load(uri, Options(framework="pt", pin=pin, **options)) as loading, torch.no_grad():
        for name, tensor in loading:
            inner = name.removeprefix(prefix)
            target = targets.get(inner) if name.startswith(prefix) else None
            if target is None:
                unexpected.append(name)
            elif target.shape != tensor.shape:
                raise UsageError(
                    f"{name} has the shape {tuple(tensor.shape)}, in the module it is {tuple(target.shape)}"
                )
            else:
                target.copy_(tensor)
                copied.add(inner)
        report = loading.report
    assert report is not None
    filled = {targets[name].data_ptr() for name in copied if targets[name].numel()}
    missing = [name for name, target in targets.items() if name not in copied and target.data_ptr() not in filled]
    if strict and (missing or unexpected):
        differences = [_some(missing, "missing"), _some(unexpected, "unexpected")]
        raise UsageError(
            f"{uri} and the module differ: {', '.join(text for text in differences if text)}",
            hint="use strict=False to accept that",
        )
    return LoadIntoReport(missing=tuple(missing), unexpected=tuple(sorted(unexpected)), report=report)


def _some(names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what} {names[0]}{more}"
