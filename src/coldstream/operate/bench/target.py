"""The model to load, described as other loaders need it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from coldstream.errors import ConfigError, UnavailableError
from coldstream.model.names import is_path
from coldstream.model.uri import Uri
from coldstream.net.retry import Backoff, Retry
from coldstream.places.checkpoint import Shard
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings
from coldstream.tune.model_shape import Model, describe

# Comparing loaders needs a bucket that responds.
_RETRY_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class BenchTarget:
    """The model to load."""

    uri: Uri
    label: str  # the URI for people; without secrets
    name: str
    kind: str  # "s3", "folder", or "http" for servers that only coldstream can read from
    # "s3://bucket[/prefix]" if `kind` is "s3", or the URI of the folder of models that contains it; else "".
    store: str = ""
    key: str = ""  # the model's folder in the store
    folder: str = ""  # its path on this machine if `kind` is "folder", else ""
    shards: tuple[Shard, ...] = field(repr=False)
    model: Model
    verified: bool = False  # whether a manifest has the hash of every chunk

    @property
    def files(self) -> list[tuple[str, int]]:
        """Path and size of each weight file."""
        return [(shard.path, shard.size) for shard in self.shards]

    @property
    def bucket(self) -> str:
        return self.store.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """The model's folder in the bucket."""
        inner = self.store.removeprefix("s3://").partition("/")[2]
        return f"{inner}/{self.key}" if inner else self.key

    @property
    def is_tls(self) -> bool:
        return any(url.startswith("https:") for url in self._urls)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, so that no network card is involved."""
        return {urlsplit(url).hostname for url in self._urls} <= {"127.0.0.1", "::1", "localhost"}

    @property
    def has_plain_names(self) -> bool:
        """Whether the bucket stores the files under their own names, as every other loader expects."""
        return all(
            unquote(urlsplit(shard.segments[0].url or "").path).endswith(f"/{self.prefix}/{shard.path}")
            for shard in self.shards
        )

    @property
    def _urls(self) -> list[str]:
        """Of all objects; may be signed."""
        return [segment.url or "" for shard in self.shards for segment in shard.segments]


def find_target(uri: str, settings: Settings) -> BenchTarget:
    """Looks a model up; raises what `open_model_reader` and `ModelReader.checkpoint` raise."""
    patience = min(settings.retry_seconds, _RETRY_SECONDS)
    checkpoint = open_model_reader(uri, settings, retry=Retry(Backoff(give_up_seconds=patience))).checkpoint()
    shards = checkpoint.shards
    kind, store, key, folder = "http", "", "", ""
    if all(shard.is_local for shard in shards):
        kind = "folder"
        folder = (shards[0].segments[0].local or "").removesuffix("/" + shards[0].path)
        store = "" if is_path(uri) or "://" in uri else settings.store_uri()
    elif checkpoint.uri.startswith("s3://"):
        kind = "s3"
        with suppress(ConfigError):
            store = settings.store_uri()
        if not (store.startswith("s3:") and checkpoint.uri.startswith(store + "/")):
            store = "s3://" + checkpoint.uri.removeprefix("s3://").partition("/")[0]
        key = checkpoint.uri.removeprefix(store).strip("/")
    model = describe(checkpoint.name, [shard.header for shard in shards], {})
    if not model.bytes:
        raise UnavailableError(f"{checkpoint.uri} has no tensors to load", retryable=False)
    return BenchTarget(
        # Child processes run in another directory.
        uri=Uri(os.path.abspath(os.path.expanduser(uri)) if is_path(uri) else uri),
        label=checkpoint.uri,
        name=checkpoint.name,
        kind=kind,
        store=store,
        key=key,
        folder=folder,
        shards=shards,
        model=model,
        verified=checkpoint.verified,
    )
