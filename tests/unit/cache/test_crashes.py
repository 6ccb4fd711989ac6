"""Every call may fail, every process may be killed, and many may run at once."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coldstream.cache import copy_writer as writer_module
from coldstream.cache.cache import Cache
from coldstream.errors import DiskError
from coldstream.machine.atomic_file import TEMPORARY_PREFIX
from tests.unit.cache.cached_models import (
    HUGE,
    URI,
    Model,
    begun,
    files_below,
    open_descriptors,
    run_python,
    start_python,
)


def nothing() -> None:
    """No fault."""


class Faults:
    """Counts the operating system's calls that change a disk, and does something at the Nth.

    Syncs are counted and left out: they matter to a machine that loses power, not to a process that is killed.
    """

    NAMES = ("open", "mkdir", "pwrite", "write", "fsync", "fdatasync", "ftruncate", "replace", "rename", "utime")

    def __init__(self, at: int = 0, act: Callable[[], None] = nothing) -> None:
        self.at, self.act, self.count = at, act, 0
        self.real = {name: getattr(os, name) for name in self.NAMES if hasattr(os, name)}

    def __enter__(self) -> Faults:
        for name, function in self.real.items():
            setattr(os, name, self._counted(name, function))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name, function in self.real.items():
            setattr(os, name, function)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                if name in {"write", "pwrite"}:
                    # Half of it arrives.
                    half = memoryview(args[1])[: len(args[1]) // 2]
                    function(args[0], half, *args[2:])
                self.act()
            return None if name in {"fsync", "fdatasync"} else function(*args, **options)

        return call


# Small, for it is run once for every call that it makes.
SMALL = {"a.safetensors": [40, 3], "sub/b.safetensors": [7] * 3, "empty": []}


def scenario(model: Model, cache: Cache) -> None:
    """What a load's writer does: write, forget, write again."""
    with model.open(cache) as copy:
        writer = copy.writer()
        if writer is not None:
            with writer:
                order = model.chunks()
                random.Random(5).shuffle(order)
                for done, (file, chunk) in enumerate(order):
                    model.write(writer, file, chunk)
                    if done in {1, 3}:
                        writer.forget(file, chunk)
                        model.write(writer, file, chunk)


def recover(model: Model, cache: Cache) -> None:
    """Whatever happened before: what is claimed is right, and the rest can be written."""
    scratch = {TEMPORARY_PREFIX}
    with model.open(cache) as copy:
        model.check(copy)
        writer = copy.writer()
        if writer is not None:
            with writer:
                model.check(copy)
                model.write_all(writer)
        assert copy.complete
        model.check(copy)
        extra = {path for path in files_below(copy.folder / ".coldstream") if not path.startswith(tuple(scratch))}
        assert extra == {"plan.json", "journal", "lock", "writer.lock", "used"}
    latest = cache.latest(URI)
    assert latest is not None
    latest.close()
    assert [entry.in_use for entry in cache.entries()] == [False]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_call_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(writer_module, "SYNC_BYTES", 60)
    model = Model(SMALL, hashed=number == errno.EIO)

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    for at in range(1, 1000):
        cache = Cache(tmp_path / str(at), bytes_max=HUGE)
        before = open_descriptors()
        failed = False
        with Faults(at, fail) as faults:
            try:
                scenario(model, cache)
            except DiskError as exc:
                failed = True
                assert os.strerror(number) in exc.message
                assert ("free some space" in (exc.hint or "")) == (number == errno.ENOSPC)
        assert open_descriptors() == before
        with Faults():
            recover(model, cache)
        if faults.count < at:
            break
        assert failed
    assert 50 < at < 999


