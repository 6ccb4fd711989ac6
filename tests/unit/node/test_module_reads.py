from __future__ import annotations

import linecache
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.loading.options import Options
from coldstream.node import module_reads
from coldstream.node.load_service import VARIABLE, LoadService

# A process with the plugin; it forks one of its own, as vLLM does with CUDA, and both wait.
_PLUGIN = """
import os, sys, threading, time
from coldstream.engines.vllm import register
before = time.perf_counter()
register(); register()
print(time.perf_counter() - before, flush=True)
if sys.argv[1:] == ["fork"]:
    os.environ["COLDSTREAM_TEST"] = "forked"
    if os.fork() == 0:
        import this_is_the_child
    else:
        import this_is_the_parent
    print("forked", flush=True)
sys.stdin.read()
# A thread whose service has gone needs its turn to find that out.
until = time.monotonic() + 20
while threading.active_count() > 1 and "gone" in sys.argv and time.monotonic() < until:
    time.sleep(0.01)
print(sorted(t.name for t in threading.enumerate()), flush=True)
"""


@pytest.fixture
def service() -> Iterator[LoadService]:
    with LoadService("nothing", options=Options()) as service:
        yield service


def _started(service: LoadService, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    for name in ("this_is_the_child", "this_is_the_parent"):
        (folder / f"{name}.py").write_text("")
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PLUGIN, *arguments],
        env={**os.environ, VARIABLE: service.address, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _until(service: LoadService, *names: str) -> list[str]:
    until = time.monotonic() + 20
    while True:
        found = service.modules(seconds=20)
        if all(any(name in path for path in found) for name in names):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.01)


def test_a_process_tells_its_modules_when_asked(service: LoadService, tmp_path: Path) -> None:
    assert service.modules() == []
    with _started(service, tmp_path) as process:
        found = _until(service, "module_reads")
        assert service.modules(seconds=20) == found
        # In the order of import.
        places = [next(i for i, path in enumerate(found) if name in path) for name in ("/threading.", "/module_reads.")]
        assert places == sorted(places)
        process.communicate()
    assert service.modules() == []


def test_a_forked_process_tells_for_itself(service: LoadService, tmp_path: Path) -> None:
    with _started(service, tmp_path, "fork") as process:
        _until(service, "this_is_the_child", "this_is_the_parent")
        process.communicate()


def test_processes_end_and_live_without_the_service(tmp_path: Path) -> None:
    with LoadService("nothing", options=Options()) as service:
        process = _started(service, tmp_path, "gone")
        _until(service, "module_reads")
    assert process.stdout is not None
    process.stdout.readline()
    output, _ = process.communicate()
    assert output.strip() == "['MainThread']"
    # And begin without it.
    assert _started(service, tmp_path, "fork").communicate()[0].count("['MainThread']") == 2


def test_one_that_does_not_answer_does_not_hold_the_others_up(service: LoadService, tmp_path: Path) -> None:
    with (
        _started(service, tmp_path) as process,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lying,
    ):
        _until(service, "module_reads")
        for sock in (silent, lying):
            sock.connect(service.address)
            sock.sendall(module_reads.HELLO)
        until = time.monotonic() + 20
        while len(service._reporters) < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        lying.sendall(b'{"not": "a list"}\n')
        assert any("module_reads" in path for path in service.modules(seconds=3))
        assert len(service._reporters) == 1
        process.communicate()


def test_bytecode_stands_for_its_source_and_looked_into_sources_count(tmp_path: Path) -> None:
    source = tmp_path / "looked_into.py"
    source.write_text("x = 1\n")
    try:
        linecache.getlines(str(source))
        found = module_reads.files()
    finally:
        linecache.clearcache()
    assert str(source) in found
    assert module_reads.__spec__.cached in found
    assert module_reads.__file__ not in found


def test_nothing_begins_without_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    threads = threading.active_count()
    module_reads.report_modules()
    assert threading.active_count() == threads
