"""Which of a model's files are the shards to load, and which stand beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from coldstream.model.names import MANIFEST_NAME
from coldstream.model.selection import beside, check_numbers, index_name, is_complete_set, left_out, weights
from coldstream.places.origin_records import Record

# The index is megabytes for models of many experts; what it maps is in the headers as well.
INDEX_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a model's files is loaded.

    Attributes:
        shards: Their paths, sorted.
        left_out: Weights and an index that do not count: path to why.
    """

    shards: tuple[str, ...]
    left_out: Mapping[str, str]


def choose(paths: Iterable[str], read: Callable[[str, int], bytes], *, is_checked: bool) -> Choice:
    """The shards among the files of a model.

    Args:
        paths: All files, or at least the top-level ones.
        read: Reads a small file, of at most so many bytes. Called only for the index, if there is one.
        is_checked: The index was compared with the files when they were uploaded; it is not read where it could leave
            nothing out.

    Raises:
        IntegrityError: The index is malformed or names a shard that is not there, or one is missing by its number.
    """
    paths = list(paths)
    name = index_name(paths)
    shards = weights(path for path in paths if path != name)
    if not shards:
        return Choice(shards=(), left_out={})
    is_settled = is_checked and (len(shards) == 1 or is_complete_set(shards))
    index = read(name, INDEX_BYTES_MAX) if name is not None and not is_settled else None
    shards = weights(paths, index=index)
    if index is None:
        check_numbers(shards)
    return Choice(shards=shards, left_out=left_out(paths, index=index))


def small_files(sizes: Mapping[str, int], *, stored: bool) -> tuple[str, ...]:
    """The files beside the weights; see `beside`."""
    return tuple(path for path in beside(sizes, stored=stored) if path != MANIFEST_NAME)


def recorded_files(record: Record) -> tuple[str, ...]:
    """The same of a model that was uploaded."""
    return small_files({path: entry.size for path, entry in record.entries.items()}, stored=True)
