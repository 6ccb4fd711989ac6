"""Which tensors of a checkpoint are loaded, by name. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from coldstream.errors import NotFoundError
from coldstream.model.header import Header

# A name or a pattern ("model.layers.0.*"), several of them, or a function that says whether a name is meant.
Names = str | Iterable[str] | Callable[[str], bool]


def choose_tensors(headers: Sequence[Header], names: Names | None, *, where: str) -> list[Header]:
    """The headers with only the tensors that are meant, all of them without `names`.

    Raises NotFoundError if a name or a pattern fits none.
    """
    if names is None:
        return list(headers)
    every = [tensor.name for header in headers for tensor in header.tensors]
    if callable(names):
        chosen = {name for name in every if names(name)}
        if not chosen:
            raise NotFoundError(f"{where} has {len(every)} tensors, and the function `names` accepts none of them")
    else:
        patterns = [names] if isinstance(names, str) else list(names)
        chosen = {name for pattern in patterns for name in _matches(pattern, every, where)}
    return [
        replace(header, tensors=tuple(tensor for tensor in header.tensors if tensor.name in chosen))
        for header in headers
    ]


def _matches(pattern: str, every: Sequence[str], where: str) -> list[str]:
    # Tensors may have brackets in their names.
    matches = [name for name in every if name == pattern] or [name for name in every if fnmatchcase(name, pattern)]
    if not matches:
        near = difflib.get_close_matches(pattern, every, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(every[:2])} and so on"
        raise NotFoundError(f"{where} has no tensor {pattern!r}", hint=hint)
    return matches
