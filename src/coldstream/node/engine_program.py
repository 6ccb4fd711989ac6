"""The installed program of an engine: where it is, and which packages and which Python it runs with."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from coldstream.errors import NotFoundError
from coldstream.machine.extras import pip_install

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProgram:
    """The command of an engine.

    Attributes:
        engine: The engine's name.
        package: Its package on the index, its command and the folder of its modules, which have one name.
        oldest: The oldest and the newest release that were tested with this package.
        version: Of the distribution beside it; None when it is unknown without running it.
        compiled: Whether its modules have bytecode; without it, imports take twice as long, each time.
        packages: The distributions in `site`, the folder of its packages, with their versions.
        python: The interpreter's name, such as "python3.11"; `interpreter` is its path, or None without one.
    """

    engine: ClassVar[str]
    package: ClassVar[str]
    oldest: ClassVar[tuple[int, ...]]
    newest: ClassVar[tuple[int, ...]]

    path: str
    version: str | None
    compiled: bool
    packages: Mapping[str, str] = field(default_factory=dict, repr=False)
    site: str = ""
    python: str = ""
    interpreter: str | None = None

    @property
    def has_coldstream(self) -> bool:
        """Whether coldstream is installed beside it."""
        return "coldstream" in self.packages

    def module_launcher(self, module: str) -> tuple[str, ...] | None:
        """The words that run a module of coldstream with the engine's Python; None if it is not installed there."""
        # Like the program itself, without the working directory on the module path (`-P`, since Python 3.11).
        minor = self.python.removeprefix("python3.")
        if self.interpreter and self.has_coldstream and minor.isdecimal() and int(minor) >= 11:
            return (self.interpreter, "-P", "-m", module)
        return None

    def version_warning(self) -> str | None:
        """A warning about a version ("0.32.0+cpu") that was not tested with this package; None when it was."""
        if self.version is None or self.oldest <= release(self.version, len(self.oldest)) <= self.newest:
            return None
        oldest, newest = (".".join(map(str, numbers)) for numbers in (self.oldest, self.newest))
        tested = oldest if oldest == newest else f"{oldest} to {newest}"
        return f"{self.engine} {self.version} has not been tested with coldstream, which supports {tested}"

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        """What the user should know before it starts."""
        return [warning] if (warning := self.version_warning()) else []

    @classmethod
    def find(cls, named: str | None) -> Self:
        """The program at a path, or beside this Python, or on the PATH. Raises NotFoundError if there is none."""
        package = cls.package
        beside = Path(sys.executable).with_name(package)
        program = shutil.which(named) if named else str(beside) if beside.is_file() else shutil.which(package)
        if not program:
            raise NotFoundError(
                f"no program {named!r} was found" if named else f"{cls.engine} is not installed beside coldstream",
                hint=f"run: {pip_install(package)}   (or pass the path of an installed one: --{package} PATH)",
            )
        path = os.path.abspath(program)
        # Debian's Python calls the folder dist-packages, and a runtime has both: a link to the other one in `python3`.
        library = Path(path).parent.parent / "lib"
        folders = ("python3.*/site-packages", "python3*/dist-packages")
        sites = [site for folder in folders for site in sorted(library.glob(folder))]
        # An editable installation has its metadata there, and its modules elsewhere.
        has = (lambda site: (site / package).is_dir(), lambda site: any(site.glob(f"{package}-*.dist-info")))
        site = next((site for is_there in has for site in sites if is_there(site)), None)
        packages = {}
        # By folder names only: reading each file costs a cold disk a seek.
        for name in os.listdir(site) if site else ():
            if match := re.fullmatch(r"(.+?)-(.+)\.dist-info", name):
                packages[match[1].lower().replace("-", "_")] = match[2]
        modules = site / package if site else None
        return cls(
            path=path,
            version=packages.get(package),
            compiled=modules is None or not modules.is_dir() or (modules / "__pycache__").is_dir(),
            packages=packages,
            site=str(site or ""),
            python=site.parent.name if site else "",
            interpreter=_interpreter(path),
        )


def _interpreter(path: str) -> str | None:
    """The Python that runs a script, also one that pip, uv or a runtime begins for `sh` because of its long path."""
    with suppress(OSError), open(path, "rb") as file:
        first, second = (os.fsdecode(file.readline(1024)) for _ in range(2))
        line = second if second.startswith("'''exec' ") else first
        # The second kind: exec "$(dirname "$(readlink -f "$0")")/python3" "$0" "$@"
        if match := re.match(r"(?:#!|exec )(\$\(dirname .*\))?(/\S*python[0-9.]*)\s", re.sub("[\"']", "", line)):
            return os.path.dirname(os.path.realpath(path)) + match[2] if match[1] else match[2]
    return None


def release(version: str, parts: int) -> tuple[int, ...]:
    """The first numbers of a version, or () if it has fewer."""
    match = re.match(r"\.".join([r"(\d+)"] * parts), version)
    return tuple(map(int, match.groups())) if match else ()
