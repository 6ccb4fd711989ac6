"""Which of a model's files are the shards to load, and which stand beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from coldstream.paths import MANIFEST_NAME
from coldstream.selection import INDEX_NAME, beside, needs_index, weights

# The index is megabytes for models of many experts; what it maps is in the headers as well.
INDEX_BYTES_MAX = 64 << 20
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def chosen(paths: Iterable[str], read_index: Callable[[], bytes]) -> tuple[str, ...]:
    """The shards among the files of a model, sorted.

    Args:
        paths: All files, or at least the top-level ones.
        read_index: Reads `INDEX_NAME`. Not called when there is none, or when it could leave nothing out.

    Raises:
        IntegrityError: The index is malformed or names a shard that is not there.
    """
    paths = list(paths)
    everything = weights(path for path in paths if path != INDEX_NAME)
    if not everything or not needs_index(paths) or is_complete_set(everything):
        return everything
    return weights(paths, index=read_index())


def is_complete_set(shards: Sequence[str]) -> bool:
    """Whether these are `x-00001-of-0000N` to `x-0000N-of-0000N`, all of them and nothing else."""
    matches = [_NUMBERED.fullmatch(shard) for shard in sorted(shards)]
    if not matches or not all(matches):
        return False
    parts = [match.groups() for match in matches if match]
    stem, _, count = parts[0]
    return len(parts) == int(count) and parts == [(stem, f"{number:05d}", count) for number in range(1, int(count) + 1)]


def small_files(paths: Iterable[str]) -> tuple[str, ...]:
    """The files beside the weights."""
    return tuple(path for path in beside(paths) if path != MANIFEST_NAME)
