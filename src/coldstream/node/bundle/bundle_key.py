"""What the caches of a start depend on, and a name for all of it. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

# The version of the key itself: with another number, no old bundle fits.
_VERSION = 1
# How a bundle that does not fit was built. Other parts are versions of packages.
_BUILT = {
    "model": "for another version of the model",
    "device": "on {theirs} (this is {ours})",
    "processor": "on a processor with other instruction sets",
    "loader": "with --loader {theirs} (this is {ours})",
    "tensor-parallel": "with --tensor-parallel-size {theirs} (this is {ours})",
    "pipeline-parallel": "with --pipeline-parallel-size {theirs} (this is {ours})",
    "caches": "with its caches in {theirs} (here: {ours})",
    "site": "with its packages in {theirs} (here: {ours})",
}
# Where a flag or a variable begins within its part; values may contain spaces.
_BEGINS = re.compile(r" (?=--?[A-Za-z]|[A-Z][A-Z0-9_]*=)")
_DIFFERENCES_MAX = 3
_VALUE_MAX = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What the caches of a start depend on: model, processor, device, paths and what the engine adds.

    Whatever could make restored code run incorrectly has to be one of `parts`: Inductor, for example, compiles for the
    very processor that it runs on. Each is in words, without secrets, as `coldstream bundle show` shows it.
    """

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that name all parts."""
        text = json.dumps([_VERSION, sorted(self.parts.items())], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, parts: Mapping[str, str]) -> tuple[str, ...]:
        """The names of the parts that differ from `parts`."""
        return tuple(sorted(n for n in {*self.parts, *parts} if self.parts.get(n) != parts.get(n)))

    def explain(self, parts: Mapping[str, str]) -> str:
        """How a bundle with `parts` was built, for people: "with vllm 0.31.0 (this is 0.32.0)"."""
        built: list[str] = []
        for name in self.differences(parts):
            theirs, ours = parts.get(name, "none"), self.parts.get(name, "none")
            if name in {"arguments", "environment"}:
                built += _changed(theirs, ours)
            else:
                text = _BUILT.get(name, f"with {name} {{theirs}} (this is {{ours}})")
                built.append(text.format(theirs=_short(theirs), ours=_short(ours)))
        more = len(built) - _DIFFERENCES_MAX
        return "; ".join(built[:_DIFFERENCES_MAX]) + (f"; and {more} more differences" if more > 0 else "")


def _changed(theirs: str, ours: str) -> list[str]:
    """The differences between the flags or the variables of two keys."""
    before, now = (dict(item.partition("=")[::2] for item in _BEGINS.split(text) if item) for text in (theirs, ours))
    built = []
    for name in sorted(n for n in {*before, *now} if before.get(n) != now.get(n)):
        if name not in before:
            built.append(f"without {name}")
        elif name not in now:
            built.append(f"with {name} {_short(before[name])}".rstrip() + " (this is without)")
        else:
            built.append(f"with {name} {_short(before[name])} (this is {_short(now[name])})")
    return built


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_MAX else f"{text[: _VALUE_MAX - 1]}…"
