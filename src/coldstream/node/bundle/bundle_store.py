"""Finds, fetches, publishes, lists and removes bundles in the store.

An archive is written first, with its SHA-256 as its name; then its pointer, on the condition that no other node has
written one since. An interrupted publication leaves an archive that no pointer names; the next one removes it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import BinaryIO

from coldstream.errors import ColdstreamError, ConflictError, IntegrityError, NotFoundError
from coldstream.machine.disk import disk_errors
from coldstream.machine.parallel import in_parallel
from coldstream.node.bundle.archive import pack, sha256_of
from coldstream.node.bundle.bundle_pointer import (
    POINTER_BYTES_MAX,
    Key,
    Pointer,
    StoredReads,
    decode,
    decode_unverified,
    encode,
    is_signed,
)
from coldstream.node.bundle.local_bundles import LocalBundle
from coldstream.package import __version__
from coldstream.places.place import ObjectInfo, Store, put_file
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
class BundleEntry:
    """A bundle of the model `name` for people, which fits a start with `key`.

    `state` is "signed" with this secret, "unverified" without a secret, "foreign" (signed with another one) or
    "unreadable". `pointer` is None when unreadable, and not to be trusted unless "signed".
    """

    name: str
    key: str
    state: str
    pointer: Pointer | None


class BundleStore:
    """The bundles of one model in a store. Thread-safe."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    def __repr__(self) -> str:
        return f"BundleStore({self.store.uri}/{ROOT}/{self.name})"

    def find(self, key: str) -> tuple[bytes, str] | None:
        """The pointer of a key as it is stored, not verified, with its etag."""
        try:
            data, info = self.store.get(self._key(key + _POINTER), bytes_max=POINTER_BYTES_MAX)
        except NotFoundError:
            return None
        return data, info.etag

    def nearest(self, key: Key, secret: bytes) -> tuple[int, Pointer] | None:
        """The bundle whose key differs from this one in the fewest parts, and the number of bundles compared.

        Compares the `_NEAREST_MAX` published last, without those that are not signed with this secret.
        """
        objects = [info for info in self.store.list(f"{ROOT}/{self.name}/") if info.key.endswith(_POINTER)]
        newest = sorted(objects, key=lambda info: info.modified, reverse=True)[:_NEAREST_MAX]

        def read(info: ObjectInfo) -> Pointer | None:
            with suppress(IntegrityError, NotFoundError):
                return decode(self.store.get(info.key, bytes_max=POINTER_BYTES_MAX)[0], secret)
            return None

        pointers = [pointer for pointer in in_parallel(read, newest, threads=_CONNECTIONS) if pointer is not None]
        best = min(pointers, key=lambda pointer: len(key.differences(pointer.parts)), default=None)
        return None if best is None else (len(pointers), best)

    def etag(self, key: str) -> str | None:
        """The etag of a key's pointer, valid or not; None when there is none."""
        try:
            return self.store.head(self._key(key + _POINTER)).etag
        except NotFoundError:
            return None

    def fetch(self, pointer: Pointer, out: BinaryIO) -> None:
        """Fetches an archive into an empty file, which is left at its start. Raises IntegrityError if it differs."""
        size, descriptor = pointer.archive.size, out.fileno()
        os.ftruncate(descriptor, size)
        key = self._contents(pointer)[0]

        def fetch_range(start: int) -> None:
            buffer = bytearray(min(_RANGE_BYTES, size - start))
            self.store.read_into(key, start, memoryview(buffer))
            os.pwrite(descriptor, buffer, start)

        in_parallel(fetch_range, range(0, size, _RANGE_BYTES), threads=_CONNECTIONS)
        out.seek(0)
        if sha256_of(out) != (pointer.archive.sha256, size):
            raise IntegrityError("the archive is not the one that was signed")
        out.seek(0)

    def fetch_reads(self, pointer: Pointer) -> bytes | None:
        """The record of what to read ahead, verified; None when the bundle has none. Raises as `fetch` does."""
        if pointer.reads is None:
            return None
        data, _ = self.store.get(self._contents(pointer)[1], bytes_max=pointer.reads.size)
        if hashlib.sha256(data).hexdigest() != pointer.reads.sha256:
            raise IntegrityError("the record of reads is not the one that was signed")
        return data

    def publish(
        self,
        local: LocalBundle,
        secret: bytes,
        *,
        paths: Sequence[str] | None = None,
        reads: bytes | None = None,
        ready_seconds: float = 0.0,
        replaces: str | None,
    ) -> tuple[Pointer, str]:
        """Packs caches of this machine, stores them as a bundle, and returns its pointer and the pointer's etag.

        Args:
            paths: Which of their files; None for all that belong in a bundle.
            reads: The record of what a start with them read, or None.
            ready_seconds: Duration of a start that had to build them; 0 when unknown.
            replaces: The etag of the current pointer, or None. If another node has written one since, ConflictError is
                raised, and nothing of this bundle is left.
        """
        # The engine answers by now, and has priority.
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        with disk_errors(local.base), tempfile.TemporaryFile(dir=local.base) as file:
            files = local.tree() if paths is None else paths
            pointer = Pointer(
                format=1,
                key=local.key.digest,
                parts=dict(local.key.parts),
                archive=pack(str(local.root), files, file, check=self.store.retry.check),
                reads=StoredReads(sha256=hashlib.sha256(reads).hexdigest(), size=len(reads)) if reads else None,
                created=datetime.now(timezone.utc),
                tool=f"coldstream {__version__}",
                ready_seconds=ready_seconds,
            )
            ours = self._contents(pointer)
            self._put_archive(ours[0], file, pointer.archive.size)
        if reads:
            self.store.put(ours[1], reads)
        try:
            key, data = self._key(pointer.key + _POINTER), encode(pointer, secret)
            etag = self.store.put(key, data, if_match=replaces, if_absent=replaces is None)
        except ConflictError:
            # Theirs may name the same content.
            with suppress(ColdstreamError):
                self.store.delete([name for name in ours if name not in self._named()])
            raise
        with suppress(ColdstreamError):
            self._sweep(_KEPT)
        return pointer, etag

    def entries(self, secret: bytes | None) -> list[BundleEntry]:
        """All bundles of the model, by key."""
        return [entry for entry in entries(self.store, secret, self.name) if entry.name == self.name]

    def remove(self, keys: Sequence[str] | None = None) -> None:
        """Removes some bundles, or all; the pointers first, and then everything that no pointer names."""
        if keys is not None:
            self.store.delete([self._key(digest + _POINTER) for digest in keys])
            self._sweep(timedelta(0))
            return
        objects = [info.key for info in self.store.list(f"{ROOT}/{self.name}/")]
        for is_pointer in (True, False):
            self.store.delete([key for key in objects if key.endswith(_POINTER) == is_pointer])

    def _put_archive(self, key: str, file: BinaryIO, size: int) -> None:
        if size <= _SINGLE_BYTES_MAX:
            self.store.put(key, os.pread(file.fileno(), size, 0))
        else:
            put_file(self.store, key, file, part_bytes=_PART_BYTES, connections=1)

    def _sweep(self, kept: timedelta) -> None:
        """Removes what no pointer names and is older than `kept`."""
        before = datetime.now(timezone.utc) - kept
        named = self._named()
        objects = [info for info in self.store.list(f"{ROOT}/{self.name}/") if info.key.endswith((_ARCHIVE, _READS))]
        self.store.delete([info.key for info in objects if info.key not in named and info.modified < before])

    def _named(self) -> set[str]:
        """The objects that pointers name, signed or not: a user with another signing key may share the bucket."""
        pointers = [entry.pointer for entry in self.entries(None) if entry.pointer is not None]
        return {key for pointer in pointers for key in self._contents(pointer)}

    def _contents(self, pointer: Pointer) -> list[str]:
        """The objects that a pointer names: the archive, and the record of reads if there is one."""
        reads = [self._key(pointer.reads.sha256 + _READS)] if pointer.reads is not None else []
        return [self._key(pointer.archive.sha256 + _ARCHIVE), *reads]

    def _key(self, name: str) -> str:
        return f"{ROOT}/{self.name}/{name}"


def entries(store: Store, secret: bytes | None, name: str | None = None) -> list[BundleEntry]:
    """All bundles of a store, or of one model, by name and key."""
    bundles = []
    for info in store.list(f"{ROOT}/{name}/" if name else f"{ROOT}/"):
        folder, _, file = info.key.removeprefix(f"{ROOT}/").rpartition("/")
        if not file.endswith(_POINTER) or not folder:
            continue
        key, state, pointer = file.removesuffix(_POINTER), "unreadable", None
        with suppress(IntegrityError, NotFoundError):
            data, _ = store.get(info.key, bytes_max=POINTER_BYTES_MAX)
            pointer = decode_unverified(data)
            state = "foreign" if secret is not None else "unverified"
            if secret is not None and is_signed(data, secret) and pointer.key == key:
                state = "signed"
        bundles.append(BundleEntry(name=folder, key=key, state=state, pointer=pointer))
    return bundles
