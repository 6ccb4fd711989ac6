"""All of it: the floors, a first untimed run of everything that proves the bytes, then the timed runs, interleaved."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from coldstream.cache.cache import cache_of
from coldstream.engines.vllm.endpoint import free_port
from coldstream.engines.vllm.flags import value_of
from coldstream.engines.vllm.program import Program, find_program
from coldstream.errors import NotFoundError
from coldstream.machine import hardware
from coldstream.operate.bench import floors, pagecache
from coldstream.operate.bench.contestant import OURS, Contestant, Kind, Maker, Python, Skipped, Wishes, pythons
from coldstream.operate.bench.result import Result, Row
from coldstream.operate.bench.runner import Run, RunFailed, run
from coldstream.operate.bench.schedule import rounds
from coldstream.operate.bench.target import Target
from coldstream.package import __version__
from coldstream.settings import Settings
from coldstream.units import GIB, format_bytes, plural

TIMEOUT_SECONDS = 900.0
_FOLDER = "coldstream-bench-"
# What is written besides the weights, and what a disk must not be filled up to.
_ROOM = 1.1
# Who fails so often is not run again.
_FAILURES_MAX = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be compared, and how.

    Attributes:
        target: The model.
        settings: Where the bucket is.
        kinds: Of loaders.
        wishes: How they are set.
        runs: Timed ones of each.
        seed: Of their order.
        interpreters: Paths of more interpreters that may have loaders.
        drop: Whether the page cache is dropped before runs, as far as that is allowed.
        timeout_seconds: For each run.
        vllm_flags: For whole starts of vLLM; None when none are wanted.
    """

    target: Target
    settings: Settings
    kinds: Sequence[Kind]
    wishes: Wishes
    runs: int = 3
    seed: int = 0
    interpreters: Sequence[str] = ()
    drop: bool = True
    timeout_seconds: float = TIMEOUT_SECONDS
    vllm_flags: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something was done.

    Attributes:
        label: By whom, or what.
        round: 0 for what is not timed.
        done: How many steps.
        total: Of how many.
        run: What came out; None when it failed, or is no run.
        text: More, for people.
        of: "load", "start" or "floor".
    """

    label: str
    round: int = 0
    done: int
    total: int
    run: Run | None = None
    text: str = ""
    of: str = "load"


OnStep = Callable[[Step], None]


@dataclass(slots=True)
class _Entry:
    contestant: Contestant
    failures: int = 0
    failure: str | None = None
    digest: str | None = None
    runs: list[Run] = field(default_factory=list)


def compare(plan: Plan, on_step: OnStep) -> Result:
    """Runs a plan.

    Args:
        plan: What is to be compared.
        on_step: Told whenever something was done.

    Raises:
        NotFoundError: Nothing of what was asked for is installed, or vLLM is not.
        UsageError: A named interpreter or device cannot be used.
        RunFailed: Not one loader succeeded.
    """
    began = datetime.now(timezone.utc)
    interpreters, program = _interpreters(plan)
    with _scratch(plan.settings) as scratch:
        maker = Maker(plan.target, plan.settings, interpreters, plan.wishes, scratch)
        loads = _made(plan, maker.make, scratch)
        starts = _starts(plan, maker, program, scratch)
        contestants = [one for one in loads if isinstance(one, Contestant)]
        starters = [one for one in starts if isinstance(one, Contestant)]
        skipped = tuple(one for one in loads if isinstance(one, Skipped))
        if not contestants and not starters:
            raise NotFoundError(_nothing(skipped), hint=next((one.hint for one in skipped if one.hint), None))
        # Where no `.env` lies.
        empty = scratch / "empty"
        empty.mkdir()
        total = 1 + (len(contestants) + len(starters)) * (plan.runs + 1)
        match = _Match(plan, on_step, total=total, cwd=empty)
        match.floors = _floors(plan, maker)
        match.step("floors", of="floor")
        rows = match.play(contestants, "load", maker.cache)
        for folder in ("cache", "downloaded"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
        start_rows = match.play(starters, "start", scratch / "start-cache")
    if not any(row.runs for row in (*rows, *start_rows)):
        raise RunFailed("no loader succeeded: " + "; ".join(f"{row.label}: {row.failure}" for row in rows + start_rows))
    return Result(
        model=plan.target.name,
        uri=plan.target.label,
        bytes=plan.target.bytes,
        files=len(plan.target.shards),
        device=plan.wishes.device,
        rounds=plan.runs,
        seed=plan.seed,
        loads=tuple(rows),
        starts=tuple(start_rows),
        skipped=skipped,
        skipped_starts=tuple(one for one in starts if isinstance(one, Skipped)),
        floors=match.floors,
        dropped=match.dropped,
        dropped_said=pagecache.said(match.dropped, wanted=plan.drop),
        verified=plan.target.verified,
        machine=_machine(),
        versions=_versions((*rows, *start_rows)),
        began=began.isoformat(timespec="seconds"),
    )


class _Match:
    """Runs contestants and keeps what came out."""

    def __init__(self, plan: Plan, on_step: OnStep, *, total: int, cwd: Path) -> None:
        self._plan, self._on_step, self._total, self._cwd = plan, on_step, total, cwd
        self._done = 0
        self.floors = floors.Floors()
        self.dropped = pagecache.NOTHING

    def step(self, label: str, **more: Any) -> None:
        self._done += 1
        self._on_step(Step(label=label, done=self._done, total=self._total, **more))

    def play(self, contestants: Sequence[Contestant], of: str, cache: Path) -> list[Row]:
        """The first run of each, then the rounds.

        Args:
            contestants: All of one kind.
            of: "load" or "start".
            cache: The local cache that the first run fills for those that are warm.
        """
        entries = {one.name: _Entry(one) for one in contestants}
        for entry in entries.values():
            found = self._attempt(entry, entry.contestant.first_environ, of=of, number=0)
            if found is None:
                # Nothing of it can be trusted.
                entry.failures = _FAILURES_MAX
            else:
                entry.digest = found.result.get("digest")
        if of == "load":
            self._measure_disk(cache)
        alive = [name for name, entry in entries.items() if entry.failures < _FAILURES_MAX]
        self._total -= (len(entries) - len(alive)) * self._plan.runs
        for number, order in enumerate(rounds(alive, self._plan.runs, self._plan.seed), 1):
            for name in order:
                entry = entries[name]
                if entry.failures >= _FAILURES_MAX:
                    self.step(entry.contestant.label, round=number, text="not run again", of=of)
                    continue
                if run := self._attempt(entry, entry.contestant.environ, of=of, number=number):
                    entry.runs.append(run)
        truth = _truth(list(entries.values()))
        return [self._row(entry, truth, of) for entry in entries.values()]

    def _attempt(self, entry: _Entry, environ: Mapping[str, str], *, of: str, number: int) -> Run | None:
        contestant, plan = entry.contestant, self._plan
        for folder in contestant.emptied:
            shutil.rmtree(folder, ignore_errors=True)
        if number:
            dropped = pagecache.drop(contestant.dropped, wanted=plan.drop)
            if dropped != pagecache.NOTHING:
                self.dropped = dropped
        try:
            done = run(contestant.command, environ, cwd=self._cwd, timeout_seconds=plan.timeout_seconds)
            if of == "load" and done.result.get("bytes", 0) < plan.target.bytes:
                raise RunFailed(f"it received {done.result.get('bytes', 0)} of {plan.target.bytes} bytes")
        except RunFailed as exc:
            entry.failures += 1
            entry.failure = exc.message
            self.step(contestant.label, round=number, text=exc.message, of=of)
            return None
        self.step(contestant.label, round=number, run=done, of=of)
        return done

    def _measure_disk(self, cache: Path) -> None:
        target = self._plan.target
        folder = Path(target.folder) if target.kind == "folder" else cache
        if folder.is_dir():
            names = {path.rpartition("/")[2] for path, _ in target.files}
            rate, direct = floors.disk(folder, sorted(names))
            self.floors = replace(self.floors, disk=rate, is_disk=direct)

    def _row(self, entry: _Entry, truth: str | None, of: str) -> Row:
        one = entry.contestant
        from_disk = self.dropped != pagecache.NOTHING and bool(one.dropped)
        return Row(
            name=one.name,
            label=one.label,
            detail=one.detail,
            versions=one.versions,
            bytes=self._plan.target.bytes,
            runs=tuple(entry.runs),
            failure=entry.failure,
            same=None if truth is None or entry.digest is None else entry.digest == truth,
            # Of a start, the load is a small part.
            floors=self.floors.of(one, from_disk=from_disk) if of == "load" else {},
        )


def _truth(entries: Sequence[_Entry]) -> str | None:
    """What the others are compared with: ours, which compares each chunk with the manifest; else the first one's."""
    ours = [entry for entry in entries if entry.contestant.name in OURS]
    return next((entry.digest for entry in (*ours, *entries) if entry.digest is not None), None)


