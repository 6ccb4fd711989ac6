"""What a verification reports."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from coldstream.errors import NotFoundError
from coldstream.mirror.verify import verify
from coldstream.model.manifest import pack_header, parse, serialize
from tests.models import safetensors_bytes, write_model
from tests.unit.mirror.stored_models import FILES, NAME, SHARD, folder_store, send


def test_a_whole_model(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    report = verify(store, NAME)
    assert (report.ok, report.state, report.deep, report.sha256) == (True, "ready", False, {})
    deep = verify(store, NAME, deep=True)
    assert deep.ok
    assert deep.sha256 == {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}


def test_changed_bytes_of_the_same_size_are_found_by_reading(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    path = tmp_path / "store" / NAME / SHARD
    path.write_bytes(FILES[SHARD][:-1] + bytes([FILES[SHARD][-1] ^ 1]))
    report = verify(store, NAME, deep=True)
    assert not report.ok
    assert [problem.path for problem in report.problems] == [SHARD]
    assert SHARD not in report.sha256


def test_a_wrong_copy_of_a_header_is_found_without_reading(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    key = f"{NAME}/coldstream.json"
    record = parse(store.get(key)[0], where=key)
    files = tuple(
        msgspec.structs.replace(e, chunks=msgspec.structs.replace(e.chunks, header=pack_header(b"x" * 99)))
        if e.path == SHARD
        else e
        for e in record.files
    )
    store.put(key, serialize(msgspec.structs.replace(record, files=files)))
    problems = {problem.path: problem.what for problem in verify(store, NAME).problems}
    assert problems == {SHARD: "the manifest's copy of its header is not what was uploaded"}


def test_missing_and_short_objects_are_found_without_reading(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    store.delete([f"{NAME}/config.json"])
    (tmp_path / "store" / NAME / SHARD).write_bytes(b"short")
    problems = {problem.path: problem.what for problem in verify(store, NAME).problems}
    assert problems["config.json"] == "is missing"
    assert problems[SHARD].startswith("has 5 bytes, but the manifest says")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (FILES, []),
        ({SHARD: b"no header at all", "config.json": b"{}"}, [SHARD]),
        ({"config.json": b"{}"}, [NAME]),
        ({f"model-0000{n}-of-00002.safetensors": safetensors_bytes({"a": 9}) for n in (1, 2)}, [NAME]),
        ({"model-00001-of-00002.safetensors": safetensors_bytes({"a": 9})}, [NAME]),
    ],
    ids=["whole", "no header", "no weights", "one tensor twice", "a shard is missing"],
)
def test_the_structure_of_a_foreign_model(tmp_path: Path, files: dict[str, bytes], expected: list[str]) -> None:
    write_model(tmp_path / "store" / NAME, files)
    report = verify(folder_store(tmp_path), NAME)
    assert (report.state, report.ok) == ("foreign", not expected)
    assert [problem.path for problem in report.problems] == expected


def test_an_absent_model_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        verify(folder_store(tmp_path), NAME)
