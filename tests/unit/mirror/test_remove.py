"""What a removal deletes, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import ManifestError, NotFoundError
from coldstream.mirror.listing import plan_removal, remove
from coldstream.mirror.manifest_records import record_key
from tests.unit.mirror.stored_models import FILES, NAME, folder_store, send


def test_a_plan_names_everything_and_deletes_nothing(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    store.create_upload(f"{NAME}/left.bin")
    removal = plan_removal(store, NAME)
    assert removal.keys == (record_key(NAME), *sorted(f"{NAME}/{path}" for path in FILES))
    assert [upload.key for upload in removal.uploads] == [f"{NAME}/left.bin"]
    assert (removal.segments, removal.shared_segments, removal.withheld) == (0, 0, None)
    assert len(list(store.list(f"{NAME}/"))) == len(FILES) + 1


def test_a_removal_leaves_other_models_alone(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    send(store, tmp_path, name="org/model-2")
    store.create_upload(f"{NAME}/left.bin")
    remove(store, plan_removal(store, NAME))
    assert not list(store.list(f"{NAME}/"))
    assert not list(store.uploads(f"{NAME}/"))
    assert len(list(store.list("org/model-2/"))) == len(FILES) + 1


def test_the_manifest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = folder_store(tmp_path)
    send(store, tmp_path)
    deleted: list[list[str]] = []
    monkeypatch.setattr(store, "delete", lambda keys: deleted.append(list(keys)))
    remove(store, plan_removal(store, NAME))
    assert deleted[0] == [record_key(NAME)]
    assert sorted(deleted[1]) == sorted(f"{NAME}/{path}" for path in FILES)


def test_a_broken_manifest_can_be_removed_but_not_by_revision(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    store.put(record_key(NAME), b"broken")
    assert plan_removal(store, NAME).keys[0] == record_key(NAME)
    with pytest.raises(ManifestError):
        plan_removal(store, f"{NAME}@main")


def test_an_absent_model_cannot_be_removed(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        plan_removal(folder_store(tmp_path), NAME)
