"""A whole comparison, with runs that a test decides."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import NotFoundError
from coldstream.operate.bench import comparing, contestant
from coldstream.operate.bench.comparing import BenchStep, compare
from coldstream.operate.bench.contestant import BenchPlan
from coldstream.operate.bench.floors import Floors
from coldstream.operate.bench.runner import Run, RunFailed
from coldstream.settings import load_settings
from tests.unit.operate.bench.results import a_run
from tests.unit.operate.bench.test_contestant import EVERYTHING, TARGET, loader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchPlan:
    monkeypatch.setattr(comparing, "probe_interpreters", lambda paths: {sys.executable: EVERYTHING})
    monkeypatch.setattr(comparing.floors, "measure", lambda target, *, connections: Floors(bucket=1e9))
    settings = load_settings(
        {"COLDSTREAM_STORE": "s3://models/below", "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}, environ={}
    )
    loaders = (loader("coldstream"), loader("boto3"))
    return BenchPlan(target=TARGET, settings=settings, loaders=loaders, runs=2, drop_caches=False)


def play(monkeypatch: pytest.MonkeyPatch, run: Callable[[str], dict[str, Any]]) -> list[str]:
    """Answers each run by its reader; returns the readers in the order in which they ran."""
    readers: list[str] = []

    def answer(command: Sequence[str], environ: Mapping[str, str], *, cwd: Path, timeout_seconds: float) -> Run:
        assert not [*cwd.iterdir()], "a .env file there would be read"
        readers.append(command[-1])
        return dataclasses.replace(a_run(1.0), result={"bytes": TARGET.model.bytes, **run(command[-1])})

    monkeypatch.setattr(comparing, "run", answer)
    return readers


def test_an_untimed_run_of_each_and_then_the_rounds(
    plan: BenchPlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readers = play(monkeypatch, lambda _: {"digest": "d"})
    steps: list[BenchStep] = []
    result = compare(plan, steps.append)
    assert readers[:2] == ["coldstream", "boto3"]
    assert sorted(readers[2:]) == ["boto3", "boto3", "coldstream", "coldstream"]
    assert result.is_sound
    assert [len(row.runs) for row in result.loads] == [2, 2]
    assert result.loads[0].floors == {"bucket": 1e9}
    assert [(step.done, step.total) for step in steps] == [(number, 7) for number in range(1, 8)]
    assert [step.round for step in steps] == [0, 0, 0, 1, 1, 2, 2]
    assert not [*tmp_path.iterdir()], "copies are deleted"


def test_a_digest_that_differs_from_coldstream_s_is_wrong(plan: BenchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, lambda reader: {"digest": reader})
    assert [row.state for row in compare(plan, lambda _: None).loads] == ["ok", "wrong"]


def test_a_loader_whose_first_run_fails_or_is_incomplete_is_not_timed(
    plan: BenchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = play(monkeypatch, lambda reader: {"bytes": 1} if reader == "boto3" else {})
    steps: list[BenchStep] = []
    result = compare(plan, steps.append)
    assert readers.count("boto3") == 1
    assert result.loads[1].failure == "it received 1 of 900 bytes"
    assert (steps[-1].done, steps[-1].total) == (5, 5)
    play(monkeypatch, lambda _: {"bytes": 1})
    with pytest.raises(RunFailed, match="every loader failed: coldstream, cold: it received"):
        compare(plan, steps.append)


@pytest.mark.parametrize("fault", [RunFailed("it crashed"), KeyboardInterrupt()])
def test_a_mount_is_ended_also_when_its_run_was_not_complete(
    plan: BenchPlan, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    folders: list[Path] = []
    monkeypatch.setattr(comparing, "run", fail)
    monkeypatch.setattr(comparing, "unmount", folders.append)
    monkeypatch.setattr(contestant, "find_rclone", lambda: "/usr/bin/rclone")
    monkeypatch.setattr(contestant, "mount_refusal", lambda: None)
    with pytest.raises(type(fault)):
        compare(dataclasses.replace(plan, loaders=(loader("rclone-mount"),)), lambda _: None)
    assert folders[-1].name == "mount"
    assert not folders[-1].exists()


def test_nothing_to_compare_says_why(plan: BenchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "probe_interpreters", lambda paths: {sys.executable: {}})
    with pytest.raises(NotFoundError, match="boto3: boto3 is not installed") as caught:
        compare(dataclasses.replace(plan, loaders=(loader("boto3"),)), lambda _: None)
    assert caught.value.hint == "run: pip install boto3"


def test_a_copy_that_does_not_fit_on_the_disk_is_skipped(plan: BenchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, lambda _: {})
    model = dataclasses.replace(TARGET.model, bytes=1 << 60)
    target = dataclasses.replace(TARGET, model=model)
    plan = dataclasses.replace(plan, target=target, loaders=(loader("coldstream-warm"),))
    with pytest.raises(NotFoundError, match=r"coldstream-warm: it needs .* are free"):
        compare(plan, lambda _: None)
