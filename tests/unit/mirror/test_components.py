"""A folder inside a model, by the commands that read what is stored: the model's manifest is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import UsageError
from coldstream.mirror.download import download
from coldstream.mirror.listing import plan_removal
from coldstream.mirror.stored_files import open_model
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.mirror.verify import verify
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Store
from tests.conftest import quick_store
from tests.models import sharded_model, write_model

NAME, PART = "org/model", "org/model/transformer"
FILES = sharded_model(shards=2, shard_bytes=100_000)
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a pipeline of one component."""
    store = quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})
    parts = {f"transformer/{path}": content for path, content in FILES.items()}
    source = FolderSnapshot(write_model(tmp_path / "source", {"model_index.json": b"{}"} | parts))
    upload(store, source, plan_upload(store, source, NAME))
    return store


def test_it_is_verified_and_downloaded_like_a_model(store: Store, tmp_path: Path) -> None:
    assert {file.path for file in open_model(store, PART).files} == set(FILES)
    report = verify(store, PART, deep=True)
    assert (report.state, report.ok, report.files) == ("ready", True, len(FILES))
    download(store, PART, tmp_path / "out")
    assert (tmp_path / "out" / SHARD).read_bytes() == FILES[SHARD]
    (tmp_path / "store" / PART / SHARD).write_bytes(FILES[SHARD][:-1] + b"x")
    assert [problem.path for problem in verify(store, PART, deep=True).problems] == [SHARD]


def test_what_the_manifest_does_not_name_is_foreign(store: Store, tmp_path: Path) -> None:
    write_model(tmp_path / "store" / NAME / "added", FILES)
    assert verify(store, f"{NAME}/added").state == "foreign"
    assert plan_removal(store, f"{NAME}/added").keys


def test_it_is_not_removed_from_its_model(store: Store) -> None:
    with pytest.raises(UsageError, match="is part of the model org/model") as caught:
        plan_removal(store, PART)
    assert "coldstream remove org/model" in (caught.value.hint or "")
    assert plan_removal(store, NAME).keys
