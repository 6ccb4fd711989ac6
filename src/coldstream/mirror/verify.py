"""Verify: is what the store holds what was uploaded?

By default one listing is compared with the manifest: presence, sizes, ETags. `deep` reads every byte and recomputes
the chunks' hashes and each file's SHA-256. A model without a manifest is checked for what can be known: that its
weights are whole safetensors files, that none of them is missing, and that no two hold the same tensor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from coldstream.errors import ConflictError, IntegrityError, NotFoundError
from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest
from coldstream.mirror.pump import CONNECTIONS, MEMORY_BYTES, Pump
from coldstream.mirror.segment_pool import ROOT
from coldstream.mirror.stored_files import COPY, StoredFile, StoredModel, missing_objects, open_model, read_range
from coldstream.model.chunks import PART_BYTES, parts
from coldstream.model.header import LENGTH_BYTES, Header, check_twins, header_stop, parse_header
from coldstream.model.manifest import Journal, upload_command
from coldstream.model.selection import check_numbers, index_name, is_weights, weights
from coldstream.places.store import Store
from coldstream.progress import Progress
from coldstream.units import MIB


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: with which file, and what."""

    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was found.

    Attributes:
        name: The model's.
        state: "ready", "incomplete" or "foreign".
        ok: Whether nothing is wrong, as far as was looked.
        deep: Whether every byte was read.
        layout: As `list` shows it.
        segments: How many segments its weights are stored in.
        files: How many files it has.
        bytes: How many bytes they have.
        problems: What is wrong, by path.
        sha256: Path to SHA-256 of what was read; only when deep.
        seconds: How long it took.
    """

    name: str
    state: str
    ok: bool
    deep: bool
    layout: str
    segments: int
    files: int
    bytes: int
    problems: tuple[Problem, ...]
    sha256: dict[str, str]
    seconds: float


def verify(
    store: Store,
    name: str,
    *,
    deep: bool = False,
    progress: Progress | None = None,
    connections: int = CONNECTIONS,
    memory_bytes: int = MEMORY_BYTES,
) -> VerifyReport:
    """Checks a model. Writes nothing; a fault of the model is in the report, not an error.

    Raises:
        NotFoundError: There is no such model.
        ManifestError: Its manifest cannot be trusted.
        And what the store raises.
    """
    began = time.monotonic()
    model = open_model(store, name)
    name = model.name
    files = model.files
    problems = [Problem(path, what) for path, what in missing_objects(store, model)]
    if isinstance(model.record, Journal):
        problems.append(Problem("coldstream.json", f"the upload is not complete; run: {upload_command(model.record)}"))
    if model.record is None:
        problems += _structure_problems(store, model)
    bad = {problem.path for problem in problems}
    works = []
    if deep:
        progress = progress or Progress()
        works = [_Check(store, name, file, progress) for file in files if file.path not in bad]
        copies = [
            _Check(store, name, replace(file, objects=(file.plain,)), progress, label=f"{file.path} (in one piece)")
            for file in files
            if file.plain and file.path not in bad
        ]
        Pump(cancel=store.retry.cancel, connections=connections, memory_bytes=memory_bytes).run([*works, *copies])
        problems += [Problem(work.file.path, what) for work in works for what in work.faults]
        problems += [Problem(work.file.path, COPY + what) for work in copies for what in work.faults]
    return VerifyReport(
        name=name,
        state="foreign" if model.record is None else "incomplete" if isinstance(model.record, Journal) else "ready",
        ok=not problems,
        deep=deep,
        layout=model.layout,
        segments=sum(f"/{ROOT}" in stored.key for file in files for stored in file.objects),
        files=len(files),
        bytes=sum(file.size for file in files),
        problems=tuple(sorted(problems, key=lambda problem: problem.path)),
        sha256={work.file.path: work.sha256 for work in works if work.sha256},
        seconds=time.monotonic() - began,
    )


class _Check:
    """One file that is read and hashed. Implements `FileWork`."""

    def __init__(
        self, store: Store, name: str, file: StoredFile, progress: Progress, *, label: str | None = None
    ) -> None:
        self.file = file
        self._label = label or file.path
        self.size = file.size
        self.parts = tuple(parts(file.size, PART_BYTES))
        self.faults: list[str] = []
        self.sha256: str | None = None
        self._store, self._name, self._progress = store, name, progress
        stops = file.entry.chunks.stops if file.entry else None
        git = file.entry is not None and file.entry.git_blob_id is not None
        self.digest = OrderedDigest(StreamDigest(file.path, file.size, stops=stops, git=git))
        self._lock = threading.Lock()

    def prepare(self) -> None:
        self._progress.begin(self._label, self.size, stages=1)

    def fetch(self, start: int, view: memoryview) -> None:
        try:
            read_range(self._store, self._name, self.file.objects, start, view, self._on_read)
        except (IntegrityError, ConflictError, NotFoundError) as exc:
            # The other files are of interest all the same.
            with self._lock:
                if not self.faults:
                    self.faults.append(exc.message)

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        stored()

    def finish(self) -> None:
        digests = self.digest.finish()
        if not self.faults:
            self.sha256 = digests.sha256
            self.faults += content_faults(self.file, digests)
        self._progress.end(self._label, "bad" if self.faults else "ok")

    def _on_read(self, count: int) -> None:
        self._progress.fetched(self._label, count)


def content_faults(file: StoredFile, digests: Digests) -> list[str]:
    """How a file's content differs from its manifest; empty when it does not, or when there is none."""
    entry = file.entry
    if entry is None:
        return []
    faults = [
        f"bytes {start}-{stop - 1} are not what was uploaded (XXH3 {found[:8]}…, the manifest says {promised[:8]}…)"
        for (start, stop, promised), (_, _, found) in zip(entry.chunks.ranges(), digests.chunks.ranges(), strict=True)
        if promised != found
    ]
    if not faults and entry.sha256 != digests.sha256:
        faults = [f"its SHA-256 is {digests.sha256[:12]}…, the manifest says {entry.sha256[:12]}…"]
    return faults


