"""The folder that vLLM is given: what was uploaded reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import IntegrityError
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.model.header import header_stop
from coldstream.node.model_folder import NOTE_NAME, model_folder
from coldstream.places.folder import Folder, FolderSnapshot
from coldstream.settings import load_settings
from tests.adapters import adapter_files
from tests.models import safetensors_bytes, write_model
from tests.unit.places.test_tree import POINTER

NAME = "org/model"
WEIGHTS = safetensors_bytes({"a": 1000})
SERVED = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "audio_tokenizer/config.json": b"{}",
    "audio_tokenizer/model.safetensors": safetensors_bytes({"b": 2000}, seed=1),
    "speech/campplus.onnx": b"onnx",
    "spk2info.pt": b"pickle",
}


def settings_of(root: Path) -> dict[str, str | None]:
    return {"COLDSTREAM_STORE": (root / "store").as_uri(), "COLDSTREAM_CACHE_DIR": str(root / "cache")}


def test_what_was_uploaded_by_choice_and_the_weights_of_parts_are_there(tmp_path: Path) -> None:
    files = {"model.safetensors": WEIGHTS, ".secret": b"x", **SERVED}
    source = FolderSnapshot(write_model(tmp_path / "source", files))
    store = Folder(tmp_path / "store")
    plan = plan_upload(store, source, NAME, also=["*.pt", "*.onnx", ".secret"])
    assert plan.kept_back == {".secret": "hidden"}
    upload(store, source, plan)
    folder = model_folder(NAME, load_settings(settings_of(tmp_path), environ={})).path
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del found[NOTE_NAME]
    stub = WEIGHTS[: header_stop(WEIGHTS, file_bytes=len(WEIGHTS), path="")]
    assert found == {**SERVED, "model.safetensors": stub}


def test_a_pointer_of_git_lfs_is_not_a_tokenizer(tmp_path: Path) -> None:
    files = {"model.safetensors": WEIGHTS, "config.json": b"{}", "tokenizer.json": POINTER}
    write_model(tmp_path / "store" / NAME, files)
    with pytest.raises(IntegrityError, match=r"tokenizer\.json is a Git LFS pointer"):
        model_folder(NAME, load_settings(settings_of(tmp_path), environ={}))


def test_an_adapter_is_there_with_its_weights(tmp_path: Path) -> None:
    files = adapter_files()
    store, source = Folder(tmp_path / "store"), FolderSnapshot(write_model(tmp_path / "source", files))
    upload(store, source, plan_upload(store, source, "org/adapter"))
    folder = model_folder("org/adapter", load_settings(settings_of(tmp_path), environ={})).path
    assert {name: (folder / name).read_bytes() for name in files} == files
