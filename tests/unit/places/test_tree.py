"""What people have in folders: links, pipes, names in other encodings, the Hugging Face cache."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.mirror.upload_plan import UploadPlan, plan_upload
from coldstream.model.names import Uri
from coldstream.places.folder import Folder, FolderSnapshot
from coldstream.places.opening import open_model_reader
from coldstream.places.tree import folder_model, open_regular, snapshot_of, walk
from coldstream.settings import load_settings
from tests.models import safetensors_bytes, write_model

WEIGHTS = safetensors_bytes({"a": 1000})
FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n".encode()


def planned(folder: Path, **options: list[str]) -> UploadPlan:
    return plan_upload(Folder(folder.parent / "store"), FolderSnapshot(snapshot_of(folder)), "org/model", **options)  # type: ignore[arg-type]


def faults(folder: Path) -> dict[str, str]:
    return {item.path: item.fault for item in walk(folder) if item.fault}


def test_a_linked_folder_is_followed_and_a_loop_ends(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", FILES)
    write_model(tmp_path / "elsewhere", {"tokenizer.json": b"{}", "deep/x.json": b"{}"})
    (folder / "tokenizer").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    paths = [file.key for file in planned(folder, exclude=["*/back"]).files]
    assert paths == ["config.json", "model.safetensors", "tokenizer/deep/x.json", "tokenizer/tokenizer.json"]
    assert faults(folder) == {"tokenizer/back": "it is a link to a folder that it lies in"}
    with pytest.raises(UsageError, match="tokenizer/back"):
        planned(folder)


def test_what_is_no_file_is_refused_until_it_is_left_out(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", FILES)
    os.mkfifo(folder / "pipe.json")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    (folder / "link.json").symlink_to(folder / "nowhere")
    (folder / "self").symlink_to("self")
    (folder / "name [1].json").symlink_to("/nowhere")
    (folder / os.fsdecode(b"caf\xe9.json")).write_bytes(b"{}")
    (folder / "red\x1b[31m.json").write_bytes(b"{}")
    assert faults(folder) == {
        "red\x1b[31m.json": "it holds a control character",
        "caf\\xe9.json": "its name is not UTF-8",
        "link.json": "it is a broken link",
        "name [1].json": "it is a broken link",
        "pipe.json": "it is a named pipe",
        "self": "it is a broken link",
        "socket": "it is a socket",
    }
    exclude: list[str] = []
    for _ in range(7):
        with pytest.raises(UsageError, match="cannot be uploaded") as caught:
            planned(folder, exclude=exclude)
        # The hint says what to type.
        exclude.append((caught.value.hint or "").removeprefix("exclude it: --exclude ").strip("'"))
    assert [file.key for file in planned(folder, exclude=exclude).files] == sorted(FILES)


def test_what_is_left_out_anyway_may_be_anything(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", FILES)
    os.mkfifo(folder / "pytorch_model.bin")
    (folder / ".link").symlink_to("/nowhere")
    assert [file.key for file in planned(folder).files] == sorted(FILES)


def test_a_folder_with_a_pipe_loads_and_a_pipe_for_weights_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", FILES)
    os.mkfifo(folder / "pipe.json")
    origin = open_model_reader(Uri(str(folder)), load_settings(environ={}))
    assert [shard.path for shard in origin.checkpoint().shards] == ["model.safetensors"]
    assert origin.names() == ("config.json",)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(NotFoundError, match=r"model\.safetensors cannot be loaded: it is a named pipe"):
        open_model_reader(Uri(str(folder)), load_settings(environ={})).checkpoint()
    with pytest.raises(OSError, match="named pipe"):
        open_regular(folder / "pipe.json")


def cached(root: Path, *commits: str, main: str | None = None) -> Path:
    """A folder of the Hugging Face cache."""
    folder = root / "models--org--model"
    (folder / "blobs").mkdir(parents=True)
    for commit in commits:
        for path, content in FILES.items():
            blob = folder / "blobs" / f"{commit}-{path}"
            blob.write_bytes(content)
            link = folder / "snapshots" / commit / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    if main:
        write_model(folder, {"refs/main": main.encode()})
    return folder


def test_a_folder_of_the_hugging_face_cache_is_its_newest_snapshot(tmp_path: Path) -> None:
    folder = cached(tmp_path, "0aaa", "1bbb", main="1bbb")
    assert snapshot_of(folder) == folder / "snapshots" / "1bbb"
    assert [file.key for file in planned(folder).files] == sorted(FILES)
    checkpoint = open_model_reader(Uri(str(folder)), load_settings(environ={})).checkpoint()
    assert [shard.path for shard in checkpoint.shards] == ["model.safetensors"]
    assert {checkpoint.name, folder_model(folder), folder_model(snapshot_of(folder))} == {"org/model"}


def test_several_snapshots_or_models_are_to_be_told_apart(tmp_path: Path) -> None:
    folder = cached(tmp_path, "0aaa", "1bbb")
    with pytest.raises(UsageError, match="2 snapshots") as caught:
        snapshot_of(folder)
    assert str(folder / "snapshots" / "0aaa") in (caught.value.hint or "")
    with pytest.raises(UsageError, match="several models") as caught:
        FolderSnapshot(snapshot_of(tmp_path))
    assert str(folder) in (caught.value.hint or "")
    assert snapshot_of(cached(tmp_path / "one", "0aaa")).name == "0aaa"


@pytest.mark.parametrize("path", ["model.safetensors", "tokenizer.json", "model.safetensors.index.json"])
def test_a_clone_without_lfs_is_refused(tmp_path: Path, path: str) -> None:
    folder = write_model(tmp_path / "model", FILES | {path: POINTER})
    with pytest.raises(IntegrityError, match=f"{path} is a Git LFS pointer") as caught:
        planned(folder)
    assert "git lfs pull" in (caught.value.hint or "")
    if path == "model.safetensors":
        with pytest.raises(IntegrityError, match="Git LFS pointer"):
            open_model_reader(Uri(str(folder)), load_settings(environ={})).checkpoint()
