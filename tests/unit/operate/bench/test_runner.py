"""What a process tree took, of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from coldstream.operate.bench import pagecache
from coldstream.operate.bench.runner import PROGRAMS, Run, RunFailed, last_words, run, without_secrets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 1 << 20


def python(code: str, **options: float) -> Run:
    command = [sys.executable, "-S", "-c", textwrap.dedent(code)]
    return run(command, {"PATH": os.environ["PATH"], "MY_SECRET": "hidden-words"}, **options)  # type: ignore[arg-type]


def test_a_grandchild_s_cpu_and_memory_count() -> None:
    done = python(
        """
        import os, time
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild == 0:
                kept = bytearray(os.urandom(1)) * (96 << 20)
                stop = time.process_time() + 0.4
                while time.process_time() < stop:
                    pass
                time.sleep(0.3)
                os._exit(0)
            os.waitpid(grandchild, 0)
            os._exit(0)
        os.waitpid(child, 0)
        print('{"bytes": 5}')
        """
    )
    assert done.result == {"bytes": 5}
    assert 0.4 <= done.cpu_seconds < 5
    assert 96 * MIB <= done.memory_bytes < 300 * MIB
    assert done.seconds == done.whole_seconds >= 0.4


def test_an_orphan_s_cpu_counts_and_it_is_waited_for() -> None:
    done = python(
        """
        import os, time
        if os.fork() == 0:
            for descriptor in (1, 2):
                os.close(descriptor)
            stop = time.process_time() + 0.3
            while time.process_time() < stop:
                pass
            os._exit(0)
        print("{}")
        """
    )
    assert done.cpu_seconds >= 0.3
    assert done.found["orphans"] == 1
    assert done.found["settled_seconds"] > done.whole_seconds


def test_memory_that_several_map_counts_once() -> None:
    done = python(
        """
        import mmap, os, time
        shared = mmap.mmap(-1, 64 << 20)
        shared.write(b"x" * (64 << 20))
        children = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                sum(shared[at] for at in range(0, 64 << 20, 4096))
                time.sleep(0.4)
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        print("{}")
        """
    )
    # The writing itself had the bytes twice for a moment.
    assert 64 * MIB <= done.memory_bytes < 180 * MIB


def test_imports_are_not_charged() -> None:
    said = """print('{"load_seconds": 0.25, "import_seconds": 9, "import_cpu_seconds": 0.01}')"""
    done = python(said)
    assert done.seconds == 0.25
    assert done.cpu_seconds == pytest.approx(max(0.0, done.whole_cpu_seconds - 0.01))


def test_too_slow_ends_the_whole_tree(tmp_path: Path) -> None:
    mark = f"marked-{os.getpid()}-{time.monotonic_ns()}"
    code = f"""
        import os, time
        if os.fork() == 0:
            os.execvp("sleep", ["{mark}", "60"])
        time.sleep(60)
        """
    with pytest.raises(RunFailed, match=r"longer than 0\.5 s"):
        python(code, timeout_seconds=0.5)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert mark not in listed


def test_broken_off_it_waits_for_those_it_killed() -> None:
    # The dead that nobody waits for stay in the tree: it would be looked at for ten seconds.
    code = textwrap.dedent(
        """
        import subprocess, sys
        sys.path.insert(0, sys.argv[1])
        import measure
        for _ in range(3):
            subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"])
        measure.end_descendants(reap=True)
        print(measure.descendants())
        """
    )
    command = [sys.executable, "-S", "-c", code, str(PROGRAMS)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_nothing_is_run_for_a_parent_that_has_gone(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    ran = tmp_path / "ran"
    command = [sys.executable, str(PROGRAMS / "measure.py"), "--parent", str(gone.pid), "--", "touch", str(ran)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert not ran.exists()


def test_a_failure_says_what_was_raised_and_no_secret() -> None:
    with pytest.raises(RunFailed) as found:
        python("import os; raise ValueError('no ' + os.environ['MY_SECRET'])")
    assert found.value.message == "exit 1: ValueError: no …"


def test_no_result_is_a_failure() -> None:
    with pytest.raises(RunFailed, match="no result: 'hello'"):
        python("print('hello')")


def test_last_words() -> None:
    assert last_words("warning\nerror: it is not there\nhint:  look\n") == "it is not there"
    assert last_words("Traceback\n  x\nbotocore.exceptions.ClientError: An error\n}\n") == (
        "botocore.exceptions.ClientError: An error"
    )
    assert last_words("a\nb\n") == "b"
    assert last_words("") == ""


def test_short_values_are_no_secrets() -> None:
    assert without_secrets("a b c", {"X_SECRET": "b", "Y_TOKEN": "long-enough"}) == "a b c"


def test_files_leave_the_page_cache_where_the_whole_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x" * MIB)
    monkeypatch.setattr(pagecache, "_DROP", tmp_path / "no-such-file")
    assert pagecache.drop([tmp_path], wanted=True) == "files"
    assert pagecache.drop([tmp_path / "empty"], wanted=True) == "nothing"
    assert pagecache.drop([tmp_path], wanted=False) == "nothing"
    monkeypatch.setattr(pagecache, "_DROP", tmp_path / "drop")
    (tmp_path / "drop").touch()
    assert pagecache.drop([tmp_path], wanted=True) == "everything"
    assert (tmp_path / "drop").read_text() == "1\n"
    assert "memory" in pagecache.said("nothing", wanted=True)
