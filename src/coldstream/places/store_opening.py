"""From a URI and settings to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from coldstream.errors import ConfigError
from coldstream.model.names import path_fault
from coldstream.net.retry import Retry
from coldstream.places.store import Store
from coldstream.settings import Settings


def open_store(settings: Settings, *, retry: Retry | None = None, connections: int = 10) -> Store:
    """The store that the settings name. Touches no network.

    Args:
        settings: Where it is and how to get in.
        retry: The policy for its calls; a fresh default one when None.
        connections: How many requests will run at once.

    Raises:
        ConfigError: No store is configured, or its URI or endpoint is malformed.
    """
    uri = settings.store_uri()
    split = urlsplit(uri)
    if split.scheme == "file":
        from coldstream.places.folder_store import FolderStore

        if split.netloc not in ("", "localhost") or not split.path.startswith("/"):
            raise ConfigError(f"{uri} is no local folder", hint="write file:///absolute/path, with three slashes")
        return FolderStore(Path(unquote(split.path)), retry=retry)
    from coldstream.places.s3_store import S3Store

    prefix = split.path.strip("/")
    if split.scheme != "s3" or not split.netloc or (prefix and path_fault(prefix)):
        raise ConfigError(f"{uri!r} is no store", hint="write s3://bucket, s3://bucket/prefix or file:///folder")
    return S3Store(split.netloc, prefix=prefix, settings=settings, retry=retry, connections=connections)
