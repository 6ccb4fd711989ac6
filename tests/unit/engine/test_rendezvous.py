"""Socket folders of killed processes are removed by the next one; others are not touched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.engine.rendezvous import SocketFolder, remove_abandoned

_OWNER = """
import socket, time
from coldstream.engine.rendezvous import SocketFolder
folder = SocketFolder()
sock = socket.socket(socket.AF_UNIX)
sock.bind(folder.path + "/load")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files whose path is short, as that of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_a_killed_process_s_folder_is_removed_by_the_next(here: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        remove_abandoned(here)
        assert path.parent == here
        assert (path / "load").is_socket(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
    assert path.exists()
    folder = SocketFolder()
    assert [*here.iterdir()] == [Path(folder.path)]
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    folder.close()
    folder.close()
    assert not [*here.iterdir()]


def test_what_is_not_provably_ours_stays(here: Path) -> None:
    kept = [here / "coldstream-sockets-file", here / "coldstream-sockets-link", here / "coldstream-sockets-data"]
    other = here / "other"
    other.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(other / "load"))
    kept[0].write_text("a file")
    kept[1].symlink_to(other)
    kept[2].mkdir()
    (kept[2] / "weights").write_text("somebody's")
    remove_abandoned(here)
    assert {*here.iterdir()} == {*kept, other}
    assert (other / "load").is_socket()


def test_a_temporary_folder_with_a_long_path_is_left_for_another(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket of vLLM's, with a name of 36 characters, can be bound below it."""
    long = here / ("job-" + "x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = SocketFolder()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{folder.path}/{'u' * 36}")
    folder.close()
    assert not [*long.iterdir()]
    assert not os.path.exists(folder.path)
