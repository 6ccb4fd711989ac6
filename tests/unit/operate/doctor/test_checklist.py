"""Which checks are looked at, in which order, and what one that failed means for the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import NotFoundError, UsageError
from coldstream.operate.doctor.case import Case
from coldstream.operate.doctor.checklist import CHECKLIST, DoctorCheck, examine, select
from coldstream.operate.probe import Check
from tests.unit.operate.doctor.cases import case_of


def test_what_a_check_needs_comes_before_it() -> None:
    seen: set[str] = set()
    for item in CHECKLIST:
        assert seen.issuperset(item.needs), item.name
        assert item.run.__doc__
        seen.add(item.name)
    assert len(seen) == len(CHECKLIST)


def test_slow_checks_come_last() -> None:
    slow = [item.slow for item in CHECKLIST]
    assert slow == sorted(slow)
    assert {item.name for item in CHECKLIST if item.slow} == {"chunk hashes", "speed"}


def test_selection() -> None:
    assert [item.name for item in select(only=["open-files", "Round Trip", "hf_xet"])] == [
        "round trip",
        "hf-xet",
        "open files",
    ]
    names = {item.name for item in select(skip=["speed"], quick=True)}
    assert names == {item.name for item in CHECKLIST} - {"speed", "chunk hashes"}
    with pytest.raises(UsageError, match="no check 'sped'") as caught:
        select(only=["sped"])
    assert "open-files" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no check is left"):
        select(only=["speed"], quick=True)


def test_one_fault_is_said_once(tmp_path: Path) -> None:
    def fails(_case: Case) -> Check:
        raise NotFoundError("it is gone", hint="fetch it")

    def breaks(_case: Case) -> Check:
        raise PermissionError(13, "Permission denied")

    def passes(case: Case) -> Check:
        return Check(name="c", state="ok", detail=repr(case))

    items = [
        DoctorCheck(name="a", run=fails),
        DoctorCheck(name="b", run=passes, needs=("a",)),
        DoctorCheck(name="c", run=passes, needs=("b",)),
        DoctorCheck(name="d", run=passes, needs=("not asked for",)),
        DoctorCheck(name="e", run=breaks),
    ]
    begun: list[str] = []
    checks = list(examine(case_of(tmp_path), items, begin=begun.append))
    assert [check.state for check in checks] == ["fail", "skipped", "skipped", "ok", "fail"]
    assert (checks[0].detail, checks[0].hint, checks[0].exit_code) == ("it is gone", "fetch it", 10)
    assert checks[1].detail == checks[2].detail == "skipped: a failed"
    assert "no model" in checks[3].detail
    assert "Permission denied" in checks[4].detail
    assert begun == ["a", "b", "c", "d", "e"]


def test_what_is_about_a_model_needs_one(tmp_path: Path) -> None:
    checks = {
        check.name: check for check in examine(case_of(tmp_path), select(only=["model", "chunk-hashes", "speed"]))
    }
    assert {check.detail for check in checks.values()} == {"skipped: no model was named"}


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a model's name"):
        case_of(tmp_path, "s3://bucket/org/m")


def test_patience_is_short_and_no_longer_than_it_was(tmp_path: Path) -> None:
    assert case_of(tmp_path).settings.retry_seconds == 15
    assert case_of(tmp_path, COLDSTREAM_RETRY_SECONDS="3").settings.retry_seconds == 3
    assert case_of(tmp_path).configured.retry_seconds == 180
