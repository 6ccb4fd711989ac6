"""From a URI and settings to an origin."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from coldstream.errors import ConfigError, UsageError
from coldstream.model.names import checked_name, expanded, is_path, path_fault, split_revision
from coldstream.model.place_names import folder_name
from coldstream.model.uri import Uri
from coldstream.net.retry import Backoff, Retry
from coldstream.places.cdn_domain import cdn_of
from coldstream.places.origin import Origin
from coldstream.places.tree import folder_model, snapshot_of
from coldstream.settings import Settings

_FORMS = (
    "org/model, s3://bucket/org/model, https://host/org/model, hf://org/model[/folder][@revision] or file:///folder"
)
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def open_origin(
    uri: str | Uri, settings: Settings, *, retry: Retry | None = None, connections: int = 16, via: str = "auto"
) -> Origin:
    """The origin that a URI names. Touches no network.

    Args:
        uri: `org/model[@revision]` in the configured store; `s3://bucket/folder` with the configured endpoint and keys;
            `file:///folder` or a path that starts with "/", "." or "~"; `https://host/folder`;
            `hf://org/model[/folder][@revision]`. A folder inside a model, such as a component of a pipeline, is
            named like a model.
        settings: Where the store is and how to get in.
        retry: The policy of all requests; a fresh one by the settings when None.
        connections: How many requests will run at once.
        via: Whether weights of the configured bucket come through the CDN in front of it; see `cdn_of`.

    Raises:
        UsageError: It is no URI of a model.
        ConfigError: No store is configured, or wrongly.
    """
    retry = retry or Retry(Backoff(give_up_seconds=settings.retry_seconds))
    if Uri.of(uri).has_user:
        raise UsageError(
            f"{Uri.of(uri)} is given with a user or a password",
            hint="leave them out: keys of a bucket go into R2_ACCESS_KEY and R2_SECRET_KEY, the Hub's token into "
            "HF_TOKEN; for a web server, a token may be in the URL's query",
        )
    uri = Uri.of(uri).full
    scheme, mark, rest = uri.partition("://")
    scheme = scheme.lower() if mark else ""
    if via == "cdn" and not _in_bucket(uri, settings):
        raise ConfigError(
            "this model cannot come through the CDN: it is not in the configured bucket, which R2_CDN_DOMAIN serves",
            hint="name it as org/model, or choose `auto` or `s3` instead of `cdn`",
        )
    if scheme in {"http", "https"}:
        from coldstream.places.web_origin import WebOrigin

        return WebOrigin(uri, retry=retry)
    if scheme == "hf":
        return _hub(rest.strip("/"), settings, retry, connections)
    if scheme == "s3":
        return _bucket(f"s3://{rest.rstrip('/')}", settings, retry, connections, via)
    if scheme == "file":
        return _folder(_local(uri), settings)
    if is_path(uri):
        return _folder(Path(os.path.abspath(expanded(uri))), settings)
    if mark or not uri:
        raise UsageError(f"{scheme or repr(uri)} is no place that models are loaded from", hint=f"write {_FORMS}")
    name, revision = split_revision(uri.rstrip("/"))
    checked_name(name)
    store = settings.store_uri()
    if store.startswith("file:"):
        return _folder(_local(store) / name, settings, revision)
    return _bucket(f"{store}/{name}", settings, retry, connections, via, revision)


def scheme_of(uri: Uri, settings: Settings) -> str:
    """What a model is read by, such as "s3", "https", "hf" and "file"."""
    scheme, mark, _ = uri.full.partition("://")
    if mark:
        return scheme.lower()
    configured = None if is_path(uri.full) else _configured(settings)
    return "s3" if configured and configured.startswith("s3:") else "file"


def uses_tls(uri: Uri, settings: Settings) -> bool:
    """Whether a model's bytes will come over TLS, as far as its URI and the settings tell; a guess, for preparation."""
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


def _hub(rest: str, settings: Settings, retry: Retry, connections: int) -> Origin:
    from coldstream.places.hub_origin import HubOrigin

    place, _, revision = rest.partition("@")
    owner, _, inner = place.partition("/")
    model, _, folder = inner.partition("/")
    repo = f"{owner}/{model}" if model else owner
    if not _REPO.fullmatch(repo) or path_fault(place) or (revision and path_fault(revision)):
        raise UsageError(
            f"{str(Uri(f'hf://{rest}'))!r} names no repository",
            hint="write hf://org/model, hf://org/model@revision or hf://org/model/folder@revision",
        )
    return HubOrigin(
        repo,
        folder=folder,
        revision=revision or None,
        settings=settings,
        retry=retry,
        connections=connections,
    )


def _in_bucket(uri: str, settings: Settings) -> bool:
    """Whether a model lies in the configured bucket."""
    configured = _configured(settings) or ""
    if not configured.startswith("s3://"):
        return False
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return not is_path(uri)
    return scheme.lower() == "s3" and rest.partition("/")[0] == configured.removeprefix("s3://").partition("/")[0]


def _bucket(
    uri: str, settings: Settings, retry: Retry, connections: int, via: str, revision: str | None = None
) -> Origin:
    from coldstream.places.bucket_origin import StoredOrigin
    from coldstream.places.store_opening import open_store

    bucket, _, path = uri.removeprefix("s3://").partition("/")
    configured = _configured(settings)
    # A manifest may name objects relative to its store: within the configured one that is known.
    root = configured if configured and uri.startswith(configured + "/") else f"s3://{bucket}"
    folder = uri.removeprefix(root).strip("/")
    if not bucket or not path or path_fault(folder):
        raise UsageError(f"{str(Uri(uri))!r} names no model in a bucket", hint="write s3://bucket/org/model")
    cdn = cdn_of(settings, via) if _in_bucket(uri, settings) else None
    settings = replace(
        settings,
        values={**settings.values, "COLDSTREAM_STORE": root},
        origins={**settings.origins, "COLDSTREAM_STORE": "flag"},
    )
    store = open_store(settings, retry=retry, connections=connections)
    return StoredOrigin(
        store,
        folder,
        name=folder_name(folder.split("/"), bucket),
        cdn=cdn,
        revision=revision,
        ca_bundle=settings.get("AWS_CA_BUNDLE"),
    )


def _folder(folder: Path, settings: Settings, revision: str | None = None) -> Origin:
    from coldstream.places.folder_origin import FolderOrigin

    configured = _configured(settings)
    if configured and configured.startswith("file:"):
        root = _local(configured)
        if root in folder.parents:
            inside = folder.relative_to(root)
            return FolderOrigin(folder, name=folder_name(inside.parts, "model"), store=root, revision=revision)
    snapshot = snapshot_of(folder)
    if snapshot != folder or folder.parent.name == "snapshots":
        return FolderOrigin(snapshot, name=folder_name(folder_model(snapshot).split("/"), "model"))
    return FolderOrigin(folder, name=folder_name(folder.parts[-2:], "model"))


def _local(uri: str) -> Path:
    split = urlsplit(uri)
    if split.netloc not in {"", "localhost"} or not split.path.startswith("/"):
        raise UsageError(f"{uri} is no local folder", hint="write file:///absolute/path, with three slashes")
    return Path(os.path.abspath(unquote(split.path)))


def _configured(settings: Settings) -> str | None:
    try:
        return settings.store_uri()
    except ConfigError:
        return None
