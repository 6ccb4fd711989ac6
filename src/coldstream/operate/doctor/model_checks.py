"""Whether the model is complete, is safetensors, and still has the bytes that were uploaded; and its bundles."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import xxhash

from coldstream.errors import ColdstreamError, IntegrityError
from coldstream.mirror.stored_files import StoredFile, read_range
from coldstream.mirror.verify import verify
from coldstream.model.manifest import Journal, upload_command
from coldstream.model.selection import is_weights
from coldstream.node.bundle.bundle_pointer import checked_secret
from coldstream.node.bundle.bundle_store import entries
from coldstream.node.model_folder import CONFIGURATIONS
from coldstream.operate.doctor.case import CONNECTIONS, NETWORK, Case, DoctorCheck
from coldstream.operate.probe import Check, fail, ok, skipped, warn
from coldstream.units import MIB, format_bytes, plural

# One chunk has some 8 MiB.
_SAMPLE_CHUNKS = 24
_SAMPLE_BYTES = 192 * MIB
_SAMPLE_SECONDS = 5.0


def model(case: Case) -> Check:
    """Whether all that the manifest names is there, and is what vLLM loads."""
    assert case.name is not None
    report = verify(case.store, case.name)
    stored = case.stored
    command = upload_command(stored.record) if stored.record else f"coldstream upload {case.name}"
    if report.problems:
        first, *more = report.problems
        rest = f" (and {len(more)} more)" if more else ""
        hint = None if isinstance(stored.record, Journal) else f"run: {command}"
        return fail(f"{report.state}: {first.path} {first.what}{rest}", hint=hint)
    shards = sum(is_weights(file.path) for file in stored.files)
    detail = f"{report.state}, {plural(report.files, 'file')}, {format_bytes(report.bytes)}"
    if not shards:
        return fail(f"{detail}: no safetensors", hint="upload a model with safetensors")
    # Reads and checks the headers, which the manifest does not vouch for.
    detail += f", {plural(len(case.checkpoint.shards), 'shard')} of safetensors"
    if not any(file.path in CONFIGURATIONS for file in stored.files):
        return warn(f"{detail}, but no config.json: vLLM cannot serve it", hint=f"run: {command}")
    if report.state == "foreign":
        return warn(f"{detail}; no manifest: loads are not verified", hint=f"for a manifest with hashes run: {command}")
    return ok(detail)


def chunk_hashes(case: Case) -> Check:
    """Whether the store still gives the bytes that were uploaded: some chunks against the manifest's hashes."""
    assert case.name is not None
    chunks = [
        (file, start, stop, digest)
        for file in case.stored.files
        if file.entry is not None
        for start, stop, digest in file.entry.chunks.ranges()
    ]
    if not chunks:
        return skipped("there is no manifest to compare with")
    chosen = list(_within(chunks))
    deadline = time.monotonic() + _SAMPLE_SECONDS
    looked, size = 0, 0

    def wrong(chunk: tuple[StoredFile, int, int, str]) -> str | None:
        nonlocal looked, size
        file, start, stop, digest = chunk
        if time.monotonic() > deadline and looked:
            return None
        buffer = bytearray(stop - start)
        try:
            read_range(case.store, case.name or "", file.objects, start, memoryview(buffer), lambda _: None)
        except IntegrityError as exc:
            return f"{file.path}: {exc.message}"
        looked, size = looked + 1, size + len(buffer)
        return None if xxhash.xxh3_128_hexdigest(buffer) == digest else f"{file.path}: bytes {start}-{stop - 1}"

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        faults = [fault for fault in pool.map(wrong, chosen) if fault is not None]
    if faults:
        rest = f" (and {len(faults) - 1} more)" if faults[1:] else ""
        return fail(
            f"{faults[0]} differ from what was uploaded{rest}",
            hint=f"run: coldstream verify {case.name} --deep, then upload it again",
        )
    detail = f"{looked:,} of {plural(len(chunks), 'chunk')} as uploaded, {format_bytes(size)} read"
    return ok(detail)


def _within(chunks: list[tuple[StoredFile, int, int, str]]) -> Iterator[tuple[StoredFile, int, int, str]]:
    """Some chunks, at random, within the limits; at least one."""
    size = 0
    for number, chunk in enumerate(random.sample(chunks, min(len(chunks), _SAMPLE_CHUNKS))):
        size += chunk[2] - chunk[1]
        if number and size > _SAMPLE_BYTES:
            return
        yield chunk


def bundle_key(case: Case) -> Check:
    """Whether the key that signs warm-start bundles is one."""
    secret = checked_secret(case.configured.get("COLDSTREAM_BUNDLE_KEY"))
    if secret is None:
        detail = "not set: each node compiles for itself; to share compile caches, run: coldstream setup --bundle-key"
        return ok(detail)
    return ok(f"{len(secret)} characters, {case.configured.origin('COLDSTREAM_BUNDLE_KEY')}")


def bundles(case: Case) -> Check:
    """Whether the model's bundles are signed with this key: others are not used."""
    secret = checked_secret(case.configured.get("COLDSTREAM_BUNDLE_KEY"))
    if secret is None:
        return ok("not used: no bundle key is set")
    try:
        stored = entries(case.store, secret, case.name)
    except ColdstreamError as exc:
        return warn(exc.message, hint=exc.hint)
    strange = [entry for entry in stored if entry.state != "signed"]
    if strange:
        return warn(
            f"{len(strange)} of {len(stored)} not signed with this key: {strange[0].state}",
            hint=f"use the key they were signed with, or run: coldstream bundle remove {case.name}",
        )
    none = "none yet: the first start publishes one"
    return ok(f"{plural(len(stored), 'bundle')}, signed with this key" if stored else none)


CHECKS = (
    DoctorCheck(name="model", run=model, needs=(*NETWORK, "bucket", "permissions")),
    DoctorCheck(name="bundle key", run=bundle_key),
    DoctorCheck(name="bundles", run=bundles, needs=("bundle key", "model")),
    DoctorCheck(name="chunk hashes", run=chunk_hashes, needs=("model",), slow=True),
)
