"""Verifies a model: does the store hold what was uploaded?

By default one listing is compared with the manifest: presence, sizes, ETags. `deep` reads every byte and recomputes all
hashes. Of a model without a manifest the structure is checked: whole safetensors files, all of them, no tensor twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from coldstream.errors import ConflictError, IntegrityError, ManifestError, NotFoundError
from coldstream.mirror import stored_files
from coldstream.mirror.digest import read_header
from coldstream.mirror.pump import CONNECTIONS, MEMORY_BYTES, Pump
from coldstream.mirror.segment_pool import ROOT
from coldstream.model.header import Header, check_duplicate_tensors
from coldstream.model.manifest import Journal, unpack_header, upload_command
from coldstream.model.selection import check_numbers, index_name, is_weights, weights
from coldstream.places.place import Store
from coldstream.progress import Progress
from coldstream.units import MIB


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of one file."""

    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The result of a verification."""

    name: str
    state: str  # "ready", "incomplete" or "foreign"
    ok: bool
    deep: bool  # whether every byte was read; then `sha256` has the hash of each file
    layout: str  # as in `layout_of`
    segments: int
    files: int
    bytes: int
    problems: tuple[Problem, ...]  # sorted by path
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
    """Checks a model. Problems are reported, not raised, unless there is no such model or its manifest is not valid."""
    began = time.monotonic()
    model = stored_files.open_model(store, name)
    name, files = model.name, model.files
    problems = [Problem(path, what) for path, what in stored_files.missing_objects(store, model)]
    if isinstance(model.record, Journal):
        problems.append(Problem("coldstream.json", f"the upload is incomplete; run: {upload_command(model.record)}"))
    if model.record is None:
        problems += _structure_problems(store, model)
    problems += filter(None, map(_header_problem, files))
    bad = {problem.path for problem in problems}
    works = []
    if deep:
        progress = progress or Progress()
        good = [file for file in files if file.path not in bad]
        works = [_FileCheck(store, name, file, progress) for file in good]
        works += [
            _FileCheck(store, name, replace(file, objects=(file.plain,)), progress, is_copy=True)
            for file in good
            if file.plain
        ]
        Pump(cancel=store.retry.cancel, connections=connections, memory_bytes=memory_bytes).run(works)
        problems += [Problem(work.file.path, work.prefix + what) for work in works for what in work.problems]
    return VerifyReport(
        name=name,
        state="foreign" if model.record is None else "incomplete" if isinstance(model.record, Journal) else "ready",
        ok=not problems,
        deep=deep,
        layout=stored_files.layout_of(model.record),
        segments=sum(f"/{ROOT}" in stored.key for file in files for stored in file.objects),
        files=len(files),
        bytes=sum(file.size for file in files),
        problems=tuple(sorted(problems, key=lambda problem: problem.path)),
        sha256={work.file.path: work.sha256 for work in works if work.sha256 and not work.prefix},
        seconds=time.monotonic() - began,
    )


class _FileCheck(stored_files.StoredFileRead):
    def __init__(
        self, store: Store, name: str, file: stored_files.StoredFile, progress: Progress, *, is_copy: bool = False
    ) -> None:
        super().__init__(store, name, file, progress, label=f"{file.path} (in one piece)" if is_copy else file.path)
        self.prefix = stored_files.COPY if is_copy else ""
        self.problems: list[str] = []
        self.sha256: str | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        self._progress.begin(self._label, self.file.size, stages=1)

    def fetch(self, start: int, view: memoryview) -> None:
        try:
            super().fetch(start, view)
        except (IntegrityError, ConflictError, NotFoundError) as exc:
            # The report is about all files: one bad file does not stop the others.
            with self._lock:
                if not self.problems:
                    self.problems.append(exc.message)

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        stored()

    def finish(self) -> None:
        digests = self.digest.finish()
        if not self.problems:
            self.sha256 = digests.sha256
            self.problems += stored_files.content_problems(self.file, digests)
        self._progress.end(self._label, "bad" if self.problems else "ok")


def _header_problem(file: stored_files.StoredFile) -> Problem | None:
    """Whether the manifest's copy of a header has the hash of the header itself."""
    try:
        if file.entry is not None:
            unpack_header(file.entry)
    except ManifestError as exc:
        return Problem(file.path, exc.message.removeprefix(f"{file.path}: "))
    return None


def _structure_problems(store: Store, model: stored_files.StoredModel) -> list[Problem]:
    problems = []
    headers: dict[str, Header] = {}
    files = [file for file in model.files if is_weights(file.path)]
    if not files:
        problems.append(Problem(model.name, "has no safetensors files"))
    for file in files:
        try:
            read_start = partial(stored_files.read_range, store, model.name, file.objects, 0)
            headers[file.path] = read_header(read_start, path=file.path, size=file.size)
        except (IntegrityError, ConflictError, NotFoundError) as exc:  # noqa: PERF203  # one bad file does not hide the others
            problems.append(Problem(file.path, exc.message.removeprefix(f"{file.path}: ")))
    try:
        index = index_name(model.listing)
        data = store.get(f"{model.name}/{index}", bytes_max=64 * MIB)[0] if index else None
        shards = weights(model.listing, index=data)
        if index is None:
            check_numbers(shards)
        check_duplicate_tensors({path: headers[path] for path in shards if path in headers}, where=model.name)
    except IntegrityError as exc:
        problems.append(Problem(model.name, exc.message.removeprefix(f"{model.name}: ")))
    return problems
