"""The manifest object in the store: read, taken over by an upload, kept up to date, and completed.

All writes are conditional on the version that was seen last. Who finds that condition broken has lost the model to
another upload, and stops. On a store that ignores conditions the version is looked at before each write, which leaves
a moment for two uploads to miss each other; `setup` tells which kind of store it is.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from coldstream.errors import ConflictError, IntegrityError, ManifestError, NotFoundError
from coldstream.model.manifest import FileEntry, Journal, Manifest, Provenance, digest_of, parse, serialize
from coldstream.model.names import MANIFEST_BYTES_MAX, MANIFEST_NAME
from coldstream.package import __version__
from coldstream.places.store import Store, honours_conditions

TOOL = f"coldstream {__version__}"


def record_key(name: str) -> str:
    """Where a model's manifest is."""
    return f"{name}/{MANIFEST_NAME}"


def read_record(store: Store, name: str) -> tuple[Manifest | Journal, str] | None:
    """A model's manifest or journal and its ETag; None when it has neither.

    Raises:
        ManifestError: What is there cannot be trusted.
    """
    key = record_key(name)
    try:
        data, info = store.get(key, bytes_max=MANIFEST_BYTES_MAX)
    except NotFoundError:
        return None
    except IntegrityError as exc:  # it is too long for one
        raise ManifestError(exc.message, hint="remove the model: coldstream remove", target=exc.target) from exc
    return parse(data, where=f"{store.uri}/{key}"), info.etag


class JournalWriter:
    """The journal of one upload. Thread-safe; writes are grouped and spaced as the store wants them.

    Attributes:
        conditional: Whether the store honours conditions; known after `open`.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        source: Provenance,
        planned: tuple[int, int, int],
        entries: Iterable[FileEntry],
        etag: str | None,
    ) -> None:
        """Prepares; nothing is written.

        Args:
            store: Where.
            name: The model's.
            source: Where it comes from.
            planned: Files, bytes and shards that it will have.
            entries: What is stored already.
            etag: The present version of the manifest object, None when there is none.
        """
        self.conditional = True
        self._store, self._name, self._source, self._planned = store, name, source, planned
        self._key = record_key(name)
        self._entries = {entry.path: entry for entry in entries}
        self._etag = etag
        self._writer = uuid.uuid4().hex
        self._writing = threading.Lock()
        self._changing = threading.Lock()
        self._version = 0
        self._written = -1
        self._written_at = float("-inf")

    def open(self) -> None:
        """Takes the model over: from now on it is not ready, and any earlier upload of it will find out.

        Raises:
            ConflictError: Somebody else did so at this moment.
        """
        body = self._write()
        self.conditional = honours_conditions(self._store, self._key, body)
        if not self.conditional:
            # The probe wrote the same bytes again; their version may have a new name.
            self._etag = self._store.head(self._key).etag

    def add(self, entry: FileEntry) -> None:
        """Notes a file. Written with the next write."""
        with self._changing:
            self._entries[entry.path] = entry
            self._version += 1

    def add_durably(self, entry: FileEntry) -> None:
        """Notes a file and returns when that is stored.

        Raises:
            ConflictError: Another upload has taken the model over.
        """
        with self._changing:
            self._entries[entry.path] = entry
            self._version += 1
            version = self._version
        self.flush(version)

    def flush(self, version: int | None = None) -> None:
        """Writes what is noted, up to `version` at least; several waiting threads share one write."""
        with self._writing:
            if self._written < (self._version if version is None else version):
                self._write()

    def flush_if_due(self, seconds: float = 3.0) -> None:
        """Writes what is noted if anything is and the last write is so long ago and nobody is writing."""
        if self._written == self._version or time.monotonic() - self._written_at < seconds:
            return
        if self._writing.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._writing.release()

    def check(self) -> None:
        """Makes sure that the model is still ours.

        Raises:
            ConflictError: Another upload has taken it over.
        """
        with self._writing, self._lost_is_said():
            if self._etag != self._store.head(self._key).etag:
                raise ConflictError("the manifest was replaced")

    def commit(self, entries: Iterable[FileEntry]) -> str:
        """Makes the model ready with exactly these files, and returns the manifest's digest.

        Raises:
            ConflictError: Another upload has taken the model over.
        """
        with self._writing:
            manifest = Manifest(
                name=self._name,
                source=self._source,
                created=_now(),
                tool=TOOL,
                files=tuple(sorted(entries, key=lambda entry: entry.path)),
            )
            body = serialize(manifest)
            self._put(body)
        return digest_of(body)

    def _write(self) -> bytes:
        with self._changing:
            version, entries = self._version, tuple(self._entries.values())
        files, size, shards = self._planned
        journal = Journal(
            name=self._name,
            source=self._source,
            created=_now(),
            tool=TOOL,
            writer=self._writer,
            planned_files=files,
            planned_bytes=size,
            planned_shards=shards,
            files=entries,
        )
        body = serialize(journal)
        self._put(body)
        self._written = version
        return body

    def _put(self, body: bytes) -> None:
        pause = self._written_at + self._store.write_interval_seconds - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        with self._lost_is_said():
            if not self.conditional and self._etag != self._store.head(self._key).etag:
                raise ConflictError("the manifest was replaced")
            self._etag = self._store.put(self._key, body, if_match=self._etag, if_absent=self._etag is None)
        self._written_at = time.monotonic()

    @contextmanager
    def _lost_is_said(self) -> Iterator[None]:
        try:
            yield
        except (ConflictError, NotFoundError) as exc:
            raise ConflictError(
                f"another upload or removal of {self._name} took over; this one stops",
                hint="wait until it is done and look with: coldstream list",
                target=f"{self._store.uri}/{self._key}",
            ) from exc


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)
