from __future__ import annotations

from pathlib import Path

from coldstream.machine.processors import Processors


def write(path: Path, busy: int, idle: int) -> None:
    path.write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\n")


def test_full_is_when_next_to_nothing_was_idle(tmp_path: Path) -> None:
    path = tmp_path / "stat"
    write(path, 100, 1000)
    processors = Processors(0.0, path=str(path))
    assert not processors.full
    write(path, 120, 1001)
    processors.look(0.05)
    assert not processors.full, "too soon to tell"
    processors.look(0.2)
    assert processors.full
    write(path, 130, 1021)
    processors.look(0.4)
    assert not processors.full
    processors.look(0.6)
    assert not processors.full, "no tick has passed"


def test_where_nothing_tells_they_are_not_full(tmp_path: Path) -> None:
    processors = Processors(0.0, path=str(tmp_path / "missing"))
    processors.look(1.0)
    assert not processors.full
