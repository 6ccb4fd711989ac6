from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from coldstream.errors import ColdstreamError
from coldstream.machine import limits

LIMITS = {
    resource.RLIMIT_NOFILE: 32,
    resource.RLIMIT_FSIZE: 64 << 10,
    resource.RLIMIT_AS: 1 << 30,
    resource.RLIMIT_DATA: resource.RLIM_INFINITY,
    resource.RLIMIT_NPROC: 40,
}


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[int, int]:
    found = dict(LIMITS)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (found[which], found[which]))
    monkeypatch.setattr(limits, "_PROC", tmp_path)
    monkeypatch.setattr(limits, "_MOUNT", tmp_path)
    return found


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (OSError(errno.EMFILE, "x"), "the limit on open files (ulimit -n: 32)"),
        (OSError(errno.EFBIG, "x"), "the limit on file size (ulimit -f: 65.5 kB)"),
        (OSError(errno.ENOMEM, "x"), "the limit on address space (ulimit -v: 1.07 GB)"),
        (MemoryError(), "the limit on address space (ulimit -v: 1.07 GB)"),
        (BlockingIOError(errno.EAGAIN, "x"), "the limit on processes and threads (ulimit -u: 40)"),
        (RuntimeError("can't start new thread"), "the limit on address space (ulimit -v: 1.07 GB)"),
    ],
)
@pytest.mark.usefixtures("limited")
def test_the_limit_is_named(exc: Exception, said: str) -> None:
    with pytest.raises(ColdstreamError) as raised, limits.limits_named("stream"):
        raise exc
    assert raised.value.message == f"cannot stream: {said} is reached"
    assert raised.value.hint is not None
    assert said.split("(")[1].partition(":")[0] in raised.value.hint


def test_without_the_limit_it_is_no_limit(limited: dict[int, int]) -> None:
    limited.update(dict.fromkeys(limited, resource.RLIM_INFINITY))
    for exc in (OSError(errno.ENOMEM, "x"), MemoryError(), RuntimeError("can't start new thread"), OSError(5, "x")):
        assert limits.limit_error(exc, "stream") is None
    with pytest.raises(MemoryError), limits.limits_named("stream"):
        raise MemoryError
    assert limits.address_space_left() is None


def test_the_control_group_limits_processes_too(limited: dict[int, int], tmp_path: Path) -> None:
    (tmp_path / "pids.max").write_text("20\n")
    (tmp_path / "pids.current").write_text("20\n")
    error = limits.limit_error(BlockingIOError(errno.EAGAIN, "x"), "stream")
    assert error is not None
    assert "the control group's limit of 20 processes and threads (pids.max)" in error.message
    assert limited


def test_what_is_mapped_is_taken_off_the_address_space() -> None:
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
        left = limits.address_space_left()
        os._exit(not (left is not None and 1 << 39 < left < 1 << 40))
    assert os.waitpid(pid, 0)[1] == 0
