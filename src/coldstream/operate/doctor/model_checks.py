"""Checks of the model: complete, safetensors, unchanged since the upload, its bundles, and how fast it loads."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import xxhash

from coldstream.errors import ColdstreamError, IntegrityError
from coldstream.loading.options import Options
from coldstream.machine import hardware
from coldstream.mirror.stored_files import StoredFile, read_range
from coldstream.mirror.verify import verify
from coldstream.model.manifest import Journal, upload_command
from coldstream.model.selection import is_weights
from coldstream.node.bundle.bundle_pointer import checked_secret
from coldstream.node.bundle.bundle_store import entries
from coldstream.node.model_folder import CONFIGURATIONS
from coldstream.operate.doctor.case import CONNECTIONS, Case
from coldstream.operate.probe import Check, fail, ok, skipped, warn
from coldstream.tune.connection_curve import Curve, Sample, measure_curve
from coldstream.tune.gpus import detect_gpus
from coldstream.tune.predict import NetworkPath, path_to_bucket, predict
from coldstream.units import GIB, MIB, format_bytes, format_rate, format_seconds, plural

# One chunk has some 8 MiB.
_SAMPLE_CHUNKS = 24
_SAMPLE_BYTES = 192 * MIB
_SAMPLE_SECONDS = 5.0
_SPEED_CONNECTIONS = (1, 8, 32, 64)
# For each number of connections: ten seconds in all, and a bound on the cost where traffic is billed.
_STEP_SECONDS = 2.0
_STEP_BYTES = 2 * GIB
# A smaller model is loaded before many connections are at full speed.
_TELLING_BYTES = 512 * MIB
# "Cold start < 60 s" leaves no more for the weights.
_LOAD_SECONDS_MAX = 60.0


def model(case: Case) -> Check:
    """Whether every object in the manifest exists, and vLLM can load the model."""
    assert case.name is not None
    report = verify(case.store, case.name)
    stored = case.stored
    command = upload_command(stored.record) if stored.record else f"coldstream upload {case.name}"
    if report.problems:
        first, *more = report.problems
        rest = f" (and {len(more)} more)" if more else ""
        hint = None if isinstance(stored.record, Journal) else f"run: {command}"
        return fail(f"{report.state}: {first.path} {first.what}{rest}", hint)
    detail = f"{report.state}, {plural(report.files, 'file')}, {format_bytes(report.bytes)}"
    if not any(is_weights(file.path) for file in stored.files):
        return fail(f"{detail}: no safetensors", "upload a model with safetensors")
    # Reads and checks the headers, which the manifest does not vouch for.
    detail += f", {plural(len(case.checkpoint.shards), 'shard')} of safetensors"
    if not any(file.path in CONFIGURATIONS for file in stored.files):
        return warn(f"{detail}, but no config.json: vLLM cannot serve it", f"run: {command}")
    if report.state == "foreign":
        return warn(f"{detail}; no manifest: loads are not verified", f"for a manifest with hashes run: {command}")
    return ok(detail)


def chunk_hashes(case: Case) -> Check:
    """Whether the store still returns the uploaded bytes: some chunks against the manifest's hashes."""
    chunks = [(file, *chunk) for file in case.stored.files if file.entry for chunk in file.entry.chunks.ranges()]
    if not chunks:
        return skipped("there is no manifest to compare with")
    deadline = time.monotonic() + _SAMPLE_SECONDS
    read: list[int] = []

    def fault_in(chunk: tuple[StoredFile, int, int, str]) -> str | None:
        file, start, stop, digest = chunk
        if time.monotonic() > deadline and read:
            return None
        buffer = bytearray(stop - start)
        try:
            read_range(case.store, case.name or "", file.objects, start, memoryview(buffer), lambda _: None)
        except IntegrityError as exc:
            return f"{file.path}: {exc.message}"
        read.append(len(buffer))
        return None if xxhash.xxh3_128_hexdigest(buffer) == digest else f"{file.path}: bytes {start}-{stop - 1}"

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        faults = [fault for fault in pool.map(fault_in, _sample(chunks)) if fault is not None]
    if faults:
        rest = f" (and {len(faults) - 1} more)" if faults[1:] else ""
        return fail(
            f"{faults[0]} differ from what was uploaded{rest}",
            f"run: coldstream verify {case.name} --deep, then upload it again",
        )
    return ok(f"{len(read):,} of {plural(len(chunks), 'chunk')} as uploaded, {format_bytes(sum(read))} read")


