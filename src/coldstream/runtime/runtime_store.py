"""Publishes, lists, verifies and removes runtimes in the store.

    .coldstream/runtimes/<digest>/image          chunks of it are read by nodes
    .coldstream/runtimes/<digest>/unpacker
    .coldstream/runtimes/<digest>/manifest.json  written last, deleted first

An interrupted publication leaves an image without a manifest, which `remove` finds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.machine.parallel import in_parallel
from coldstream.places.place import Store, put_file
from coldstream.runtime.runtime_manifest import MANIFEST_BYTES_MAX, RuntimeManifest, decode_manifest, encode_manifest

ROOT = ".coldstream/runtimes"
CONNECTIONS = 16
_DIGEST_DIGITS_MIN = 4
_PART_BYTES = 16 << 20
# A larger image has larger parts: S3 has at most 10,000.
_PARTS_MAX = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A runtime in a store, named by the SHA-256 of its manifest, which is None unless the runtime is ready.

    `state` is "ready"; "incomplete" without a manifest; "damaged" where the manifest is not what was published, or an
    object is missing or of another size.
    """

    digest: str
    state: str
    manifest: RuntimeManifest | None
    bytes: int
    published: datetime


def publish(
    store: Store, manifest: RuntimeManifest, image: Path, unpacker: bytes, *, on_sent: Callable[[int], None]
) -> bool:
    """Stores a runtime, unless it is there as a whole; returns whether it was not.

    `on_sent` is called with byte counts of the image as they leave.
    """
    folder, encoded = f"{ROOT}/{manifest.digest}", encode_manifest(manifest)
    sizes = {info.key: info.size for info in store.list(f"{folder}/")}
    if sizes == _sizes(manifest) | {f"{folder}/manifest.json": len(encoded)}:
        return False
    part_bytes = max(_PART_BYTES, -(-manifest.image.size // _PARTS_MAX))
    with image.open("rb") as file:
        put_file(store, f"{folder}/image", file, part_bytes=part_bytes, connections=CONNECTIONS, on_sent=on_sent)
    store.put(f"{folder}/unpacker", unpacker)
    store.put(f"{folder}/manifest.json", encoded)
    return True


def runtimes(store: Store) -> list[Runtime]:
    """All runtimes of a store, the newest first."""
    folders: dict[str, dict[str, int]] = {}
    times: dict[str, datetime] = {}
    for info in store.list(f"{ROOT}/"):
        digest, _, _ = info.key.removeprefix(f"{ROOT}/").partition("/")
        folders.setdefault(digest, {})[info.key] = info.size
        times[digest] = max(times.get(digest, info.modified), info.modified)
    entries = in_parallel(
        lambda digest: _runtime(store, digest, folders[digest], times[digest]), list(folders), threads=CONNECTIONS
    )
    return sorted(entries, key=lambda runtime: runtime.published, reverse=True)


def choose(entries: list[Runtime], name: str) -> Runtime:
    """The runtime whose digest begins with `name`, with or without `sha256:`; NotFoundError: there is none.

    Raises UsageError if there are several, or the name is too short.
    """
    digits = name.removeprefix("sha256:")
    if len(digits) < _DIGEST_DIGITS_MIN:
        raise UsageError(f"{name!r} is too short for a digest", hint="run: coldstream runtime list")
    chosen = [entry for entry in entries if entry.digest.startswith(digits)]
    if not chosen:
        raise NotFoundError(f"no runtime {name} in the bucket", hint="run: coldstream runtime list")
    if len(chosen) > 1:
        raise UsageError(f"{len(chosen)} runtimes begin with {name}", hint="use more of its digits")
    return chosen[0]


def verify(store: Store, runtime: Runtime, *, on_read: Callable[[int], None]) -> None:
    """Reads all of a runtime and compares the hashes; raises IntegrityError if they differ from what was published."""
    manifest = runtime.manifest
    if manifest is None:
        raise IntegrityError(f"the runtime {runtime.digest[:12]} is {runtime.state}", hint="publish it again")
    image, folder = manifest.image, f"{ROOT}/{runtime.digest}"

    def check(index: int) -> int | None:
        start = index * image.chunk_bytes
        buffer = bytearray(min(image.chunk_bytes, image.size - start))
        store.read_into(f"{folder}/image", start, memoryview(buffer), on_read=on_read)
        return None if hashlib.sha256(buffer).hexdigest() == image.chunks[index] else index

    checked = in_parallel(check, range(len(image.chunks)), threads=CONNECTIONS)
    damaged = [index for index in checked if index is not None]
    unpacker, _ = store.get(f"{folder}/unpacker", bytes_max=manifest.unpacker.size)
    if damaged or hashlib.sha256(unpacker).hexdigest() != manifest.unpacker.sha256:
        what = f"{len(damaged)} of {len(image.chunks)} chunks of its image" if damaged else "its unpacker"
        raise IntegrityError(
            f"the runtime {runtime.digest[:12]} is damaged: {what} differ from what was published",
            hint=f"run: coldstream runtime remove {runtime.digest[:12]}, and publish it again",
        )


def remove(store: Store, runtime: Runtime) -> None:
    """Deletes a runtime, the manifest first, and unfinished uploads of it."""
    folder = f"{ROOT}/{runtime.digest}/"
    store.delete([f"{folder}manifest.json"])
    for upload in store.uploads(folder):
        store.abort_upload(upload.key, upload.upload_id)
    store.delete([info.key for info in store.list(folder)])


def _runtime(store: Store, digest: str, sizes: dict[str, int], published: datetime) -> Runtime:
    state, manifest, folder = "incomplete", None, f"{ROOT}/{digest}"
    if f"{folder}/manifest.json" in sizes:
        state = "damaged"
        with suppress(IntegrityError, NotFoundError):
            data, _ = store.get(f"{folder}/manifest.json", bytes_max=MANIFEST_BYTES_MAX)
            manifest = decode_manifest(data, digest)
            state = "ready" if _sizes(manifest).items() <= sizes.items() else "damaged"
    return Runtime(digest=digest, state=state, manifest=manifest, bytes=sum(sizes.values()), published=published)


def _sizes(manifest: RuntimeManifest) -> dict[str, int]:
    """The objects that belong to it, by key."""
    folder = f"{ROOT}/{manifest.digest}"
    return {f"{folder}/image": manifest.image.size, f"{folder}/unpacker": manifest.unpacker.size}
