"""Runs of real processes, and the order of the runs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.operate.bench.runner import (
    Run,
    RunFailed,
    error_line,
    interleave,
    run,
    shuffled_rounds,
    without_secrets,
)
from tests.unit.operate.bench.results import a_run

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
    assert done.measured["orphans"] == 1
    assert done.measured["settled_seconds"] > done.whole_seconds


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
    code = """print('{"load_seconds": 0.25, "import_seconds": 9, "import_cpu_seconds": 0.01}')"""
    done = python(code)
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


def test_a_failure_says_what_was_raised_and_no_secret() -> None:
    with pytest.raises(RunFailed) as raised:
        python("import os; raise ValueError('no ' + os.environ['MY_SECRET'])")
    assert raised.value.message == "exit 1: ValueError: no …"


def test_no_result_is_a_failure() -> None:
    with pytest.raises(RunFailed, match="no result: 'hello'"):
        python("print('hello')")


def test_error_line() -> None:
    assert error_line("warning\nerror: it is not there\nhint:  look\n") == "it is not there"
    assert error_line("Traceback\n  x\nbotocore.exceptions.ClientError: An error\n}\n") == (
        "botocore.exceptions.ClientError: An error"
    )
    assert error_line("a\nb\n") == "b"
    assert error_line("") == ""


def test_short_values_are_no_secrets() -> None:
    assert without_secrets("a b c", {"X_SECRET": "b", "Y_TOKEN": "long-enough"}) == "a b c"


names = st.lists(st.text(min_size=1), min_size=1, max_size=9, unique=True)


@given(names, st.integers(0, 12), st.integers())
def test_each_runs_once_a_round_and_never_twice_in_a_row(names: list[str], runs: int, seed: int) -> None:
    orders = shuffled_rounds(names, runs, seed)
    assert len(orders) == runs
    assert all(sorted(order) == sorted(names) for order in orders)
    if len(names) > 1:
        assert all(one != other for one, other in pairwise(chain.from_iterable(orders)))


@given(names, st.integers(0, 12), st.integers())
def test_equal_seeds_give_equal_orders(names: list[str], runs: int, seed: int) -> None:
    assert shuffled_rounds(names, runs, seed) == shuffled_rounds(names, runs, seed)


def test_no_name_is_always_first() -> None:
    assert len({order[0] for order in shuffled_rounds("abcd", 40, 0)}) == 4


def test_no_names_give_empty_rounds() -> None:
    assert shuffled_rounds([], 2, 0) == [[], []]


def test_a_name_that_fails_twice_is_not_run_again() -> None:
    attempts: list[tuple[str, int]] = []
    dropped: list[tuple[str, int]] = []

    def attempt(name: str, number: int) -> Run | None:
        attempts.append((name, number))
        return None if name == "bad" else a_run(1.0)

    results = interleave(["bad", "good"], 4, 0, attempt, on_dropped=lambda *place: dropped.append(place))
    assert results == {"bad": [None] * 4, "good": [a_run(1.0)] * 4}
    assert [number for name, number in attempts if name == "bad"] == [1, 2]
    assert dropped == [("bad", 3), ("bad", 4)]