def _sample(chunks: list[tuple[StoredFile, int, int, str]]) -> Iterator[tuple[StoredFile, int, int, str]]:
    """Some chunks, at random, within the limits; at least one."""
    size = 0
    for number, chunk in enumerate(random.sample(chunks, min(len(chunks), _SAMPLE_CHUNKS))):
        size += chunk[2] - chunk[1]
        if number and size > _SAMPLE_BYTES:
            return
        yield chunk


def bundle_key(case: Case) -> Check:
    """Whether the key that signs warm-start bundles is valid."""
    secret = checked_secret(case.configured.get("COLDSTREAM_BUNDLE_KEY"))
    if secret is None:
        return ok("not set: each node compiles for itself; to share compile caches, run: coldstream setup --bundle-key")
    return ok(f"{len(secret)} characters, {case.configured.origin('COLDSTREAM_BUNDLE_KEY')}")


def bundles(case: Case) -> Check:
    """Whether the model's bundles are signed with this key: others are not used."""
    secret = checked_secret(case.configured.get("COLDSTREAM_BUNDLE_KEY"))
    if secret is None:
        return ok("not used: no bundle key is set")
    try:
        stored = entries(case.store, secret, case.name)
    except ColdstreamError as exc:
        return warn(exc.message, exc.hint)
    foreign = [entry for entry in stored if entry.state != "signed"]
    if foreign:
        return warn(
            f"{len(foreign)} of {len(stored)} not signed with this key: {foreign[0].state}",
            f"use the key they were signed with, or run: coldstream bundle remove {case.name}",
        )
    none = "none yet: the first start publishes one"
    return ok(f"{plural(len(stored), 'bundle')}, signed with this key" if stored else none)


def speed(case: Case) -> Check:
    """Reads the model with 1, 8, 32 and 64 connections, and predicts the duration of its load."""
    assert case.name is not None
    if not sys.platform.startswith("linux"):
        return skipped("streaming needs Linux")
    curve = measure_curve(
        case.name,
        Options(settings=case.settings, framework="buffer"),
        steps=_SPEED_CONNECTIONS,
        seconds=_STEP_SECONDS,
        bytes_max=_STEP_BYTES,
        on_sample=lambda sample: case.tell(_sample_text(sample)),
    )
    return judged(case.name, case.checkpoint.bytes, curve)


def judged(name: str, size: int, curve: Curve) -> Check:
    """The result of a measurement for a model of this size."""
    if not curve.most or not curve.each:
        hint = f"retry without other loads running: coldstream load {name}"
        return fail(f"no data arrived in {_STEP_SECONDS:.0f} s", hint)
    gpus = detect_gpus(hardware.gpus())
    prediction = predict(
        size,
        path_to_bucket(NetworkPath(), curve),
        connections=curve.connections,
        copies_bytes_per_second=gpus.gpu.copy_bytes_per_second * gpus.count if gpus else None,
    )
    rates = "   ".join(map(_sample_text, curve.samples))
    detail = f"{rates}   -> about {format_seconds(prediction.seconds)} for {format_bytes(size)}"
    if size < _TELLING_BYTES:
        detail += "; the model is too small to measure more"
    if prediction.seconds > _LOAD_SECONDS_MAX:
        return warn(
            f"{detail}: a cold start takes more than a minute, {prediction.limited_by}",
            f"use a faster network nearer to the bucket; see: coldstream tune {name} --measure",
        )
    return ok(detail)


def _sample_text(sample: Sample) -> str:
    return f"{sample.connections}: {format_rate(sample.bytes_per_second, 1)}"
