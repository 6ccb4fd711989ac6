"""The bootstrap program stays small, and runs on any Python from 3.8 on without packages."""

from __future__ import annotations

import ast
import errno
import io
import os
import platform
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from coldstream.runtime import bootstrap
from tests.runtimes import BOOTSTRAP

SOURCE = BOOTSTRAP.read_text()


def test_it_has_at_most_300_lines() -> None:
    assert len(SOURCE.splitlines()) <= 300


def test_it_is_python_3_8() -> None:
    ast.parse(SOURCE, feature_version=(3, 8))


def test_it_imports_only_the_standard_library() -> None:
    for node in ast.walk(ast.parse(SOURCE)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def needs(**changes: str | None) -> dict[str, str | None]:
    return {"machine": os.uname().machine, "glibc": "2.17", "driver": None, **changes}


@pytest.mark.parametrize("driver", ["525.60.13", "525.60", "524.999.99"])
def test_drivers_are_compared_by_their_numbers(monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  525.60.13  Release Build  (dvs-builder@U16)\n"
    monkeypatch.setattr(bootstrap, "content", lambda path: line if path == "/proc/driver/nvidia/version" else "")
    bootstrap.check_platform(needs(driver=driver))
    with pytest.raises(bootstrap.StartError, match=r"needs driver 525\.60\.14, and this machine has 525\.60\.13"):
        bootstrap.check_platform(needs(driver="525.60.14"))
    with pytest.raises(bootstrap.StartError, match=r"needs driver 1000\.1,"):
        bootstrap.check_platform(needs(driver="1000.1"))


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "content", lambda path: "")
    bootstrap.check_platform(needs())
    with pytest.raises(bootstrap.StartError, match=r"needs driver 525\.60\.13, and this machine has none"):
        bootstrap.check_platform(needs(driver="525.60.13"))


@pytest.mark.parametrize("libc", [("", ""), ("libc", ""), ("musl", "1.2.5"), ("glibc", "2.9")])
def test_another_c_library(monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str]) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(bootstrap.StartError, match=f"needs glibc 2.17, and this machine has {libc[1] or 'none'}"):
        bootstrap.check_platform(needs())


@pytest.mark.parametrize(("busy", "name"), [(0, "/dev/loop0"), (3, "/dev/loop3"), (100, None)])
def test_a_loop_device_that_another_program_takes_first(
    monkeypatch: pytest.MonkeyPatch, busy: int, name: str | None
) -> None:
    taken = 0

    def ioctl(_file: object, request: int, *_: object) -> int:
        nonlocal taken
        if request == 0x4C82:
            return taken
        if taken < busy:
            taken += 1
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return 0

    class Device(io.BytesIO):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    monkeypatch.setattr(bootstrap.fcntl, "ioctl", ioctl)
    monkeypatch.setattr(bootstrap, "io", SimpleNamespace(FileIO=Device))
    device: Any = bootstrap.attach(5)
    assert (device and device.name) == name
