"""A store in a folder, and models that are uploaded to it."""

from __future__ import annotations

from pathlib import Path

from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import UploadReport, plan_upload
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Store
from tests.conftest import quick_store
from tests.models import safetensors_bytes, write_model

NAME = "org/model"
SHARD = "model.safetensors"
FILES = {SHARD: safetensors_bytes({"a": 3000, "b": 50}), "config.json": b'{"model_type": "llama"}'}


def folder_store(tmp_path: Path) -> Store:
    return quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})


def send(store: Store, tmp_path: Path, files: dict[str, bytes] = FILES, name: str = NAME) -> UploadReport:
    source = FolderSnapshot(write_model(tmp_path / "sources" / name, files))
    return upload(store, source, plan_upload(store, source, name))
