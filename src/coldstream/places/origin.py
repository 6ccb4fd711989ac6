"""What an origin gives: the shards of a checkpoint, and the small files beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coldstream.model.header import Header
from coldstream.model.job import Headers, Segment

# A URL to GET, and the headers to send along. Both may be secrets.
Link = tuple[str, Headers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of weights: where it is, how it is cut, and what is in it.

    Attributes:
        path: Relative to the model.
        size: In bytes.
        segments: The objects that hold it, in order; one for most files. Either all or none are on this machine.
        header: Parsed and checked.
        head: The file's first `header.data_start` bytes.
        stops: One past the last byte of each chunk of the whole file.
        digests: XXH3-128 of each chunk, 16 bytes each, big-endian, joined; None where no manifest names them.
    """

    path: str
    size: int
    segments: tuple[Segment, ...]
    header: Header = field(repr=False)
    head: bytes = field(repr=False)
    stops: tuple[int, ...] = field(repr=False)
    digests: bytes | None = field(repr=False)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return self.segments[0].local is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's weights, as vLLM would load them.

    Attributes:
        uri: Canonical, without a secret.
        name: For people and for folders: it passes `paths.checked_name`.
        version: In lower-case hexadecimal, what tells this content from any other under this URI.
        verified: Whether a manifest names the hash of every chunk.
        pinned: Whether `version` changes with the content. False when there is no manifest and the server names no
            ETag: then a copy made earlier may be out of date although its version is the same.
        shards: In the order of their paths; at least one.
        left_out: Weights beside them, and an index, that do not count: path to why.
        cdn: What its objects can be had through as well, as far as a manifest verifies them: its URL, and the headers
            that it asks for; the latter are secrets.
    """

    uri: str
    name: str
    version: str
    verified: bool
    pinned: bool
    shards: tuple[Shard, ...]
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)
    cdn: Link | None = field(default=None, repr=False)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)


class Origin(Protocol):
    """A model at one place. Thread-safe; holds the credentials, and shows none.

    Raises, everywhere: NotFoundError, CredentialsError, UnavailableError (what may pass was tried again already),
    CancelledError; where stated, more.
    """

    @property
    def label(self) -> str:
        """For people; no secret."""

    def checkpoint(self) -> Checkpoint:
        """Finds the weights and reads their headers.

        Raises:
            NotFoundError: There is no model, it has no safetensors, or its upload is not complete.
            IntegrityError: The manifest, the index or a header cannot be trusted.
            ConflictError: Somebody replaced a file meanwhile.
        """

    def renew(self, path: str, segment: int = 0) -> Link:
        """A fresh link to a segment of a shard of the last `checkpoint`: the old one was refused, links expire."""

    def names(self) -> Sequence[str]:
        """The files that are needed beside the weights, sorted: config.json, the tokenizer's and so on."""

    def read(self, path: str, bytes_max: int) -> bytes:
        """The content of one of them.

        Raises:
            IntegrityError: It is larger than `bytes_max`, or is not what the manifest says.
        """
