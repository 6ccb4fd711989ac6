"""Two downloads into one folder at the same time: both end right, or the second waits for the first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from coldstream.machine import disk
from coldstream.machine.atomic_file import TEMPORARY_PREFIX
from coldstream.mirror.download import download
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.model.chunks import PART_BYTES
from coldstream.places.folder import Folder, FolderSnapshot
from coldstream.progress import Progress
from tests.models import safetensors_bytes, write_model

NAME = "org/model"
SECONDS = 60


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    # Two parts: what one download writes between another's parts shows.
    return {"model.safetensors": safetensors_bytes({"a": PART_BYTES + 1000}), "config.json": b"{}"}


@pytest.fixture
def root(tmp_path: Path, files: dict[str, bytes]) -> Path:
    store = Folder(tmp_path / "store")
    source = FolderSnapshot(write_model(tmp_path / "source", files))
    upload(store, source, plan_upload(store, source, NAME))
    return tmp_path / "store"


class PausedStore(Folder):
    """Waits before the second part of the weights is read."""

    def __init__(self, root: Path, wait: Callable[[], object]) -> None:
        super().__init__(root)
        self._wait = wait

    def read_into(self, key: str, start: int, buffer: memoryview, **options: Any) -> None:
        if start:
            self._wait()
        super().read_into(key, start, buffer, **options)


class Lines(Progress):
    """Keeps what is said, and tells whoever waits for it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.told = threading.Event()

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.told.set()


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_second_waits_and_receives_nothing(root: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    began, second = threading.Event(), Lines()

    def wait_for_the_second() -> None:
        began.set()
        assert second.told.wait(SECONDS)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(download, PausedStore(root, wait_for_the_second), NAME, tmp_path / "out", connections=1)
        assert began.wait(SECONDS)
        report = download(Folder(root), NAME, tmp_path / "out", progress=second)
        assert first.result(SECONDS).received_bytes == sum(map(len, files.values()))
    assert second.lines == [f"waiting for another download into {tmp_path / 'out'} to finish"]
    assert (report.received_bytes, report.kept_files) == (0, len(files))
    assert content(tmp_path / "out") == files


def test_without_locks_both_end_right(
    root: Path, tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object, **__: object) -> bool:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(disk, "try_lock", no_locks)
    began, ended = threading.Event(), threading.Event()

    def wait_for_the_second() -> None:
        began.set()
        assert ended.wait(SECONDS)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(download, PausedStore(root, wait_for_the_second), NAME, tmp_path / "out", connections=1)
        assert began.wait(SECONDS)
        download(Folder(root), NAME, tmp_path / "out")
        assert content(tmp_path / "out").items() >= files.items()
        ended.set()
        assert first.result(SECONDS).verified
    assert content(tmp_path / "out") == files


@pytest.mark.parametrize("foreign", [False, True])
def test_hidden_files_are_never_written(tmp_path: Path, files: dict[str, bytes], foreign: bool) -> None:
    hidden = {".env": b"HF_ENDPOINT=https://evil.example", "1_Pooling/.netrc": b"machine"}
    source = write_model(tmp_path / "source", files | hidden)
    store = Folder(tmp_path / "store")
    if foreign:
        write_model(tmp_path / "store" / NAME, files | hidden)
    else:
        opened = FolderSnapshot(source)
        upload(store, opened, plan_upload(store, opened, NAME, also=[".env", "*/.netrc"]))
    lines = Lines()
    report = download(store, NAME, tmp_path / "out", progress=lines)
    assert content(tmp_path / "out") == files
    assert set(report.skipped) == set(hidden)
    assert ".env" in lines.lines[0]


def test_what_a_killed_download_left_goes(root: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{TEMPORARY_PREFIX}0123456789abcdef").write_bytes(b"half")
    download(Folder(root), NAME, out)
    assert content(out) == files
