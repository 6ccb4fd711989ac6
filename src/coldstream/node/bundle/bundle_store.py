"""Finds, fetches, publishes, lists and removes bundles in the store.

An archive is written first, with its SHA-256 as its name; then its pointer, on the condition that no other node has
written one since. An interrupted publication leaves an archive that no pointer names; the next one removes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import BinaryIO

from coldstream.errors import ColdstreamError, ConflictError, IntegrityError, NotFoundError
from coldstream.node.bundle.archive import sha256_of
from coldstream.node.bundle.bundle_key import Key
from coldstream.node.bundle.bundle_pointer import (
    POINTER_BYTES_MAX,
    Pointer,
    decode,
    decode_unverified,
    encode,
    is_signed,
)
from coldstream.places.place import ObjectInfo, Store, UploadPart
from coldstream.units import MIB

ROOT = ".coldstream/bundles"
_POINTER = ".bundle"
_ARCHIVE = ".tar.gz"
_READS = ".reads"
# One connection to R2 gives some tens of megabytes a second.
_RANGE_BYTES = 8 * MIB
_CONNECTIONS = 8
# How many bundles, the newest, are compared with a start to find the nearest one.
_NEAREST_MAX = 16
# Larger ones are stored in parts.
_SINGLE_BYTES_MAX = 64 * MIB
_PART_BYTES = 32 * MIB
# A node may still be fetching what a pointer named until now, or be about to write the pointer that names it.
_KEPT = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPointer:
    """A pointer in the store.

    Attributes:
        pointer: Verified.
        etag: Its version.
    """

    pointer: Pointer
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleEntry:
    """A bundle, for people.

    Attributes:
        name: The model's.
        key: Of the start that it fits.
        state: "signed" with this key; "unverified" when there is no key to tell; "foreign": signed with another key;
            "unreadable".
        pointer: What it says; None when unreadable. Not to be trusted unless "signed".
    """

    name: str
    key: str
    state: str
    pointer: Pointer | None


class BundleStore:
    """The bundles of one model in a store. Thread-safe.

    Attributes:
        name: The model's.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name

    def __repr__(self) -> str:
        return f"BundleStore({self.store.uri}/{ROOT}/{self.name})"

    def find(self, key: str, secret: bytes) -> StoredPointer | None:
        """The bundle of a key.

        Raises:
            IntegrityError: It cannot be trusted: not signed with this key, or put there in place of another.
        """
        try:
            data, info = self.store.get(self._key(key + _POINTER), bytes_max=POINTER_BYTES_MAX)
        except NotFoundError:
            return None
        pointer = decode(data, secret)
        if pointer.key != key:
            raise IntegrityError(f"it is the bundle of another start, {pointer.key[:12]}")
        return StoredPointer(pointer=pointer, etag=info.etag)

    def nearest(self, key: Key, secret: bytes) -> tuple[int, Pointer] | None:
        """The bundle whose key differs from this one in the fewest parts, and how many there are to choose from.

        Only bundles that are signed with this secret count, and of those the `_NEAREST_MAX` published last.
        """
        objects = [info for info in self.store.list(f"{ROOT}/{self.name}/") if info.key.endswith(_POINTER)]
        newest = sorted(objects, key=lambda info: info.modified, reverse=True)[:_NEAREST_MAX]

        def read(info: ObjectInfo) -> Pointer | None:
            with suppress(IntegrityError, NotFoundError):
                return decode(self.store.get(info.key, bytes_max=POINTER_BYTES_MAX)[0], secret)
            return None

        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            pointers = [pointer for pointer in pool.map(read, newest) if pointer is not None]
        best = min(pointers, key=lambda pointer: len(key.differences(pointer.parts)), default=None)
        return None if best is None else (len(pointers), best)

    def etag(self, key: str) -> str | None:
        """The version of a key's pointer, whatever it says; None when there is none."""
        try:
            return self.store.head(self._key(key + _POINTER)).etag
        except NotFoundError:
            return None

    def fetch(self, pointer: Pointer, out: BinaryIO) -> None:
        """Brings an archive, verified.

        Args:
            pointer: Whose.
            out: An empty file, where it goes; left at its start.

        Raises:
            NotFoundError: It is gone.
            IntegrityError: It is not the one that the pointer names.
        """
        size, descriptor = pointer.archive.size, out.fileno()
        os.ftruncate(descriptor, size)
        key = self._key(pointer.archive.sha256 + _ARCHIVE)

        def fetch_range(start: int) -> None:
            buffer = bytearray(min(_RANGE_BYTES, size - start))
            self.store.read_into(key, start, memoryview(buffer))
            os.pwrite(descriptor, buffer, start)

        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for _ in pool.map(fetch_range, range(0, size, _RANGE_BYTES)):
                pass
        out.seek(0)
        if sha256_of(out) != (pointer.archive.sha256, size):
            raise IntegrityError("the archive is not the one that was signed")
        out.seek(0)

    def fetch_reads(self, pointer: Pointer) -> bytes | None:
        """The record of what to read ahead, verified; None when there is none.

        Raises:
            NotFoundError: It is gone.
            IntegrityError: It is not the one that the pointer names.
        """
        if pointer.reads is None:
            return None
        data, _ = self.store.get(self._key(pointer.reads.sha256 + _READS), bytes_max=pointer.reads.size)
        if hashlib.sha256(data).hexdigest() != pointer.reads.sha256:
            raise IntegrityError("the record of reads is not the one that was signed")
        return data

    def publish(
        self, pointer: Pointer, archive: BinaryIO, reads: bytes | None, secret: bytes, *, replaces: str | None
    ) -> None:
        """Stores a bundle.

        Args:
            pointer: What it is.
            archive: Its file.
            reads: Its record of reads, or None.
            secret: The signing key.
            replaces: The version of the pointer that was there, or None when there was none.

        Raises:
            ConflictError: Another node published at the same time; nothing of this bundle is left.
            CredentialsError: These keys may not write.
        """
        ours = [self._put_archive(pointer, archive)]
        if pointer.reads is not None and reads is not None:
            ours.append(self._key(pointer.reads.sha256 + _READS))
            self.store.put(ours[-1], reads)
        key = self._key(pointer.key + _POINTER)
        try:
            self.store.put(key, encode(pointer, secret), if_match=replaces, if_absent=replaces is None)
        except ConflictError:
            # Theirs may name the same content.
            with suppress(ColdstreamError):
                self.store.delete([name for name in ours if name not in self._named()])
            raise
        with suppress(ColdstreamError):
            self._sweep(_KEPT)

    def entries(self, secret: bytes | None) -> list[BundleEntry]:
        """All bundles of the model, by key."""
        return [entry for entry in entries(self.store, secret, self.name) if entry.name == self.name]

    def remove(self, keys: Sequence[str] | None = None) -> int:
        """Removes bundles, the pointers first, and then all that none names.

        Args:
            keys: Which; None for all.

        Returns:
            How many pointers went.
        """
        objects = [info.key for info in self.store.list(f"{ROOT}/{self.name}/")]
        if keys is None:
            pointers = [key for key in objects if key.endswith(_POINTER)]
            self.store.delete(pointers)
            self.store.delete([key for key in objects if key not in pointers])
            return len(pointers)
        pointers = [key for key in objects if key in {self._key(digest + _POINTER) for digest in keys}]
        self.store.delete(pointers)
        self._sweep(timedelta(0))
        return len(pointers)

    def _put_archive(self, pointer: Pointer, file: BinaryIO) -> str:
        key, size, descriptor = self._key(pointer.archive.sha256 + _ARCHIVE), pointer.archive.size, file.fileno()
        if size <= _SINGLE_BYTES_MAX:
            self.store.put(key, os.pread(descriptor, size, 0))
            return key
        upload = self.store.create_upload(key)
        try:
            parts = []
            for number, start in enumerate(range(0, size, _PART_BYTES), 1):
                part = os.pread(descriptor, _PART_BYTES, start)
                parts.append(UploadPart(number, len(part), self.store.put_part(key, upload, number, part)))
            self.store.complete_upload(key, upload, parts)
        except BaseException:
            with self.store.retry.shielded(), suppress(ColdstreamError):
                self.store.abort_upload(key, upload)
            raise
        return key

    def _sweep(self, kept: timedelta) -> None:
        """Removes what no pointer names."""
        before = datetime.now(timezone.utc) - kept
        named = self._named()
        objects = self.store.list(f"{ROOT}/{self.name}/")
        self.store.delete(
            [
                info.key
                for info in objects
                if info.key.endswith((_ARCHIVE, _READS)) and info.key not in named and info.modified < before
            ]
        )

    def _named(self) -> set[str]:
        """The objects that pointers name, signed or not: a user with another signing key may share the bucket."""
        named = set()
        for entry in self.entries(None):
            if entry.pointer is not None:
                named.add(self._key(entry.pointer.archive.sha256 + _ARCHIVE))
                if entry.pointer.reads is not None:
                    named.add(self._key(entry.pointer.reads.sha256 + _READS))
        return named

    def _key(self, name: str) -> str:
        return f"{ROOT}/{self.name}/{name}"


def entries(store: Store, secret: bytes | None, name: str | None = None) -> list[BundleEntry]:
    """All bundles of a store, or of one model, by name and key."""
    entries = []
    for info in store.list(f"{ROOT}/{name}/" if name else f"{ROOT}/"):
        folder, _, file = info.key.removeprefix(f"{ROOT}/").rpartition("/")
        if file.endswith(_POINTER) and folder:
            entries.append(_entry(store, secret, folder, file.removesuffix(_POINTER)))
    return entries


def _entry(store: Store, secret: bytes | None, name: str, key: str) -> BundleEntry:
    try:
        data, _ = store.get(f"{ROOT}/{name}/{key}{_POINTER}", bytes_max=POINTER_BYTES_MAX)
        pointer = decode_unverified(data)
    except (IntegrityError, NotFoundError):
        return BundleEntry(name=name, key=key, state="unreadable", pointer=None)
    if secret is None:
        state = "unverified"
    else:
        state = "signed" if is_signed(data, secret) and pointer.key == key else "foreign"
    return BundleEntry(name=name, key=key, state=state, pointer=pointer)
