"""The workload, from the models in a bucket."""

from __future__ import annotations

from pathlib import Path

from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.operate.cost.workload import read_contents
from coldstream.places.folder import FolderSnapshot
from tests.conftest import quick_store
from tests.models import sharded_model, write_model

FILES = sharded_model(shards=2, shard_bytes=100_000)


def test_a_model_that_cannot_be_loaded_hides_no_other(tmp_path: Path) -> None:
    store = quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})
    source = FolderSnapshot(write_model(tmp_path / "source", FILES))
    upload(store, source, plan_upload(store, source, "org/model"))
    write_model(tmp_path / "store" / "org" / "foreign", FILES)
    write_model(tmp_path / "store" / "no name", FILES)
    write_model(tmp_path / "store" / "org" / "odd", FILES | {"a\\b.txt": b""})
    write_model(tmp_path / "store" / "org" / "index", FILES | {"model.safetensors.index.json": b"{}"})
    write_model(tmp_path / "store" / "org" / "broken", {"coldstream.json": b"{}"})
    contents, size, count = read_contents(store)
    assert [content.name for content in contents] == ["org/foreign", "org/index", "org/model"]
    infos = list(store.list(""))
    assert (size, count) == (sum(info.size for info in infos), len(infos))