def kill_at_every_call(root: Path) -> None:
    """Runs the scenario in forked children, each killed one call later than the one before; prints how many."""
    model = Model(SMALL, hashed=False)
    for at in range(1, 1000):
        child = os.fork()
        if not child:
            with Faults(at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                scenario(model, Cache(root / str(at), bytes_max=HUGE))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        with Faults():
            recover(model, Cache(root / str(at), bytes_max=HUGE))
        shutil.rmtree(root / str(at))
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
    print(at)


def test_killed_at_any_call_the_next_open_is_right(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tests.unit.cache.test_crashes import kill_at_every_call as f"
    points = int(run_python(f"{code}; f(Path(sys.argv[1]))", tmp_path))
    assert 50 < points < 999


ENDLESS = """
import random, sys
from pathlib import Path
from tests.unit.cache.cached_models import HUGE, Model, begun
from tests.unit.cache.test_crashes import BIG
from coldstream.cache.cache import Cache
model = Model(BIG)
order = model.chunks()
random.Random(int(sys.argv[2])).shuffle(order)
with model.open(Cache(Path(sys.argv[1]), bytes_max=HUGE)) as copy:
    while writer := copy.writer():
        with writer:
            for file, chunk in order:
                print(file, chunk, flush=True)
                model.write(writer, file, chunk)
"""


BIG = {f"{number}.safetensors": [70_000] * 20 for number in range(5)}


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_random_the_next_writer_goes_on(cache: Cache, seed: int) -> None:
    model = Model(BIG)
    rng = random.Random(seed)
    total = len(model.chunks())
    least = 0
    for _ in range(3):
        with start_python(ENDLESS, cache.root, rng.randrange(1000)) as process:
            assert process.stdout is not None
            lines = 0
            for _line in process.stdout:
                lines += 1
                if lines >= rng.randrange(5, total // 2):
                    break
            process.kill()
            rest = process.stdout.read().count("\n")
        with model.open(cache) as copy:
            there = model.check(copy)
            # Each line is printed before its chunk is written: all but the last are there.
            assert there >= min(least, total)
            assert there >= min(lines + rest - 1, total)
            least = there
    recover(model, cache)


HOLDER = """
import sys
from pathlib import Path
from tests.unit.cache.cached_models import HUGE, Model, begun
from coldstream.cache.cache import Cache
from coldstream.cache.copy_writer import CopyWriter
model = Model()
cache = Cache(Path(sys.argv[1]), bytes_max=HUGE)
copy = model.open(cache)
held = copy.writer() if sys.argv[2] == "writer" else copy
if sys.argv[2] == "writer":
    copy.close()
    model.write(held, 0, 0)
print("ready", flush=True)
sys.stdin.read()
held.close()
"""


@pytest.mark.parametrize("what", ["copy", "writer"])
def test_another_process_holds_a_copy(cache: Cache, what: str) -> None:
    model = Model()
    with start_python(HOLDER, cache.root, what) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        (entry,) = cache.entries()
        assert entry.in_use
        assert entry.writing == (what == "writer")
        assert cache.prune() == []
        with model.open(cache) as copy:
            assert model.check(copy) == int(what == "writer")
            second = copy.writer()
            assert (second is None) == (what == "writer")
            if second:
                second.close()
        with pytest.raises(DiskError, match="another process"):
            Model(seed=1).open(cache)
        process.stdin.close()
        assert process.wait(60) == 0
    (entry,) = cache.entries()
    assert not entry.in_use
    with model.open(cache) as copy, begun(copy) as writer:
        assert writer.have(0, 0) == (what == "writer")
    assert len(cache.prune()) == 1


def test_a_killed_holder_holds_nothing(cache: Cache) -> None:
    with start_python(HOLDER, cache.root, "writer") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    (entry,) = cache.entries()
    assert not entry.in_use
    assert not entry.writing


RACER = """
import random, sys
from pathlib import Path
from coldstream.cache.cache import Cache
from coldstream.errors import DiskError
from tests.unit.cache.cached_models import Model
rng = random.Random(int(sys.argv[2]))
cache = Cache(Path(sys.argv[1]), bytes_max=1_200_000)
for _ in range(60):
    number = rng.randrange(4)
    model = Model({"w": [100_000] * 4, "x/y": [10, 10]}, seed=number)
    with model.open(cache, name=f"m/{number}", uri=f"s3://b/m/{number}") as copy:
        model.check(copy, moving=True)
        try:
            writer = copy.writer()
            if writer:
                with writer:
                    for file, chunk in rng.sample(model.chunks(), rng.randrange(7)):
                        model.write(writer, file, chunk)
        except DiskError as exc:
            assert "in use" in exc.message, exc.message
        found = cache.latest(f"s3://b/m/{number}")
        if found:
            with found:
                assert found.complete
    if rng.random() < 0.2:
        cache.prune(keep_bytes=500_000)
print("done")
"""


def test_many_processes_at_once(cache: Cache) -> None:
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(start_python(RACER, cache.root, seed)) for seed in range(3)]
        for racer in racers:
            assert racer.communicate(timeout=120)[0] == "done\n"
            assert racer.returncode == 0
    assert not any(entry.in_use for entry in cache.entries())
