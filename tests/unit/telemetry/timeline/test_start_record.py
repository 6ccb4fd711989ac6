"""`timeline.json`: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import DiskError, IntegrityError, NotFoundError, UsageError
from coldstream.telemetry.timeline.phases import TEXT_MAX, clean
from coldstream.telemetry.timeline.start_record import RECORD_BYTES_MAX, Timeline, parse, run_name
from coldstream.telemetry.timeline.timeline_store import KEPT, Timelines, read
from tests.unit.telemetry.timeline.starts import BEGAN, finished, recorded, streamed


def test_what_is_written_is_read() -> None:
    timeline = streamed()
    data = timeline.serialize()
    assert parse(data, where="here") == timeline
    document = json.loads(data)
    assert document["format"] == 1
    assert document["began"] == "2026-11-24T10:20:01Z"
    assert document["named_share"] == 1.0
    assert document["bundle"]["bytes"] == 404_000


@given(st.text(max_size=600), st.text(max_size=30))
def test_any_name_can_be_kept(model: str, key: str) -> None:
    timeline = finished(recorded((), ready=9.0), model=model, bundle={key: model})
    assert parse(timeline.serialize(), where="here") == timeline
    assert len(timeline.model) <= TEXT_MAX


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(streamed().serialize()) | fields).encode()


HOSTILE = {
    "empty": b"",
    "no json": b"\x00\xff{",
    "another document": b"[]",
    "no format": b'{"run": "x"}',
    "deep": b"[" * 100_000,
    "deep inside": changed(bundle="@").replace(b'"@"', b"[" * 5000 + b"]" * 5000),
    "not a number": changed(ready_seconds="@").replace(b'"@"', b"NaN"),
    "infinite": changed(ready_seconds="@").replace(b'"@"', b"1e999"),
    "negative": changed(ready_seconds=-1.0),
    "a run that climbs": changed(run="../../etc/passwd"),
    "a terminal's commands": changed(model="\x1b]0;owned\x07"),
    "text turned around": changed(model="a\u202eb"),
    "a long name": changed(model="m" * (TEXT_MAX + 1)),
    "a phase that ends before it begins": changed(phases=[{"name": "x", "start": 2.0, "stop": 1.0}]),
    "phases that overlap": changed(
        phases=[{"name": "x", "start": 0.0, "stop": 2.0}, {"name": "y", "start": 1.0, "stop": 3.0}]
    ),
    "too many phases": changed(phases=[{"name": "x", "start": 0.0, "stop": 0.0}] * 101),
    "a bundle with depth": changed(bundle={"state": {"a": 1}}),
    "no zone": changed(began="2026-11-24T10:20:01"),
    "too large": b" " * (RECORD_BYTES_MAX + 1),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_anything_else_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"timeline\.json is"):
        read(path)


@given(st.binary(max_size=200))
def test_no_bytes_end_the_reader(data: bytes) -> None:
    try:
        parse(data, where="here")
    except IntegrityError as exc:
        assert clean(exc.message) == exc.message or "\n" in exc.message


def test_a_newer_format_is_refused_and_newer_fields_are_not() -> None:
    with pytest.raises(IntegrityError, match="format 3, but this coldstream reads formats up to 2"):
        parse(changed(format=3, phases="something else"), where="here")
    assert parse(changed(novelty=[1, {"a": None}]), where="here") == streamed()


def test_starts_are_named_by_time_and_model() -> None:
    assert run_name(BEGAN, "Qwen/Qwen3-8B") == "20261124-102001-qwen3-8b"
    assert run_name(BEGAN, "/some/folder/") == "20261124-102001-folder"
    assert run_name(BEGAN, "../..") == "20261124-102001-model"
    assert run_name(BEGAN, "org/" + "é€x" * 90).startswith("20261124-102001-x")


def test_two_starts_in_one_second_are_both_kept(tmp_path: Path) -> None:
    kept = Timelines(tmp_path / "cache")
    assert kept.runs() == []
    names = [kept.keep(streamed()).run for _ in range(12)]
    assert names[:2] == ["20261124-102001-qwen3-8b", "20261124-102001-qwen3-8b-2"]
    assert kept.runs() == names[::-1]
    path = kept.path(names[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read(path).run == names[0]
    kept.update(kept.find(names[1]).with_bundle({"state": "local", "published": "published"}))
    assert kept.find(names[1]).bundle == {"state": "local", "published": "published"}
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted(f"{name}.json" for name in names)


def at(seconds: int) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def test_the_newest_hundred_stay(tmp_path: Path) -> None:
    kept = Timelines(tmp_path)
    names = [kept.keep(finished(recorded((), ready=9.0), began_at=at(number))).run for number in range(KEPT + 5)]
    assert kept.runs() == names[:4:-1]


def test_starts_are_found_by_the_beginning_of_their_name(tmp_path: Path) -> None:
    kept = Timelines(tmp_path)
    with pytest.raises(NotFoundError, match="no start is recorded"):
        kept.find(None)
    first = kept.keep(streamed())
    second = kept.keep(finished(recorded((), ready=9.0), began_at=at(60)))
    assert kept.find(None) == second
    assert kept.find("20261124-1020") == first
    assert kept.find(str(kept.path(first.run))) == first
    with pytest.raises(UsageError, match="is ambiguous"):
        kept.find("2026")
    with pytest.raises(NotFoundError, match="no start is named"):
        kept.find("2027")
    with pytest.raises(NotFoundError, match="no such file"):
        kept.find("./nothing.json")


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    kept = Timelines(tmp_path)
    whole = kept.keep(streamed())
    kept.path("20261125-000000-broken").write_bytes(b"{")
    kept.path("20261125-000001-begun").touch()
    (kept.folder / "notes.json").write_text("{}")
    assert kept.find(None) == whole
    assert [timeline.run for timeline in kept.all()] == [whole.run]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(DiskError, match="is writable by other users"):
        Timelines(root).keep(streamed())


def test_the_record_holds_what_is_documented_and_no_more() -> None:
    text = (Path(__file__).resolve().parents[4] / "docs/timeline.md").read_text()
    document = streamed().document()
    names = {
        *document,
        *(Timeline.__struct_fields__),
        *document["stream"],
        *document["machine"],
        *document["phases"][0],
    }
    for name in names | set(document["spans"][0]):
        assert f"`{name}`" in text, name