def _interpreters(plan: Plan) -> tuple[list[Python], Program | None]:
    """Interpreters that may have loaders, ours first; and vLLM, when whole starts are wanted."""
    program: Program | None = None
    # That of a named environment, else the one that `serve` would find.
    beside = [str(Path(path).absolute().with_name("vllm")) for path in plan.interpreters]
    for named in (*filter(os.path.isfile, beside), None):
        with suppress(NotFoundError):
            program = program or find_program(named)
    if plan.vllm_flags is not None and program is None:
        raise NotFoundError(
            "--vllm needs vLLM, which is not installed beside coldstream",
            hint="name its environment's interpreter: --python PATH",
        )
    more = [program.interpreter] if program and program.interpreter else []
    return pythons([sys.executable, *plan.interpreters, *more]), program


def _starts(plan: Plan, maker: Maker, program: Program | None, scratch: Path) -> list[Contestant | Skipped]:
    if plan.vllm_flags is None or program is None:
        return []
    flags = list(plan.vllm_flags)
    if value_of(flags, "--uds") is None:
        flags += ["--host", "127.0.0.1"] if value_of(flags, "--host") is None else []
        flags += ["--port", str(free_port())] if value_of(flags, "--port") is None else []
    return _made(plan, lambda kind: maker.start(kind, program, flags), scratch)


