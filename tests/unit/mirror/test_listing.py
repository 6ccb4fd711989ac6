"""The states of models in a store."""

from __future__ import annotations

from pathlib import Path

from coldstream.mirror.listing import ModelInfo, list_models
from coldstream.mirror.manifest_records import JournalWriter, now, record_key
from coldstream.model.manifest import Journal, Provenance
from tests.models import write_model
from tests.unit.mirror.stored_models import FILES, NAME, SHARD, folder_store, send


def only(tmp_path: Path) -> ModelInfo:
    (model,) = list_models(folder_store(tmp_path))
    return model


def test_a_ready_model(tmp_path: Path) -> None:
    send(folder_store(tmp_path), tmp_path)
    model = only(tmp_path)
    assert (model.name, model.state, model.detail, model.layout) == (NAME, "ready", "", "plain")
    assert (model.files, model.bytes) == (len(FILES), sum(map(len, FILES.values())))


def test_models_are_sorted_by_name(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    for name in ("z/last", "a/first"):
        send(store, tmp_path, name=name)
    assert [model.name for model in list_models(store)] == ["a/first", "z/last"]


def test_an_interrupted_upload_shows_its_progress_and_final_size(tmp_path: Path) -> None:
    journal = Journal(
        name=NAME,
        source=Provenance(kind="hub", repo=NAME, commit="c" * 40),
        created=now(),
        tool="test",
        writer="w",
        planned_files=3,
        planned_bytes=12345,
        planned_shards=2,
        files=(),
    )
    JournalWriter(folder_store(tmp_path), journal, etag=None).open()
    model = only(tmp_path)
    assert (model.state, model.files, model.bytes) == ("incomplete", 3, 12345)
    assert model.detail.startswith("0/2 shards; run: coldstream upload")


def test_a_missing_object_damages_a_model(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    store.delete([f"{NAME}/{SHARD}"])
    model = only(tmp_path)
    assert model.state == "damaged"
    assert model.detail.startswith(f"{SHARD} is missing; run: ")


def test_a_manifest_that_is_none_is_unreadable(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    send(store, tmp_path)
    store.put(record_key(NAME), b"not a manifest")
    assert only(tmp_path).state == "unreadable"


def test_without_a_manifest_a_model_is_foreign(tmp_path: Path) -> None:
    write_model(tmp_path / "store" / NAME, FILES)
    model = only(tmp_path)
    assert (model.state, model.files, model.repo) == ("foreign", len(FILES), None)
