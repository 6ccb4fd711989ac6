"""The lock on a folder that one process at a time fills."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from coldstream.machine.disk import locked_folder


def test_the_second_waits_until_the_first_lets_go(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise InterruptedError

    with locked_folder(tmp_path, on_wait=interrupt) as is_held:
        assert is_held
        with pytest.raises(InterruptedError), locked_folder(tmp_path, on_wait=interrupt):
            pass
    with locked_folder(tmp_path, on_wait=interrupt) as is_held:
        assert is_held


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_folder(tmp_path, on_wait=pytest.fail) as is_held:
        assert not is_held
