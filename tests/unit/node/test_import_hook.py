"""A function is called when a module is imported, and the module is imported as ever."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from coldstream.node.import_hook import ImportHook, after_import


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a module, which is not imported."""
    name = "hooked_package"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "part.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in (name, f"{name}.part"):
        sys.modules.pop(module, None)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, ImportHook)]


def test_it_is_called_once_with_the_executed_module(package: str) -> None:
    values: list[int] = []

    def change(module: ModuleType) -> None:
        values.append(module.VALUE)
        module.VALUE = 2

    after_import(f"{package}.part", change)
    after_import(f"{package}.part", change)
    assert importlib.import_module(package)
    assert values == []
    part = importlib.import_module(f"{package}.part")
    assert (values, part.VALUE) == ([1], 2)
    assert not any(isinstance(finder, ImportHook) for finder in sys.meta_path)
    assert part.__spec__ is not None
    assert part.__file__ == part.__spec__.origin


def test_a_module_that_is_imported_already_is_passed_at_once(package: str) -> None:
    part = importlib.import_module(f"{package}.part")
    modules: list[ModuleType] = []
    after_import(f"{package}.part", modules.append)
    assert modules == [part]


def test_a_module_that_does_not_exist_fails_as_ever(package: str) -> None:
    after_import(f"{package}.missing", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="missing"):
        importlib.import_module(f"{package}.missing")
