"""From a URI and settings to a place, and to a model there. Touches no network.

The modules of the places are imported when they are used: boto3 takes 300 ms.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from coldstream.errors import ConfigError, UsageError
from coldstream.machine.parallel import THREADS_MAX
from coldstream.model.names import Uri, checked_name, expanded, folder_name, is_path, path_fault, split_revision
from coldstream.net.retry import Backoff, Retry
from coldstream.places.cdn_domain import cdn_of
from coldstream.places.tree import folder_model, snapshot_of
from coldstream.settings import Settings

if TYPE_CHECKING:
    from coldstream.places.model_reader import ModelReader
    from coldstream.places.place import Store

_FORMS = (
    "org/model, s3://bucket/org/model, https://host/org/model, hf://org/model[/folder][@revision] or file:///folder"
)


def open_store(
    settings: Settings, uri: str | None = None, *, retry: Retry | None = None, connections: int = 10
) -> Store:
    """The store that a URI names; ConfigError: none is configured, or its URI or endpoint is malformed."""
    uri = settings.store_uri() if uri is None else uri
    split = urlsplit(uri)
    prefix = split.path.strip("/")
    if split.scheme == "file":
        from coldstream.places.folder import Folder

        return Folder(_local(uri), retry=retry)
    if split.scheme == "s3" and split.netloc and not (prefix and path_fault(prefix)):
        from coldstream.places.s3_store import S3Store

        return S3Store(split.netloc, prefix=prefix, settings=settings, retry=retry, connections=connections)
    raise ConfigError(f"{uri!r} is not a store", hint="write s3://bucket, s3://bucket/prefix or file:///folder")


def open_model_reader(
    uri: str | Uri, settings: Settings, *, retry: Retry | None = None, via: str = "auto"
) -> ModelReader:
    """Opens the model that a URI names.

    The URI is `org/model[@revision]` in the configured store; `s3://bucket/folder` with the configured endpoint and
    keys; `file:///folder` or a path that starts with "/", "." or "~"; `https://host/folder`; or
    `hf://org/model[/folder][@revision]`. A folder inside a model, such as a component of a pipeline, is named like a
    model. `via`: whether weights of the configured bucket come through its CDN; see `cdn_of`.

    Raises:
        UsageError: It is not the URI of a model.
        ConfigError: No store is configured, or wrongly.
    """
    retry = retry or Retry(Backoff(give_up_seconds=settings.retry_seconds))
    parsed = Uri.of(uri)
    if parsed.has_user:
        raise UsageError(
            f"{parsed} is given with a user or a password",
            hint="leave them out: keys of a bucket go into R2_ACCESS_KEY and R2_SECRET_KEY, the Hub's token into "
            "HF_TOKEN; for a web server, a token may be in the URL's query",
        )
    uri = parsed.full
    scheme, mark, rest = uri.partition("://")
    scheme = scheme.lower() if mark else ""
    if via == "cdn" and not _is_in_bucket(uri, settings):
        raise ConfigError(
            "this model cannot come through the CDN: it is not in the configured bucket, which R2_CDN_DOMAIN serves",
            hint="name it as org/model, or choose `auto` or `s3` instead of `cdn`",
        )
    if scheme in {"http", "https"}:
        from coldstream.places.web import WebModelReader

        return WebModelReader(uri, retry=retry)
    if scheme == "hf":
        from coldstream.places.model_reader import HubModelReader

        return HubModelReader(rest.strip("/"), settings, retry=retry, connections=THREADS_MAX)
    if scheme == "file" or is_path(uri):
        return _in_folder(_local(uri) if mark else Path(os.path.abspath(expanded(uri))), settings, retry)
    if scheme == "s3":
        return _in_store(f"s3://{rest.rstrip('/')}", settings, retry, via)
    if mark or not uri:
        raise UsageError(f"models cannot be loaded from {scheme or repr(uri)}", hint=f"write {_FORMS}")
    name, revision = split_revision(uri.rstrip("/"))
    checked_name(name)
    store = settings.store_uri()
    if store.startswith("file:"):
        return _in_folder(_local(store) / name, settings, retry, revision)
    return _in_store(f"{store}/{name}", settings, retry, via, revision)


def scheme_of(uri: Uri, settings: Settings) -> str:
    """The kind of a model's place: "s3", "https", "hf" or "file"."""
    scheme, mark, _ = uri.full.partition("://")
    if mark:
        return scheme.lower()
    return "s3" if not is_path(uri.full) and _configured(settings).startswith("s3:") else "file"


def uses_tls(uri: Uri, settings: Settings) -> bool:
    """Whether a model's bytes will probably come over TLS; for preparation."""
    scheme = scheme_of(uri, settings)
    with suppress(ConfigError):
        if (cdn := cdn_of(settings)) is not None and cdn.url.startswith("https:") and scheme == "s3":
            return True
    try:
        where = {"s3": settings.endpoint() or "https:", "hf": settings.get("HF_ENDPOINT") or "https:"}.get(
            scheme, uri.full
        )
    except ConfigError:
        return False
    return where.lower().startswith("https:")


def _is_in_bucket(uri: str, settings: Settings) -> bool:
    own, (scheme, *rest) = _configured(settings).split("/")[:3], uri.split("/")[:3]
    return own[0] == "s3:" and ([scheme.lower(), *rest] == own if "://" in uri else not is_path(uri))


def _in_store(uri: str, settings: Settings, retry: Retry, via: str, revision: str | None = None) -> ModelReader:
    from coldstream.places.model_reader import ModelReader

    bucket, _, path = uri.removeprefix("s3://").partition("/")
    configured = _configured(settings)
    # A manifest may name objects relative to its store: within the configured one that is known.
    root = configured if configured and uri.startswith(configured + "/") else f"s3://{bucket}"
    folder = uri.removeprefix(root).strip("/")
    if not bucket or not path or path_fault(folder):
        raise UsageError(f"{str(Uri(uri))!r} does not name a model in a bucket", hint="write s3://bucket/org/model")
    return ModelReader(
        open_store(settings, root, retry=retry, connections=THREADS_MAX),
        folder,
        label=uri,
        name=folder_name(folder.split("/"), bucket),
        cdn=cdn_of(settings, via) if _is_in_bucket(uri, settings) else None,
        revision=revision,
    )


def _in_folder(folder: Path, settings: Settings, retry: Retry, revision: str | None = None) -> ModelReader:
    from coldstream.places.folder import FolderSnapshot
    from coldstream.places.model_reader import ModelReader

    configured = _configured(settings)
    if configured.startswith("file:"):
        root = _local(configured)
        if root in folder.parents:
            inside = folder.relative_to(root)
            name = folder_name(inside.parts, "model")
            place = FolderSnapshot(root, retry=retry)
            return ModelReader(place, inside.as_posix(), label=folder.as_uri(), name=name, revision=revision)
    snapshot = snapshot_of(folder)
    is_cached = snapshot != folder or folder.parent.name == "snapshots"
    segments = folder_model(snapshot).split("/") if is_cached else folder.parts[-2:]
    return ModelReader(
        FolderSnapshot(snapshot, retry=retry), "", label=snapshot.as_uri(), name=folder_name(segments, "model")
    )


def _local(uri: str) -> Path:
    split = urlsplit(uri)
    if split.netloc not in {"", "localhost"} or not split.path.startswith("/"):
        raise ConfigError(f"{uri} is not a local folder", hint="write file:///absolute/path, with three slashes")
    return Path(os.path.abspath(unquote(split.path)))


def _configured(settings: Settings) -> str:
    """The configured store, or ""."""
    try:
        return settings.store_uri()
    except ConfigError:
        return ""
