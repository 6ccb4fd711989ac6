"""The journal and the manifest of an upload, and two uploads that want the same model."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import ConflictError, ManifestError
from coldstream.mirror.manifest_records import JournalWriter, model_listing, now, read_record, record_key
from coldstream.model.manifest import Chunks, FileEntry, Journal, Manifest, Provenance
from coldstream.places.place import Store
from tests.unit.mirror.stored_models import NAME, folder_store

ENTRY = FileEntry(path="empty.json", size=0, sha256="0" * 64, objects=(), chunks=Chunks(stops=(), xxh3_128=""))


def writer(store: Store, *, etag: str | None = None, identity: str = "first") -> JournalWriter:
    journal = Journal(
        name=NAME,
        source=Provenance(kind="folder"),
        created=now(),
        tool="test",
        writer=identity,
        planned_files=1,
        planned_bytes=0,
        planned_shards=0,
        files=(),
    )
    return JournalWriter(store, journal, etag=etag)


def record(store: Store) -> Journal | Manifest:
    stored = read_record(store, NAME)
    assert stored is not None
    return stored[0]


def test_an_absent_model_has_no_record(tmp_path: Path) -> None:
    assert read_record(folder_store(tmp_path), NAME) is None


def test_a_journal_becomes_the_manifest(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    journal = writer(store)
    journal.open()
    assert isinstance(record(store), Journal)
    journal.add(ENTRY)
    assert record(store).files == ()
    journal.flush()
    assert record(store).files == (ENTRY,)
    journal.commit([])
    assert isinstance(record(store), Manifest)
    assert set(model_listing(store, NAME)) == {"coldstream.json"}


def test_a_durable_entry_is_written_at_once(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    journal = writer(store)
    journal.open()
    journal.add(ENTRY, durable=True)
    assert record(store).files == (ENTRY,)


def test_the_journal_is_written_when_it_is_due(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    journal = writer(store)
    journal.open()
    journal.add(ENTRY)
    journal.flush_if_due(seconds=3600)
    assert record(store).files == ()
    journal.flush_if_due(seconds=0)
    assert record(store).files == (ENTRY,)


def test_the_second_upload_wins_and_the_first_stops(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    first = writer(store)
    first.open()
    second = writer(store, etag=store.head(record_key(NAME)).etag, identity="second")
    second.open()
    for act in (first.check, lambda: first.add(ENTRY, durable=True), lambda: first.commit([])):
        with pytest.raises(ConflictError, match="took over") as caught:
            act()
        assert "coldstream list" in (caught.value.hint or "")
    second.commit([])


def test_a_removed_record_stops_the_upload(tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    journal = writer(store)
    journal.open()
    store.delete([record_key(NAME)])
    with pytest.raises(ConflictError, match="took over"):
        journal.check()


def test_a_record_that_is_too_long_or_malformed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = folder_store(tmp_path)
    store.put(record_key(NAME), b"x" * 100)
    with pytest.raises(ManifestError):
        read_record(store, NAME)
    monkeypatch.setattr("coldstream.mirror.manifest_records.MANIFEST_BYTES_MAX", 10)
    with pytest.raises(ManifestError) as caught:
        read_record(store, NAME)
    assert caught.value.hint == "remove the model: coldstream remove"
