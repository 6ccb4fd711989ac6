"""The model, as loaders other than ours need it described."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from coldstream.errors import ConfigError, UnavailableError
from coldstream.model.names import is_path
from coldstream.model.uri import Uri
from coldstream.net.retry import Backoff, Retry
from coldstream.places.origin import Shard
from coldstream.places.origin_opening import open_origin
from coldstream.settings import Settings
from coldstream.tune.model_shape import Model, describe

# A bucket that does not answer is no bucket to compare loaders with.
_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is loaded.

    Attributes:
        uri: As our loader is given it.
        label: For people; no secret.
        name: The model's.
        kind: "s3", "folder", or "http" for servers that no other loader reads.
        store: "s3://bucket" or a place below it, when `kind` is "s3".
        key: The model's folder in the store.
        folder: Where it lies on this machine, when it does.
        shards: Its files.
        model: What they hold.
        verified: Whether a manifest names the hash of every chunk.
    """

    uri: Uri
    label: str
    name: str
    kind: str
    store: str = ""
    key: str = ""
    folder: str = ""
    shards: tuple[Shard, ...] = field(repr=False)
    model: Model
    verified: bool = False

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return self.model.bytes

    @property
    def files(self) -> list[tuple[str, int]]:
        """Path in the model and size of each."""
        return [(shard.path, shard.size) for shard in self.shards]

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.store.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """The model's folder in the bucket."""
        inner = self.store.removeprefix("s3://").partition("/")[2]
        return f"{inner}/{self.key}" if inner else self.key

    @property
    def is_tls(self) -> bool:
        """Whether its bytes come over TLS."""
        return any(url.startswith("https:") for url in self._urls)

    @property
    def is_near(self) -> bool:
        """Whether its server runs on this machine, so that no network card is between."""
        hosts = {urlsplit(url).hostname for url in self._urls}
        return hosts <= {"127.0.0.1", "::1", "localhost"}

    @property
    def is_plain(self) -> bool:
        """Whether the bucket has the files under their own names, as every other loader expects."""
        return all(
            unquote(urlsplit(shard.segments[0].url or "").path).endswith(f"/{self.prefix}/{shard.path}")
            for shard in self.shards
        )

    @property
    def _urls(self) -> list[str]:
        """Of all objects; secrets."""
        return [segment.url or "" for shard in self.shards for segment in shard.segments]


def find_target(uri: str, settings: Settings) -> Target:
    """Looks a model up.

    Args:
        uri: See `Load`.
        settings: Where the bucket is.

    Raises:
        What `open_origin` and `Origin.checkpoint` raise.
    """
    patience = min(settings.retry_seconds, _PATIENCE_SECONDS)
    origin = open_origin(uri, settings, retry=Retry(Backoff(give_up_seconds=patience)))
    checkpoint = origin.checkpoint()
    shards = checkpoint.shards
    store, key, folder = "", "", ""
    kind = "http"
    if all(shard.is_local for shard in shards):
        kind = "folder"
        first = shards[0]
        folder = (first.segments[0].local or "").removesuffix("/" + first.path)
    elif checkpoint.uri.startswith("s3://"):
        kind = "s3"
        store, key = _split(checkpoint.uri, settings)
    model = describe(checkpoint.name, [shard.header for shard in shards], {})
    if not model.bytes:
        raise UnavailableError(f"{checkpoint.uri} has no tensors to load", retryable=False)
    return Target(
        # Children run in another folder.
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


def _split(uri: str, settings: Settings) -> tuple[str, str]:
    """Store and folder of a model in a bucket."""
    try:
        configured = settings.store_uri()
    except ConfigError:
        configured = ""
    bucket = "s3://" + uri.removeprefix("s3://").partition("/")[0]
    store = configured if configured.startswith("s3:") and uri.startswith(configured + "/") else bucket
    return store, uri.removeprefix(store).strip("/")
