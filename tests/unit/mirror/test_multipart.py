"""A large file goes in parts, and an interrupted upload resumes with the stored ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import UnavailableError
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import UploadReport, plan_upload
from coldstream.mirror.verify import verify
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Store
from coldstream.units import MIB
from tests.models import safetensors_bytes, write_model
from tests.unit.mirror.stored_models import NAME, SHARD, folder_store

SIZE = 12 * MIB
PART = 5 * MIB


def send(store: Any, folder: Path) -> UploadReport:
    source = FolderSnapshot(folder)
    return upload(store, source, plan_upload(store, source, NAME, part_bytes=PART), connections=1)


class Wrapped:
    """A store of which a test replaces some calls."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source", {SHARD: safetensors_bytes({"a": SIZE})})


@pytest.fixture
def interrupted(tmp_path: Path, source: Path) -> Store:
    """A store with two of the three parts, as the next process opens it."""

    class Failing(Wrapped):
        def put_part(self, key: str, upload_id: str, number: int, *args: Any, **options: Any) -> str:
            if number == 3:
                raise UnavailableError("gone")
            return str(self._store.put_part(key, upload_id, number, *args, **options))

    with pytest.raises(UnavailableError):
        send(Failing(folder_store(tmp_path)), source)
    return folder_store(tmp_path)


def test_a_file_in_parts_is_recorded_with_its_part_size(tmp_path: Path, source: Path) -> None:
    store = folder_store(tmp_path)
    assert send(store, source).parts == 3
    assert verify(store, NAME, deep=True).ok
    assert not list(store.uploads(""))


def test_stored_parts_are_not_sent_again(interrupted: Store, source: Path) -> None:
    report = send(interrupted, source)
    assert (report.parts, report.sent_files) == (1, 1)
    assert report.kept_bytes == 2 * PART
    assert verify(interrupted, NAME, deep=True).ok


def test_parts_of_other_bytes_are_sent_again(interrupted: Store, source: Path) -> None:
    write_model(source, {SHARD: safetensors_bytes({"a": SIZE}, seed=1)})
    assert send(interrupted, source).parts == 3
    assert verify(interrupted, NAME, deep=True).ok


def test_a_completion_whose_reply_is_lost_counts(moto_store: Store, source: Path) -> None:
    class Repeating(Wrapped):
        def complete_upload(self, *args: Any) -> None:
            self._store.complete_upload(*args)
            self._store.complete_upload(*args)

    assert send(Repeating(moto_store), source).parts == 3
    assert verify(moto_store, NAME, deep=True).ok
