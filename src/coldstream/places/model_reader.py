"""A model at a place: its checkpoint, its small files, and fresh links to its shards."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from coldstream.errors import ConfigError, NotFoundError, UsageError
from coldstream.model.names import MANIFEST_BYTES_MAX, MANIFEST_NAME, Uri, checked_path, folder_name, path_fault
from coldstream.model.selection import choose_shards, small_files
from coldstream.net.retry import Retry
from coldstream.places.cdn_domain import CdnDomain
from coldstream.places.checkpoint import Checkpoint, ShardLocation, ShardObject, read_checkpoint
from coldstream.places.model_records import (
    ModelRecord,
    missing_model,
    nearest_record,
    read_adapter,
    read_record,
    whole_content,
)
from coldstream.places.place import Link, ObjectInfo, Place
from coldstream.settings import Settings

if TYPE_CHECKING:
    from coldstream.model.adapter import Adapter
    from coldstream.places.hub import HubSnapshot

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")
Contents = tuple[ModelRecord | None, Mapping[str, ObjectInfo]]


class ModelReader:
    """A model in a bucket or a folder; subclasses read it from the Hub and from web servers. Thread-safe.

    All methods raise NotFoundError, CredentialsError, UnavailableError and CancelledError; others where stated.
    `label` is for people, without a secret.
    """

    _place: Place

    def __init__(
        self,
        place: Place | None,
        folder: str,
        *,
        label: str,
        name: str,
        revision: str | None = None,
        cdn: CdnDomain | None = None,
    ) -> None:
        """Touches nothing. `folder` is relative to the root of the place, which is None where `_look` opens it."""
        if place is not None:
            self._place = place
        self._folder, self._name, self._revision, self._cdn = folder, name, revision, cdn
        self.label = label
        self._keys: Mapping[str, Sequence[str]] = {}  # of the objects of the last checkpoint's shards, by path
        self._contents: Contents | None = None
        self._salt = ""
        self._answer_seconds = 0.0  # how long the place took to answer with the manifest

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label})"

    def checkpoint(self) -> Checkpoint:
        """Finds the weights and reads their headers.

        Raises:
            NotFoundError: There is no model, it has no safetensors, or its upload is not complete.
            IntegrityError: The manifest, the index or a header is damaged.
            ConflictError: A file was replaced while it was being read.
        """
        # The headers are read over the manifest's connection. The Hub is opened by looking.
        place: Place | None = getattr(self, "_place", None)
        with place.session() if place is not None else nullcontext():
            self._contents = self._look()
            return self._read_shards(*self._contents)

    def _read_shards(self, record: ModelRecord | None, listing: Mapping[str, ObjectInfo]) -> Checkpoint:
        with self._place.session():
            paths, left_out = self._choose((record, listing))
            locations = [self._locate_shard(path, record, listing) for path in paths]
            self._keys = {shard.path: [stored.key for stored in shard.objects] for shard in locations}
            return self._through_cdn(self._read_headers(locations, record, left_out))

    def renew(self, path: str, segment: int = 0) -> Link:
        """A fresh link to a segment of a shard of the last `checkpoint`: links expire."""
        return self._place.renew(self._keys[path][segment], where=self._where(path))

    def names(self) -> Sequence[str]:
        """The files beside the weights that an engine needs, sorted: config.json, the tokenizer's and so on."""
        record, listing = self._look_once()
        if record:
            return small_files({path: entry.size for path, entry in record.entries.items()}, stored=True)
        return small_files({path: info.size for path, info in listing.items() if not info.fault}, stored=False)

    def read(self, path: str, bytes_max: int) -> bytes:
        """The content of one of `names`; IntegrityError if it is larger or not as the manifest says."""
        record, _ = self._look_once()
        checked_path(path, where=self.label)
        if record is None:
            return self._place.get(self._key(path), bytes_max=bytes_max)[0]
        if path not in record.entries:
            raise NotFoundError(f"{self._where(path)} does not exist", target=self._where(path))
        return whole_content(
            record.entries[path],
            lambda stored: self._place.get(self._key(stored.key), bytes_max=bytes_max)[0],
            bytes_max=bytes_max,
            where=self._where(path),
        )

    def adapter(self) -> Adapter | None:
        """What is known of it as an adapter; None of a model. Raises what `read_adapter` raises."""
        record, listing = self._look_once()
        recorded = record.adapter if record else None
        return read_adapter(recorded, record.entries if record else listing, self.read, where=self.label)

    def _look_once(self) -> Contents:
        if self._contents is None:
            self._contents = self._look()
        return self._contents

    def _look(self) -> Contents:
        """The manifest, or the model's files by their paths."""
        if nearest := nearest_record(self._folder, self._read_record):
            outer, record = nearest
            inner = self._folder.removeprefix(outer).removeprefix("/")
            if below := record.below(inner, model=outer) if inner else record:
                return below, {}
        listing = self._list()
        if self._revision is not None:
            from coldstream.model.manifest import check_revision

            check_revision(None, self._revision, where=self.label)
        return None, listing

    def _list(self) -> Mapping[str, ObjectInfo]:
        prefix = self._key("")
        listing = {}
        for info in self._place.list(prefix):
            # Consoles make "folders" as empty objects whose keys end in "/".
            if not info.key.endswith("/"):
                path = info.key.removeprefix(prefix)
                listing[path if info.fault else checked_path(path, where=self.label)] = info
        if not listing:
            raise missing_model(self._place, self._folder)
        return listing

    def _read_record(self, folder: str) -> ModelRecord | None:
        key = f"{folder}/{MANIFEST_NAME}" if folder else MANIFEST_NAME
        if self._place.pins_by_etag:
            # While a bucket answers: msgspec takes 30 ms to import.
            threading.Thread(target=import_module, args=("coldstream.model.manifest",), daemon=True).start()
        try:
            data, info = self._place.get(key, bytes_max=MANIFEST_BYTES_MAX)
        except NotFoundError:
            return None
        self._answer_seconds = info.answer_seconds
        return read_record(data, where=f"{self._place.uri}/{key}", revision=self._revision)

    def _choose(self, contents: Contents) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """The paths of the shards, and the weights that are left out, with the reason."""
        record, listing = contents
        is_checked = bool(record and record.is_whole)
        shards, left_out = choose_shards(record.entries if record else listing, self.read, is_checked=is_checked)
        if not shards and not record:
            self._refuse_without_weights(listing)
        return shards, left_out

    def _refuse_without_weights(self, listing: Mapping[str, ObjectInfo]) -> None:
        if self._folder and all("/" in path for path in listing):
            raise missing_model(self._place, self._folder, listing)

    def _locate_shard(self, path: str, record: ModelRecord | None, listing: Mapping[str, ObjectInfo]) -> ShardLocation:
        where = self._where(path)
        if record:
            entry = record.entries[path]
            pins = self._place.pins_by_etag
            objects = tuple(
                ShardObject(
                    key=self._key(stored.key),
                    size=stored.size,
                    etag=stored.etag if pins and stored.etag != "-" else None,
                )
                for stored in entry.objects
            )
            return ShardLocation(path=path, where=where, entry=entry, objects=objects)
        info = listing.get(path)
        if info and info.fault:
            raise NotFoundError(f"{where} cannot be loaded: {info.fault}", target=where)
        # A listing's ETag may be missing, and differs from that of a GET on some servers: the GET's counts.
        stored = ShardObject(key=self._key(path), size=info.size if info else None)
        return ShardLocation(path=path, where=where, objects=(stored,))

    def _read_headers(
        self, locations: Sequence[ShardLocation], record: ModelRecord | None, left_out: Mapping[str, str]
    ) -> Checkpoint:
        version = record.version if record else self._listing_version()
        return read_checkpoint(
            self._place,
            locations,
            uri=self.label,
            name=self._name,
            version=version,
            left_out=left_out,
            salt=self._salt,
            answer_seconds=self._answer_seconds,
        )

    def _listing_version(self) -> str | None:
        """The version of a model without a manifest, if its place has one."""
        return None

    def _through_cdn(self, checkpoint: Checkpoint) -> Checkpoint:
        if self._cdn is None:
            return checkpoint
        link = (self._cdn.url, self._cdn.headers)
        if not checkpoint.verified:
            return replace(checkpoint, cdn=link)
        # Its root is the bucket's, not the store's.
        prefix = self._place.uri.partition("://")[2].partition("/")[2]
        shards = tuple(
            self._cdn.before(shard, [f"{prefix}/{key}" if prefix else key for key in self._keys[shard.path]])
            for shard in checkpoint.shards
        )
        return replace(checkpoint, shards=shards, cdn=link)

    def _key(self, key: str) -> str:
        """The place's key of one that is relative to the model; with a leading "/", to the place's root."""
        if key.startswith("/") and not self._folder:
            raise ConfigError(
                f"{self.label}: its manifest names {key!r}, relative to a store that is not known here",
                hint="name the model as org/model in its store, for example with --store file:///folder",
            )
        if key.startswith("/"):
            return key[1:]
        return f"{self._folder}/{key}" if self._folder else key

    def _where(self, path: str) -> str:
        return f"{self.label}/{path}"


