"""Calls a function when an engine imports one of its modules: some of its processes never do, and start faster then."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def after_import(name: str, action: Callable[[Any], None]) -> None:
    """Calls `action` with the module: at once if it is imported already, or else when it is. Idempotent until then."""
    if name in sys.modules:
        action(sys.modules[name])
    elif not any(isinstance(finder, ImportHook) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, ImportHook(name, action))


class ImportHook(MetaPathFinder):
    """Calls a function with a module when it is imported, once, without changing how it is found."""

    def __init__(self, name: str, action: Callable[[Any], None]) -> None:
        self.name, self._action = name, action

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                self._action(module)

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
