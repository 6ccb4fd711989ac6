"""How many connections suit a machine, and how loads share them."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coldstream.machine import connections
from coldstream.machine.connections import ConnectionTable, connection_table, connections_for, workers_for

GBIT = 1e9 / 8
HOLD = """
import sys
from coldstream.machine.connections import ConnectionTable
table = ConnectionTable(sys.argv[1])
table.hold(int(sys.argv[2]))
print("held", flush=True)
for line in sys.stdin:
    table.hold(int(line))
    print("held", flush=True)
"""


@contextmanager
def another(path: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has so many connections, or as many as a line to it says."""
    command = [sys.executable, "-c", HOLD, str(path), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("cores", "link", "connections"),
    [
        (1, None, 64),
        (2, 100 * GBIT, 64),
        (8, None, 256),
        (96, 10 * GBIT, 64),
        (96, 25 * GBIT, 157),
        (96, 100 * GBIT, 625),
        (192, 400 * GBIT, 1024),
    ],
)
def test_the_number_follows_the_machine(cores: int, link: float | None, connections: int) -> None:
    assert connections_for(cores, link) == connections


def test_more_than_a_few_workers_have_several_connections_each() -> None:
    assert [workers_for(2, 64), workers_for(96, 16), workers_for(96, 256), workers_for(96, 1024)] == [2, 8, 32, 64]


def test_a_load_alone_has_the_whole_budget(tmp_path: Path) -> None:
    table = ConnectionTable(str(tmp_path / "table"))
    table.hold(64)
    assert table.share(64) == 64
    table.close()
    table.close()


def test_loads_share_the_budget_and_what_others_do_not_use(tmp_path: Path) -> None:
    path = tmp_path / "table"
    table = ConnectionTable(str(path))
    table.hold(100)
    with another(path, 90) as first, another(path, 5):
        assert table.share(100) == 33
        first.stdin.write("20\n")  # type: ignore[union-attr]
        first.stdin.flush()  # type: ignore[union-attr]
        assert first.stdout.readline() == "held\n"  # type: ignore[union-attr]
        assert table.share(100) == 75


def test_the_share_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "table"
    table = ConnectionTable(str(path))
    with another(path, 64) as process:
        assert table.share(64) == 32
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert table.share(64) == 64


def test_a_load_that_closes_gives_its_share_back(tmp_path: Path) -> None:
    path = tmp_path / "table"
    table = ConnectionTable(str(path))
    table.hold(64)
    program = (
        "import sys; from coldstream.machine.connections import ConnectionTable; "
        "table = ConnectionTable(sys.argv[1]); print(table.share(64))"
    )

    def share_elsewhere() -> str:
        command = [sys.executable, "-c", program, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert share_elsewhere() == "32"
    table.close()
    assert share_elsewhere() == "64"


def test_without_a_file_a_load_does_not_see_the_others(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "table", tmp_path / "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "other")
        table = ConnectionTable(str(path))
        table.hold(10)
        assert table.share(64) == 64
        table.close()
    assert not (tmp_path / "other").exists()


def test_the_table_is_one_for_all_directories_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = connection_table()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert connection_table() == before
    monkeypatch.setattr(connections, "SHARED_MEMORY", tmp_path / "none")
    assert connection_table().parent == tmp_path