class HubModelReader(ModelReader):
    """A repository on the Hub, or a folder in one. Each `checkpoint` pins the commit anew."""

    _place: HubSnapshot

    def __init__(self, rest: str, settings: Settings, *, retry: Retry, connections: int) -> None:
        """Prepares to read `rest`, which is `org/model[/folder][@revision]`; touches no network. Raises UsageError."""
        name, _, revision = rest.partition("@")
        owner, _, inner = name.partition("/")
        model, _, folder = inner.partition("/")
        self._repo = f"{owner}/{model}" if model else owner
        if not _REPO.fullmatch(self._repo) or path_fault(name) or (revision and path_fault(revision)):
            raise UsageError(
                f"{str(Uri(f'hf://{rest}'))!r} is not a repository on the Hub",
                hint="write hf://org/model, hf://org/model@revision or hf://org/model/folder@revision",
            )
        super().__init__(None, folder, label=f"hf://{rest}", name=folder_name(name.split("/"), "model"))
        self._pinned_revision = revision or None
        self._settings, self._retry, self._connections = settings, retry, connections

    def _look(self) -> Contents:
        # Imported here: huggingface_hub takes half a second.
        from coldstream.places.hub import HubSnapshot

        self._place = HubSnapshot(
            self._repo,
            revision=self._pinned_revision,
            settings=self._settings,
            retry=self._retry,
            connections=self._connections,
        )
        prefix = self._key("")
        listing = {
            checked_path(info.key, where=self.label).removeprefix(prefix): info for info in self._place.list(prefix)
        }
        if self._folder and not listing:
            raise NotFoundError(f"there are no files in {self.label}", target=self.label)
        return None, listing

    def _refuse_without_weights(self, listing: Mapping[str, ObjectInfo]) -> None:
        if branches := self._place.branches_with_weights():
            raise NotFoundError(
                f"{self.label} has no safetensors weights, but its branches {', '.join(branches)} have some",
                hint=f"name one of them: {shlex.quote(f'hf://{self._repo}@{branches[0]}')}",
                target=self.label,
            )

    def _listing_version(self) -> str:
        return self._place.commit
