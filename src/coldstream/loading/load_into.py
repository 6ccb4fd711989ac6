"""Into a torch module, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldstream.errors import UsageError
from coldstream.loading.load_report import LoadReport
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.loading.tensors import require_torch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadIntoReport:
    """What `load_into` did.

    Attributes:
        missing: Parameters and buffers of the module that the checkpoint does not have.
        unexpected: Tensors of the checkpoint that the module does not have.
        report: Of the load itself.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    report: LoadReport


def load_into(
    module: torch.nn.Module, uri: str, *, strict: bool = True, prefix: str = "", **options: Any
) -> LoadIntoReport:
    """Copies a model's tensors into a module's parameters and buffers, in place, converting dtypes.

    Args:
        module: On any device but "meta".
        uri: See `Load`.
        strict: Whether missing or unexpected names are an error, raised when all that fits has been copied.
        prefix: Taken off the checkpoint's names ("model."); names without it are unexpected.
        options: See `Options`.

    Raises:
        UsageError: A shape differs, the module is on "meta", or names differ and `strict`.
        And what a `Load` raises; the module is then partly filled.
    """
    require_torch("load_into")
    import torch

    # By name; with tied weights several names are one tensor, and one of them is enough.
    targets: dict[str, torch.Tensor] = dict(module.state_dict(keep_vars=True))
    if any(target.is_meta for target in targets.values()):
        raise UsageError("the module is on the meta device", hint="give it memory first: module.to_empty(device=...)")
    found: set[str] = set()
    unexpected: list[str] = []
    with Load(uri, Options(**{"framework": "pt", **options})) as loading, torch.no_grad():
        for name, tensor in loading:
            inner = name.removeprefix(prefix)
            target = targets.get(inner) if name.startswith(prefix) else None
            if target is None:
                unexpected.append(name)
            elif target.shape != tensor.shape:
                raise UsageError(f"{name} has the shape {tuple(tensor.shape)}, the module wants {tuple(target.shape)}")
            else:
                target.copy_(tensor)
                found.add(inner)
        report = loading.report
    assert report is not None
    filled = {targets[name].data_ptr() for name in found if targets[name].numel()}
    missing = [name for name, target in targets.items() if name not in found and target.data_ptr() not in filled]
    if strict and (missing or unexpected):
        differences = [_some(missing, "missing"), _some(unexpected, "unexpected")]
        raise UsageError(
            f"{uri} and the module differ: {', '.join(text for text in differences if text)}",
            hint="pass strict=False to accept that",
        )
    return LoadIntoReport(missing=tuple(missing), unexpected=tuple(sorted(unexpected)), report=report)


def _some(names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what} {names[0]}{more}"