def _structure_problems(store: Store, model: StoredModel) -> list[Problem]:
    problems = []
    headers: dict[str, Header] = {}
    files = [file for file in model.files if is_weights(file.path)]
    if not files:
        problems.append(Problem(model.name, "has no safetensors"))
    for file in files:
        try:
            headers[file.path] = _read_header(store, model.name, file)
        except (IntegrityError, ConflictError, NotFoundError) as exc:  # noqa: PERF203  # one bad file hides no other
            problems.append(Problem(file.path, exc.message.removeprefix(f"{file.path}: ")))
    try:
        shards = _shards(store, model)
        check_twins({path: headers[path] for path in shards if path in headers}, where=model.name)
    except IntegrityError as exc:
        problems.append(Problem(model.name, exc.message.removeprefix(f"{model.name}: ")))
    return problems


def _shards(store: Store, model: StoredModel) -> Sequence[str]:
    """The files that a load reads.

    Raises:
        IntegrityError: One is missing, or the index is malformed.
    """
    name = index_name(model.listing)
    if name is not None:
        return weights(model.listing, index=store.get(f"{model.name}/{name}", bytes_max=64 * MIB)[0])
    shards = weights(model.listing)
    check_numbers(shards)
    return shards


def _read_header(store: Store, name: str, file: StoredFile) -> Header:
    """Reads and checks one file's header.

    Raises:
        HeaderError: It is truncated, or describes another file.
    """
    head = bytearray(min(MIB, file.size))
    read_range(store, name, file.objects, 0, memoryview(head), lambda _: None)
    stop = header_stop(head[:LENGTH_BYTES], file_bytes=file.size, path=file.path)
    if stop > len(head):
        head = bytearray(stop)
        read_range(store, name, file.objects, 0, memoryview(head), lambda _: None)
    return parse_header(head, file_bytes=file.size, path=file.path)
