"""Runs a comparison: the floors, an untimed first run of everything that checks the bytes, then interleaved rounds."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from coldstream.cache.cache import cache_of
from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.program import Program
from coldstream.errors import NotFoundError
from coldstream.machine import hardware
from coldstream.node.http_endpoint import free_port
from coldstream.operate.bench import floors
from coldstream.operate.bench.contestant import OURS, BenchPlan, Contestant, ContestantFactory, probe_interpreters
from coldstream.operate.bench.programs.mount import unmount
from coldstream.operate.bench.result import BenchResult, BenchRow
from coldstream.operate.bench.runner import Run, RunFailed, interleave, run
from coldstream.package import __version__
from coldstream.settings import Settings
from coldstream.units import GIB, plural

_FOLDER = "coldstream-bench-"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchStep:
    """A finished step, one of `total`. `round` is 0 for an untimed run; `of` is "load", "start" or "floor"."""

    label: str
    round: int = 0
    done: int
    total: int
    run: Run | None = None
    text: str = ""
    of: str = "load"


def compare(plan: BenchPlan, on_step: Callable[[BenchStep], None]) -> BenchResult:
    """Runs a plan; raises UsageError for an unusable interpreter or device, RunFailed if every loader failed."""
    began = datetime.now(timezone.utc)
    program = _find_vllm(plan)
    vllm_interpreters = [program.interpreter] if program and program.interpreter else []
    interpreters = probe_interpreters([sys.executable, *plan.interpreters, *vllm_interpreters])
    with _scratch_folder(plan.settings) as scratch:
        factory = ContestantFactory(plan, interpreters, scratch)
        loads, skipped = factory.make_all(factory.make_load)
        starts: list[Contestant] = []
        if plan.vllm_flags is not None and program is not None:
            flags, vllm = _with_address(plan.vllm_flags), program
            starts, more = factory.make_all(lambda loader: factory.make_start(loader, vllm, flags), of="start")
            skipped += more
        if not loads and not starts:
            reasons = "; ".join(f"{one.name}: {one.reason}" for one in skipped if one.of == "load")
            hint = next((one.hint for one in skipped if one.hint), None)
            raise NotFoundError(f"there is nothing to compare: {reasons}", hint=hint)
        # A working directory without a `.env` file.
        empty = scratch / "empty"
        empty.mkdir()
        comparison = _Comparison(plan, on_step, total=1 + (len(loads) + len(starts)) * (plan.runs + 1), cwd=empty)
        comparison.floors = _measure_floors(plan, factory)
        comparison.step("floors", of="floor")
        load_rows = comparison.play(loads, "load", factory.cache)
        for folder in ("cache", "downloaded", "mount-cache"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
        start_rows = comparison.play(starts, "start", scratch / "start-cache")
    rows = [*load_rows, *start_rows]
    if not any(row.runs for row in rows):
        raise RunFailed("every loader failed: " + "; ".join(f"{row.label}: {row.failure}" for row in rows))
    versions = {name: version for row in rows for name, version in row.contestant.versions.items()}
    versions = {"coldstream": __version__, "Python": platform.python_version(), **versions}
    return BenchResult(plan=plan, loads=load_rows, starts=start_rows, skipped=skipped, floors=comparison.floors,
                       dropped=comparison.dropped, machine=describe_machine(), versions=versions,
                       began=began.isoformat(timespec="seconds"))  # fmt: skip


class _Comparison:
    def __init__(self, plan: BenchPlan, on_step: Callable[[BenchStep], None], *, total: int, cwd: Path) -> None:
        self._plan, self._on_step, self._total, self._cwd = plan, on_step, total, cwd
        self._done = 0
        self.floors = floors.Floors()
        self.dropped = floors.NOTHING

    def step(self, label: str, **more: Any) -> None:
        self._done += 1
        self._on_step(BenchStep(label=label, done=self._done, total=self._total, **more))

    def play(self, contestants: Sequence[Contestant], of: str, cache: Path) -> list[BenchRow]:
        plan = self._plan
        rows = {one.name: BenchRow(contestant=one, bytes=plan.target.model.bytes) for one in contestants}
        alive = []
        for name, row in rows.items():
            if first := self._attempt(row, row.contestant.first_environ, of=of, number=0):
                row.digest = first.result.get("digest")
                alive.append(name)
        folder = Path(plan.target.folder) if plan.target.kind == "folder" else cache
        if of == "load" and folder.is_dir():
            names = {path.rpartition("/")[2] for path, _ in plan.target.files}
            rate, direct = floors.measure_disk(folder, names)
            self.floors = replace(self.floors, disk=rate, disk_direct=direct)
        self._total -= (len(rows) - len(alive)) * plan.runs
        results = interleave(
            alive,
            plan.runs,
            plan.seed,
            lambda name, number: self._attempt(rows[name], rows[name].contestant.environ, of=of, number=number),
            on_dropped=lambda name, number: self.step(rows[name].label, round=number, text="not run again", of=of),
        )
        # coldstream verifies every chunk, so its digest is right; without it, the first loader's counts.
        digests = [rows[name].digest for name in (*(name for name in OURS if name in rows), *rows)]
        truth = next(filter(None, digests), None)
        for name, row in rows.items():
            row.runs = [run for run in results.get(name, ()) if run is not None]
            row.same = None if truth is None or row.digest is None else row.digest == truth
            if of == "load":
                from_disk = self.dropped != floors.NOTHING and bool(row.contestant.dropped)
                row.floors = self.floors.of(row.contestant, from_disk=from_disk)
        return list(rows.values())

    def _attempt(self, row: BenchRow, environ: Mapping[str, str], *, of: str, number: int) -> Run | None:
        contestant, plan = row.contestant, self._plan
        for folder in contestant.emptied:
            unmount(folder)
            shutil.rmtree(folder, ignore_errors=True)
        if number and plan.drop_caches:
            dropped = floors.drop_page_cache(contestant.dropped)
            self.dropped = dropped if dropped != floors.NOTHING else self.dropped
        try:
            done = run(contestant.command, environ, cwd=self._cwd, timeout_seconds=plan.timeout_seconds)
            if of == "load" and (size := done.result.get("bytes", 0)) < row.bytes:
                raise RunFailed(f"it received {size} of {row.bytes} bytes")
        except RunFailed as exc:
            row.failure = exc.message
            self.step(contestant.label, round=number, text=exc.message, of=of)
            return None
        self.step(contestant.label, round=number, run=done, of=of)
        return done


def _find_vllm(plan: BenchPlan) -> Program | None:
    """The vLLM of a named environment, else the one that `coldstream serve` would find, if it is installed."""
    beside = [str(Path(path).absolute().with_name("vllm")) for path in plan.interpreters]
    for path in (*filter(os.path.isfile, beside), None):
        with suppress(NotFoundError):
            return Program.find(path)
    if plan.vllm_flags is not None:
        hint = "name the interpreter of vLLM's environment: --python PATH"
        raise NotFoundError("--vllm needs vLLM, which is not installed in coldstream's environment", hint=hint)
    return None


def _with_address(flags: Sequence[str]) -> list[str]:
    parsed = Flags([*flags])
    address = {} if "--uds" in parsed else {"--host": "127.0.0.1", "--port": str(free_port())}
    return [*flags, *(word for pair in address.items() if pair[0] not in parsed for word in pair)]


def _measure_floors(plan: BenchPlan, factory: ContestantFactory) -> floors.Floors:
    pcie = None
    if plan.device != "cpu":
        if (python := factory.interpreter("torch")) is None:
            hint = "name an interpreter that has it: --python PATH"
            raise NotFoundError(f"device {plan.device} needs torch, which is not installed", hint=hint)
        pcie = floors.measure_pcie(python, plan.device)
    return replace(floors.measure(plan.target, connections=plan.connections), pcie=pcie)


@contextmanager
def _scratch_folder(settings: Settings) -> Iterator[Path]:
    """A temporary folder beside the local cache, on the same disk. The user's own copies are left alone."""
    beside = cache_of(settings).root.parent
    parent = beside if beside.is_dir() and os.access(beside, os.W_OK) else Path(tempfile.gettempdir())
    for stale in parent.glob(f"{_FOLDER}*"):
        # Left by a run that was killed.
        if (match := re.fullmatch(rf"{_FOLDER}(\d+)-\w+", stale.name)) and not os.path.exists(f"/proc/{match[1]}"):
            unmount(stale / "mount")
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f"{_FOLDER}{os.getpid()}-", dir=parent, ignore_cleanup_errors=True
    ) as folder:
        try:
            yield Path(folder)
        finally:
            # What a killed run has left: a folder with a dead mount cannot be removed.
            unmount(Path(folder, "mount"))


def describe_machine() -> str:
    """The cores, memory, GPUs and kernel, for people."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    parts = [f"{plural(hardware.cores(), 'core')} ({hardware.processor()})", f"{memory:.0f} GiB"]
    if cards := hardware.gpus():
        parts.append(f"{len(cards)} x {cards[0].name}")
    return ", ".join([*parts, f"{platform.system()} {platform.release().split('-')[0]}"])
