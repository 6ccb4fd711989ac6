"""A folder as a store, with two writers at once."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from coldstream.errors import DiskError, UploadNotFoundError
from coldstream.places.folder import Folder

KEY = "org/model/model.safetensors"


def test_of_two_runs_that_complete_one_upload_neither_stores_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Folder(tmp_path), Folder(tmp_path)
    upload = first.create_upload(KEY)
    bodies = [b"a" * 100, b"b" * 100, b"c" * 50]

    def send(store: Folder) -> None:
        for number, body in enumerate(bodies, start=1):
            store.put_part(KEY, upload, number, body)
        store.complete_upload(KEY, upload, store.parts(KEY, upload))

    copy = shutil.copyfileobj

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(shutil, "copyfileobj", copy)
        # In the middle of the first run's joining the second, which found the first part gone, sends all of them.
        send(second)
        copy(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", overtaken)
    with pytest.raises(UploadNotFoundError):
        send(first)
    assert first.get(KEY)[0] == b"".join(bodies)


def test_who_comes_while_another_run_completes_an_upload_finds_it_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Folder(tmp_path)
    upload = store.create_upload(KEY)
    for number in (1, 2):
        store.put_part(KEY, upload, number, bytes(number))
    parts = store.parts(KEY, upload)
    copy = shutil.copyfileobj

    def overtaken(*arguments: Any) -> None:
        with pytest.raises(UploadNotFoundError, match="another run completes"):
            Folder(tmp_path).complete_upload(KEY, upload, parts)
        copy(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", overtaken)
    store.complete_upload(KEY, upload, parts)
    assert store.get(KEY)[0] == bytes(3)


def test_a_planted_lock_is_not_followed(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    store.put(KEY, b"x")
    lock = tmp_path / "store" / ".coldstream-uploads" / "lock"
    lock.unlink()
    lock.symlink_to(victim)
    with pytest.raises(DiskError, match="symbolic links"):
        store.put(KEY, b"y")
    assert victim.read_bytes() == b"precious"


def test_a_removal_does_not_take_the_folder_of_a_write_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Folder(tmp_path)
    store.put("m/old", b"1")
    remover = threading.Thread(target=store.delete, args=(["m/old"],))
    original = os.replace

    def replace(*paths: Any) -> None:
        # The folder is there, and the file not yet.
        remover.start()
        remover.join(0.2)
        original(*paths)

    monkeypatch.setattr(os, "replace", replace)
    store.put("m/new", b"2")
    remover.join()
    assert [info.key for info in store.list("")] == ["m/new"]
