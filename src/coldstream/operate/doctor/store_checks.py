"""Checks of the configuration, the endpoint, the bucket, the CDN in front of it, and the model in it."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import xxhash

from coldstream.cache.cache import cache_of
from coldstream.errors import ColdstreamError, CredentialsError, IntegrityError, NotFoundError
from coldstream.loading.options import Options
from coldstream.machine import hardware
from coldstream.machine.child_environment import SECRETS
from coldstream.mirror.listing import bases_of, list_models
from coldstream.mirror.stored_files import StoredFile, read_range
from coldstream.mirror.verify import verify
from coldstream.model.adapter_fit import misfits, modules_of
from coldstream.model.manifest import Journal, upload_command
from coldstream.model.names import MANIFEST_NAME
from coldstream.model.selection import is_weights
from coldstream.node.bundle.bundle_pointer import checked_secret
from coldstream.node.bundle.bundle_store import entries
from coldstream.node.model_folder import CONFIGURATIONS
from coldstream.operate import probe
from coldstream.operate.cdn.edge_cache import KEPT, Edge, EdgeAnswer, key_prefix, limit_of
from coldstream.operate.doctor.case import CONNECTIONS, Case
from coldstream.operate.probe import PROBE_FOLDER, Check, fail, judged_clock, ok, skipped, warn
from coldstream.places.cdn_domain import CdnDomain, cdn_of
from coldstream.places.checkpoint import Checkpoint
from coldstream.places.opening import open_model_reader
from coldstream.tune.connection_curve import Curve, Sample, measure_curve
from coldstream.tune.gpus import detect_gpus
from coldstream.tune.predict import NetworkPath, path_to_bucket, predict
from coldstream.units import GIB, MIB, format_bytes, format_rate, format_seconds, plural

# Certificates are usually renewed weeks before they expire.
_DAYS_LEFT_MIN = 7
_NOT_USED = "not used: the store is a folder"
CACHED_BYTES_MAX = limit_of(None)
_BODY_BYTES_MAX = 16 << 20
_CDN_SECONDS = 15.0
# A second read may reach another server of the same data centre.
_CDN_READS = 3


def configuration(case: Case) -> Check:
    """Whether a store, its endpoint and keys are set and make sense."""
    settings = case.configured
    for check in probe.check_configuration(settings):
        if check.state == "fail":
            return fail(check.detail, check.hint)
    _ = settings.retry_seconds, cache_of(settings)  # either may be malformed
    store = settings.store_uri()
    if case.uses_folder:
        return ok(f"{store}, a folder")
    _ = case.store  # its client refuses what it cannot use, such as a profile that does not exist
    where = settings.endpoint() or "AWS S3 itself"
    keys = settings.origin("R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID") or "the AWS chain (profile, SSO, role)"
    return ok(f"{store} at {where}   keys: {keys}")


def secrets(case: Case) -> Check:
    """Whether only the owner can read the settings file that holds secrets."""
    origins = {case.configured.origins[name] for name in case.configured.values if name in SECRETS}
    files = sorted(origins - {"flag", "environment"})
    for file in files:
        with suppress(OSError):
            mode = stat.S_IMODE(os.stat(file).st_mode)
            if mode & 0o077:
                hint = f"run: chmod 600 {shlex.quote(file)}"
                return warn(f"{file} holds secrets and is readable by other users (mode {mode:04o})", hint)
    return ok(f"{', '.join(files)} is readable only by its owner" if files else "not in a settings file")


def endpoint(case: Case) -> Check:
    """Whether the S3 API answers at all."""
    if case.uses_folder:
        return ok(_NOT_USED)
    answer = case.endpoint_probe
    by = f" through the proxy {answer.proxy}" if answer.proxy else ""
    return ok(f"{case.endpoint} answers in {format_seconds(answer.seconds)}{by}")


def tls(case: Case) -> Check:
    """Whether the endpoint's certificate is valid, and for how long."""
    if case.uses_folder:
        return ok(_NOT_USED)
    if not case.endpoint.startswith("https:"):
        if case.is_local:
            return ok("not used: the endpoint is on this machine")
        hint = "set R2_ENDPOINT to an https:// URL if the server supports TLS"
        return warn("not used: the traffic can be read and changed in transit", hint)
    answer = case.endpoint_probe
    if answer.tls_fault:
        hint = "check the host name, this machine's clock and its CA certificates (AWS_CA_BUNDLE sets others)"
        return fail(f"{case.endpoint}: {answer.tls_fault}", hint)
    if answer.expires is None:
        return ok(f"{answer.protocol}, the certificate is valid")
    days = int((answer.expires - time.time()) // 86400)
    detail = f"{answer.protocol}, the certificate is valid for another {plural(days, 'day')}"
    return warn(detail, "renew the certificate of the server") if days < _DAYS_LEFT_MIN else ok(detail)


def clock(case: Case) -> Check:
    """How far this machine's clock is from the server's: signatures may be 15 minutes off."""
    if case.uses_folder:
        return ok(_NOT_USED)
    return judged_clock(case.endpoint_probe.date) or ok("the server sends no time")


def bucket(case: Case) -> Check:
    """Whether the bucket exists and these keys give access."""
    check = probe.check_bucket(case.store, create=False, location=None)
    if check.exit_code == CredentialsError.exit_code and case.name is not None:
        # Keys for one model may not ask about the bucket itself.
        next(iter(case.store.list(f"{case.name}/")), None)
        return ok(f"these keys only open {case.name}/")
    if check.exit_code == NotFoundError.exit_code and check.hint is None:
        return fail(check.detail, "create it: coldstream setup", exit_code=10)
    return check


def permissions(case: Case) -> Check:
    """What these keys may do. A serving node needs to list and to read, and is better off without more."""
    store, prefix = case.store, f"{case.name}/" if case.name else ""
    first = next((info for info in store.list(prefix) if info.size), None)
    if first is not None:
        store.read_into(first.key, 0, memoryview(bytearray(1)))
    else:
        with suppress(NotFoundError):
            store.head(f"{prefix}{uuid.uuid4().hex}")
    key = f"{PROBE_FOLDER}/{uuid.uuid4().hex}"
    try:
        store.put(key, b"probe")
    except CredentialsError:
        case.writes = False
        return ok("list and get; these keys are read-only, as a serving node should have them; uploads need other keys")
    try:
        store.delete([key])
    except CredentialsError:
        hint = "use a token with Object Read & Write for uploads"
        return warn(f"list, get and put, but not delete: {key} was left behind", hint)
    case.writes = True
    return ok("list, get, put, delete; a serving node only needs to read")


def round_trip(case: Case) -> Check:
    """Whether a probe object comes back, whole and by range, and appears in a listing."""
    return skipped("these keys are read-only") if case.writes is False else case.round_trip["round trip"]


def conditional_put(case: Case) -> Check:
    """Whether a write with a false condition is rejected, which keeps two uploads of a model apart."""
    check = case.round_trip["conditional put"]
    if check.state == "warn" and (case.uses_folder or case.is_local):
        # The danger is two machines that upload the same model.
        return ok(f"{check.detail}, and only this machine writes there")
    return check


def multipart(case: Case) -> Check:
    """Whether an interrupted upload can resume."""
    return case.round_trip["multipart"]


def cdn(case: Case) -> Check:
    """Reads a small file of the model twice through the domain, and compares it with the bucket's."""
    domain = cdn_of(case.configured)
    if domain is None:
        return ok("not used: R2_CDN_DOMAIN is not set")
    if reason := case.obstacle("bucket", "permissions", "model"):
        return skipped(reason)
    path = "config.json" if "config.json" in case.stored.listing else MANIFEST_NAME
    stored, _ = case.store.get(f"{case.name}/{path}", bytes_max=_BODY_BYTES_MAX)
    key = f"{key_prefix(case.store)}{case.name}/{path}"
    edge = Edge(domain, read_seconds=_CDN_SECONDS)
    answers = [edge.whole(key)]
    if (fault := _cdn_fault(case, domain, key, answers[0], stored)) is not None:
        return fault
    while len(answers) < _CDN_READS and (len(answers) < 2 or answers[-1].cache == "MISS"):
        answers.append(edge.whole(key))
    statuses = ", then ".join(answer.cache or "no cf-cache-status" for answer in answers)
    if answers[-1].cache not in KEPT:
        hint = "add a cache rule, run: coldstream cdn rule"
        return warn(f"{domain.link(key)} serves the bucket's bytes but does not cache them: {statuses}", hint)
    shards = [file for file in case.stored.files if is_weights(file.path)]
    if large := sum(any(stored.size > CACHED_BYTES_MAX for stored in shard.objects) for shard in shards):
        return warn(
            f"caches small files ({statuses}), but {plural(large, 'shard')} above 512 MB are never cached",
            "upload with --object-bytes-max 480MiB, or use the Enterprise plan, which caches larger objects",
        )
    return ok(f"{urlsplit(domain.url).netloc} serves the bucket's bytes: {statuses}")


def _cdn_fault(case: Case, domain: CdnDomain, key: str, answer: EdgeAnswer, stored: bytes) -> Check | None:
    url, belongs = domain.link(key), "check that R2_CDN_DOMAIN belongs to this bucket"
    if answer.status == 0:
        hint = "check Custom Domains in the bucket's settings at Cloudflare, or unset R2_CDN_DOMAIN"
        return fail(f"cannot reach {domain.url}: {answer.fault}", hint)
    if answer.status in {401, 403}:
        hint = "a rule of the domain blocks this machine: set COLDSTREAM_CDN_HEADER, or change the rule"
    elif answer.status == 404 and answer.cache in KEPT:
        hint = f"a 404 from before the upload is cached: run coldstream cdn purge {case.name}, or wait 3 minutes"
    else:
        hint = belongs
    if answer.status != 200:
        return fail(f"{url} answers {answer.status}", hint)
    if answer.sha256 != hashlib.sha256(stored).hexdigest():
        what = "an HTML page" if answer.is_page else "other bytes than the bucket"
        return fail(f"{url} serves {what}", f"purge it in Cloudflare's cache, or {belongs}")
    return None


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
    # Checks how the headers fit together, which the hashes do not tell.
    detail += f", {plural(len(case.checkpoint.shards), 'shard')} of safetensors"
    if case.adapter is None and not any(file.path in CONFIGURATIONS for file in stored.files):
        return warn(f"{detail}, but no config.json: vLLM cannot serve it", f"run: {command}")
    if report.state == "foreign":
        return warn(f"{detail}; no manifest: loads are not verified", f"for a manifest with hashes run: {command}")
    return ok(detail)


def adapter(case: Case) -> Check:
    """Whether vLLM can serve the adapter, its base is in the bucket, and its tensors fit that."""
    record = case.adapter
    if record is None:
        return ok("not used: it is a model")
    if record.refusal:
        hint = "merge it into its base with PEFT's merge_and_unload, and upload the result"
        return fail(f"vLLM cannot serve it: {record.refusal}", hint)
    base = _base(case, record.base)
    if base is None:
        return fail(
            f"its base {record.base} is not in the bucket",
            f"run: coldstream upload {shlex.quote(record.base)}; or name another one with: coldstream upload … --base",
        )
    if faults := misfits(case.checkpoint.tensors, modules_of(base.tensors), rank=record.rank):
        more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
        return fail(
            f"it does not fit {base.name}: {faults[0]}{more}",
            "was the base replaced? upload it again under its own name, and name that with: coldstream upload … --base",
        )
    return ok(f"{record.label}; its {plural(len(case.checkpoint.tensors), 'tensor')} fit {base.name}")


def _base(case: Case, name: str) -> Checkpoint | None:
    """The base of this name in the bucket, or else the one that was copied from this repository."""
    try:
        return open_model_reader(name, case.settings).checkpoint()
    except NotFoundError:
        stored_as = bases_of(list_models(case.store)).get(case.name or "")
        return open_model_reader(stored_as, case.settings).checkpoint() if stored_as else None


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
        hint = f"run: coldstream verify {case.name} --deep, then upload it again"
        return fail(f"{faults[0]} differ from what was uploaded{rest}", hint)
    return ok(f"{len(read):,} of {plural(len(chunks), 'chunk')} as uploaded, {format_bytes(sum(read))} read")


def _sample(chunks: list[tuple[StoredFile, int, int, str]]) -> Iterator[tuple[StoredFile, int, int, str]]:
    """The headers, of which the manifest has copies, and some chunks at random; within the limits, at least one."""
    headers = [chunk for chunk in chunks if chunk[1] == 0 and is_weights(chunk[0].path)]
    size = 0
    for number, chunk in enumerate([*headers, *random.sample(chunks, min(len(chunks), _SAMPLE_CHUNKS))]):
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
        hint = f"use the key they were signed with, or run: coldstream bundle remove {case.name}"
        return warn(f"{len(foreign)} of {len(stored)} not signed with this key: {foreign[0].state}", hint)
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
        hint = f"use a faster network nearer to the bucket; see: coldstream tune {name} --measure"
        return warn(f"{detail}: a cold start takes more than a minute, {prediction.limited_by}", hint)
    return ok(detail)


def _sample_text(sample: Sample) -> str:
    return f"{sample.connections}: {format_rate(sample.bytes_per_second, 1)}"