def _made(plan: Plan, make: Callable[[Kind], Contestant | Skipped], scratch: Path) -> list[Contestant | Skipped]:
    """Contestants, of which those that keep all of the model on the disk must have room there."""
    free = float(shutil.disk_usage(scratch).free)
    found: list[Contestant | Skipped] = []
    for kind in plan.kinds:
        one = make(kind)
        if isinstance(one, Contestant) and kind.on_disk and plan.target.kind != "folder":
            needed = _ROOM * plan.target.bytes
            if free < needed:
                reason = f"it needs {format_bytes(needed)} below {scratch.parent}, and {format_bytes(free)} are free"
                one = Skipped(name=kind.name, label=kind.label, reason=reason)
            else:
                free -= needed
        found.append(one)
    return found


def _floors(plan: Plan, maker: Maker) -> floors.Floors:
    pcie = None
    if plan.wishes.device != "cpu":
        python = maker.python("torch")
        if python is None:
            raise NotFoundError(
                f"the device {plan.wishes.device} needs torch, which is not installed",
                hint="name an interpreter that has it: --python PATH",
            )
        pcie = floors.pcie(python, plan.wishes.device)
    return replace(floors.measure(plan.target, connections=plan.wishes.connections), pcie=pcie)


@contextmanager
def _scratch(settings: Settings) -> Iterator[Path]:
    """A folder beside the local cache, on the same disk; gone at the end. The user's own copies are left alone."""
    beside = cache_of(settings).root.parent
    where = beside if beside.is_dir() and os.access(beside, os.W_OK) else Path(tempfile.gettempdir())
    for stale in where.glob(f"{_FOLDER}*"):
        # Of a run that was killed.
        if (match := re.fullmatch(rf"{_FOLDER}(\d+)-\w+", stale.name)) and not _runs(int(match[1])):
            shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _nothing(skipped: Sequence[Skipped]) -> str:
    told = "; ".join(f"{one.name}: {one.reason}" for one in skipped)
    return f"there is nothing to compare: {told}"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    parts = [f"{plural(hardware.cores(), 'core')} ({hardware.processor()})", f"{memory:.0f} GiB"]
    if cards := hardware.gpus():
        parts.append(f"{len(cards)} x {cards[0].name}")
    return ", ".join([*parts, f"{platform.system()} {platform.release().split('-')[0]}"])


def _versions(rows: Sequence[Row]) -> dict[str, str]:
    found = {"coldstream": __version__, "Python": platform.python_version()}
    for row in rows:
        found |= row.versions
    return found
