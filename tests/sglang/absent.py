"""Stand-ins for packages that SGLang imports and does not use on the CPU.

torchvision has no build for this torch, and Triton, which compiles kernels for GPUs, takes 1 GB. Their modules can be
imported, and anything in them too, so that SGLang's own modules can be imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Absent(ModuleType):
    """A module that has everything: classes by capital letters, and otherwise functions that decorate."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "3.6.0"
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            return type(name, (), {"__init__": lambda *_, **__: None})
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if len(arguments) == 1 and callable(arguments[0]) and not options:
            return arguments[0]
        return _unchanged


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class AbsentFinder(MetaPathFinder, Loader):
    """Finds them; torchvision once Transformers, which would use it, has looked for it in vain."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        root = name.partition(".")[0]
        is_absent = root == "triton" or (root == "torchvision" and "transformers.image_utils" in sys.modules)
        return ModuleSpec(name, self, is_package=True) if is_absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""


sys.meta_path.insert(0, AbsentFinder())
