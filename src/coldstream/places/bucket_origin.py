"""A model in a bucket. Listing and manifest go through the store; bytes come from links that it presigns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from coldstream.errors import NotFoundError
from coldstream.model.job import Headers
from coldstream.model.names import MANIFEST_BYTES_MAX, MANIFEST_NAME, checked_path
from coldstream.places.cdn_domain import CdnDomain
from coldstream.places.origin import Checkpoint, Link
from coldstream.places.origin_records import Record, nearest_record, no_record, read_record, whole_content
from coldstream.places.shard_choice import choose, recorded_files, small_files
from coldstream.places.shard_headers import Found, Part, Piece, checkpoint_of
from coldstream.places.small_reads import Reader, arrived
from coldstream.places.store import ObjectInfo, Store

# Longer than any load. Temporary credentials may end sooner, and their links with them: then `renew` is asked.
LINK_SECONDS = 12 * 3600


class StoredOrigin:
    """A model in an object store. Implements `Origin`."""

    def __init__(
        self,
        store: Store,
        folder: str,
        *,
        name: str,
        cdn: CdnDomain | None = None,
        revision: str | None = None,
        ca_bundle: str | None = None,
    ) -> None:
        """Prepares; nothing is asked yet.

        Args:
            store: What it is in.
            folder: Its keys' prefix in the store, without a slash at the end.
            name: For people and for folders.
            cdn: What stands in front of the bucket, or None.
            revision: What it must be; see `check_revision`.
            ca_bundle: File of the certificates to trust, in place of the environment's AWS_CA_BUNDLE.
        """
        self._store, self._folder, self._name, self._cdn = store, folder, name, cdn
        self._revision = revision
        self.label = f"{store.uri}/{folder}"
        self._reader = Reader(
            store.retry,
            forbidden="the key may lack the permission to read this object, or the credentials have expired",
            ca_bundle=ca_bundle,
        )
        self._keys: Mapping[str, Sequence[str]] = {}  # of the objects of the last checkpoint's shards, by path
        self._contents: tuple[Record | None, Mapping[str, ObjectInfo]] | None = None

    def __repr__(self) -> str:
        return f"StoredOrigin({self.label})"

    def checkpoint(self) -> Checkpoint:
        with self._reader:
            return self._checkpoint()

    def _checkpoint(self) -> Checkpoint:
        record, listing = self._look()
        choice = choose(record.entries if record else listing, self.read, is_checked=bool(record and record.is_whole))
        paths = choice.shards
        if not paths and all("/" in path for path in listing) and not record:
            raise self._missing(listing)
        if record:
            entries = [record.entries[path] for path in paths]
            self._keys = {entry.path: [self._key(stored.key) for stored in entry.objects] for entry in entries}
            found = [
                Found(
                    path=entry.path,
                    where=self._where(entry.path),
                    entry=entry,
                    parts=tuple(
                        Part(
                            size=stored.size,
                            etag=stored.etag if stored.etag != "-" else None,
                            read=partial(self._read_range, entry.path, number),
                            rest=partial(self._rest, entry.path, number),
                        )
                        for number, stored in enumerate(entry.objects)
                    ),
                )
                for entry in entries
            ]
        else:
            self._keys = {path: [self._key(path)] for path in paths}
            # A listing's ETag may be missing, and differs from that of a GET on some servers: the GET's counts.
            found = [
                Found(
                    path=path,
                    where=self._where(path),
                    parts=(Part(size=listing[path].size, read=partial(self._read_range, path, 0)),),
                )
                for path in paths
            ]
        version = record.version if record else None
        checkpoint = checkpoint_of(found, uri=self.label, name=self._name, version=version, left_out=choice.left_out)
        if self._cdn is None:
            return checkpoint
        link = (self._cdn.url, self._cdn.headers)
        if record is None:
            return replace(checkpoint, cdn=link)
        # Its root is the bucket's, not the store's.
        prefix = self._store.uri.removeprefix("s3://").partition("/")[2]
        shards = tuple(
            self._cdn.before(shard, [f"{prefix}/{key}" if prefix else key for key in self._keys[shard.path]])
            for shard in checkpoint.shards
        )
        return replace(checkpoint, shards=shards, cdn=link)

    def renew(self, path: str, segment: int = 0) -> Link:
        return self._store.presign(self._keys[path][segment], seconds=LINK_SECONDS), ()

    def names(self) -> Sequence[str]:
        record, listing = self._contents or self._look()
        if record:
            return recorded_files(record)
        return small_files({path: info.size for path, info in listing.items()}, stored=False)

    def read(self, path: str, bytes_max: int) -> bytes:
        record, _ = self._contents or self._look()
        checked_path(path, where=self.label)
        if record is None:
            return self._store.get(self._key(path), bytes_max=bytes_max)[0]
        if path not in record.entries:
            raise NotFoundError(f"{self._where(path)} does not exist", target=self._where(path))
        return whole_content(
            record.entries[path],
            lambda stored: self._store.get(self._key(stored.key), bytes_max=bytes_max)[0],
            bytes_max=bytes_max,
            where=self._where(path),
        )

    def _missing(self, listing: Iterable[str] = ()) -> NotFoundError:
        # Imported here: it brings all of `mirror`, which a load does not need.
        from coldstream.places.model_listing import missing_model

        return missing_model(self._store, self._folder, listing)

    def _look(self) -> tuple[Record | None, Mapping[str, ObjectInfo]]:
        """The manifest, or else what lies there."""
        record, listing = nearest_record(self._folder, self._record), {}
        if record is None:
            prefix = self._key("")
            listing = {
                checked_path(info.key.removeprefix(prefix), where=self.label): info
                for info in self._store.list(prefix)
                # Consoles make "folders" as empty objects whose keys end in "/".
                if not info.key.endswith("/")
            }
            if not listing:
                raise self._missing()
            no_record(self.label, self._revision)
        # The links lead to the server that has just answered.
        self._reader.reached = True
        self._contents = record, listing
        return self._contents

    def _record(self, folder: str) -> Record | None:
        key = f"{folder}/{MANIFEST_NAME}"
        try:
            data, _ = self._store.get(key, bytes_max=MANIFEST_BYTES_MAX)
        except NotFoundError:
            return None
        return read_record(data, where=f"{self._store.uri}/{key}", revision=self._revision)

    def _rest(self, path: str, segment: int) -> tuple[str, Headers, None]:
        return *self.renew(path, segment), None

    def _read_range(self, path: str, segment: int, start: int, stop: int, etag: str | None) -> Piece:
        link = self.renew(path, segment)
        found = self._reader.get(
            link, where=self._where(path), start=start, stop=stop, bytes_max=stop - start, etag=etag
        )
        url, headers = arrived(link, found)
        return Piece(
            body=found.body, size=found.size, etag=found.etag, stamp=found.etag or "", url=url, headers=headers
        )

    def _key(self, key: str) -> str:
        """The store's key of one that is relative to the model; with a leading "/", to the store."""
        return key[1:] if key.startswith("/") else f"{self._folder}/{key}"

    def _where(self, path: str) -> str:
        return f"{self.label}/{path}"
