"""Files that appear whole: what is planted at a temporary name, what a failure leaves, and who waits for whom."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from coldstream.machine.atomic_file import TEMPORARY_PREFIX, StagedFile, write_atomically, write_output


def test_a_planted_link_is_neither_followed_nor_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / f"{TEMPORARY_PREFIX}{'00' * 8}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"precious"


def test_two_writers_share_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with StagedFile(path) as first, StagedFile(path) as second:
        os.write(first.descriptor, b"first")
        os.write(second.descriptor, b"2nd")
        second.install()
        assert path.read_bytes() == b"2nd"
        first.install()
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_mode_is_exact_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "public", b"", mode=0o644)
        write_output(tmp_path / "output", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "output").stat().st_mode) == 0o600


def test_an_output_follows_a_link_and_is_written_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    link = tmp_path / "report.html"
    link.symlink_to("www/report.html")
    write_output(link, b"page")
    assert link.is_symlink()
    assert (tmp_path / "www" / "report.html").read_bytes() == b"page"
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_output(tmp_path / "pipe", b"page")
    reader.join()
    assert read == [b"page"]


def test_an_output_keeps_the_mode_of_the_file_that_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "private.html"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write_output(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_output_goes_through_a_name_of_an_open_pipe() -> None:
    reading, writing = os.pipe()
    try:
        write_output(Path(f"/dev/fd/{writing}"), b"page")
        assert os.read(reading, 100) == b"page"
    finally:
        os.close(reading)
        os.close(writing)
