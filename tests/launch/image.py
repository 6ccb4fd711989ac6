"""What a machine of the cloud starts with, made once: `python -m tests.launch.image FOLDER`, as root.

A home folder with SkyPilot's runtime, which SkyPilot would install from an index, and nothing else. It is installed
inside of a machine's disk, since virtual environments know where they lie.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.launch import node
from tests.launch.namespace import be_first, run, unshared

CHECKOUT = Path(__file__).resolve().parents[2]
SKYPILOT_VERSION = "0.14.1"
# What SkyPilot's own set-up of a machine would install (sky/skylet/constants.py).
_RUNTIME = (
    "setuptools<70",
    "click<8.3.0",
    "ray[default]==2.9.3",
    "pydantic-core==2.41.1",
    f"skypilot[aws,remote]=={SKYPILOT_VERSION}",
    "uv",
)
# Ray 2.9.3 has wheels up to this one.
_PYTHONS = ("python3.11", "python3.10")
_DONE = "done"


class MissingError(Exception):
    """Something that a machine needs cannot be had here; says what."""


def runtime_python() -> str:
    """A Python that Ray has wheels for.

    Raises:
        MissingError: There is none.
    """
    for name in _PYTHONS:
        found = shutil.which(name)
        # A shim may stand for a version that is not there.
        if found and _runs(found, "-c", "import ensurepip, venv"):
            return os.path.realpath(found)
    raise MissingError(f"none of {', '.join(_PYTHONS)}, one of which SkyPilot's runtime needs")


def _runs(*argv: str) -> bool:
    return not subprocess.run(argv, capture_output=True, check=False).returncode


def image(folder: Path) -> Path:
    """The home folder of new machines; made when it is not there, or was made of something else.

    Raises:
        MissingError: It cannot be made here.
    """
    python = runtime_python()
    about = [python, *_RUNTIME, "bare"]
    wanted = hashlib.sha256("\n".join(about).encode()).hexdigest()
    done, home = folder / _DONE, folder / "home"
    if not done.is_file() or done.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        home.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="image-", dir=folder) as disk:
            argv = unshared(sys.executable, "-m", "tests.launch.image", disk, str(home), python, network=False)
            made = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        if made.returncode:
            lines = made.stderr.strip().splitlines() or [f"exit {made.returncode}"]
            raise MissingError(f"SkyPilot's runtime cannot be installed: {lines[-1]}")
        done.write_text(wanted)
    return home


def _make() -> None:
    disk, home, python = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    run("mount", "-t", "tmpfs", "tmpfs", disk)
    root = node.mount_disk(disk, CHECKOUT)
    run("mount", "--bind", home, root / node.HOME.lstrip("/"))
    runtime = f"{node.HOME}/skypilot-runtime"

    def inside(*argv: str) -> None:
        subprocess.run(["chroot", root, *argv], check=True, env={**os.environ, "HOME": node.HOME})

    inside(python, "-m", "venv", runtime)
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
    inside(f"{runtime}/bin/python", *pip, *_RUNTIME)
    # Where SkyPilot looks for it.
    (home / ".local/bin").mkdir(parents=True)
    shutil.copy(home / "skypilot-runtime/bin/uv", home / ".local/bin/uv")


if __name__ == "__main__":
    be_first(_make)
