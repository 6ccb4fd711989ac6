"""How many requests the work of this program makes. Pure.

One chunk is one GET: chunks are what the manifest cuts files into, 8 MiB at most, on the edges of tensors. The first
chunk of a shard is its header. A start of vLLM reads manifest and headers twice, for the folder that vLLM is given and
for the load, and each small file once. Compared with what a server counted by tests/e2e/test_cost.py; requests that
were repeated, links that were renewed and the warm-start bundle come on top.
"""

from __future__ import annotations

from collections.abc import Iterable

from coldstream.model.chunks import CHUNK_BYTES, part_bytes_for, part_count
from coldstream.operate.cost.prices import upload_operations

# Of a model that is not looked at: config, tokenizer and the like, and the size that shards are usually cut to.
SMALL_FILES = 8
SHARD_BYTES = 5_000_000_000


def reads_of_load(*, chunks: int, shards: int, small_files: int, fetched_share: float = 1.0) -> float:
    """GETs of one start of vLLM on one machine; all of them are class B.

    Args:
        chunks: Of all shards, the headers' among them.
        shards: Files of weights.
        small_files: That are read beside them.
        fetched_share: Of the starts, how many find nothing on the machine's disk; the others only read manifest
            and headers.
    """
    always = 2 + 2 * shards
    return always + fetched_share * (chunks - shards + small_files)


def chunks_of(size: int) -> int:
    """Chunks of weights of so many bytes, with a header in each shard; on the edges of tensors there are some more."""
    return -(-size // CHUNK_BYTES) + shards_of(size)


def shards_of(size: int) -> int:
    """Files that weights of so many bytes usually come in."""
    return max(1, -(-size // SHARD_BYTES))


def writes_of_upload(sizes: Iterable[int]) -> int:
    """Class A requests for storing files of these sizes."""
    sizes = list(sizes)
    return upload_operations(sum(part_count(size, part_bytes_for(size)) for size in sizes), len(sizes))
