"""Puts coldstream and the packages that it needs into one folder, for nodes and images that have vLLM already.

Each package has a folder of its own in `packages`: a node takes those that its Python lacks (`packages_start`). One
that is compiled for a version of Python has more folders, `NAME@3.12`, for the versions that images may have.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

import coldstream
from coldstream.errors import UsageError
from coldstream.package import __version__
from coldstream.runtime import environment
from coldstream.runtime.runtime_manifest import Platform

# The extra that nodes have (pyproject.toml).
_EXTRAS = frozenset({"tls"})
# The versions of Python that vLLM's images may have.
_MINORS = (10, 11, 12, 13)
_INSTALL_SECONDS_MAX = 60


def gather(out: Path) -> Platform:
    """Fills an empty folder with the packages of the Python that runs this; returns what they are and need of a node.

    Raises UsageError on another system than Linux.
    """
    if sys.platform != "linux":
        raise UsageError(
            f"packages of {platform.system()} do not run on Linux nodes", hint="run it on Linux, or use --package"
        )
    packages, distributions = out / "packages", closure("coldstream", _EXTRAS)
    for name, distribution in distributions.items():
        _copy(distribution, packages / name)
    compiled = [name for name in distributions if any((packages / name).rglob("*.cpython-*.so"))]
    _add_other_versions({name: distributions[name].version for name in compiled}, packages)
    # coldstream itself may be installed as a link to its sources.
    environment.copy_tree(Path(coldstream.__path__[0]), packages / "coldstream/coldstream", skipped=("__pycache__",))
    (out / "bin").mkdir()
    (out / "bin/coldstream").write_bytes(
        resources.files("coldstream.runtime").joinpath("packages_start.py").read_bytes()
    )
    environment.compile_all(Path(sys.executable), packages)
    return Platform(
        machine=platform.machine(),
        glibc=environment.oldest_glibc(packages),
        python=platform.python_version(),
        vllm="",
        torch="",
        coldstream=__version__,
        origin=origin(),
    )


def origin() -> str:
    """What identifies the packages that `gather` would collect, without collecting them."""
    digest = hashlib.sha256()
    for name, distribution in sorted(closure("coldstream", _EXTRAS).items()):
        digest.update(f"{name} {distribution.version} {platform.python_version()}\n".encode())
    folder = Path(coldstream.__path__[0])
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def closure(name: str, extras: frozenset[str]) -> dict[str, metadata.Distribution]:
    """The distributions that one needs, by normalised name; those that are not installed are for other systems."""
    needed: dict[str, metadata.Distribution] = {}
    waiting, seen = [(name, extras)], set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needed[name] = distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for requirement in distribution.requires or ():
            match = re.match(r"\s*([\w.-]+)\s*(?:\[([^]]*)])?[^;]*(.*)", requirement)
            assert match is not None
            extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", match[3])
            if extra is None or extra[1] in extras:
                waiting.append((_normalised(match[1]), frozenset(re.findall(r"[\w.-]+", match[2] or ""))))
    return needed


def _normalised(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _add_other_versions(versions: dict[str, str], packages: Path) -> None:
    """Adds wheels for other versions of Python, from the package index, as far as it has them and can be reached."""
    uv = shutil.which("uv")
    program = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    for minor in _MINORS:
        if minor == sys.version_info.minor or not versions:
            continue
        with tempfile.TemporaryDirectory() as folder:
            words = [*program, "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", folder]
            words += ["--python-version", f"3.{minor}", *(f"{name}=={version}" for name, version in versions.items())]
            try:
                done = subprocess.run(words, capture_output=True, check=False, timeout=_INSTALL_SECONDS_MAX)
            except (OSError, subprocess.TimeoutExpired):
                return
            for distribution in metadata.distributions(path=[folder]) if not done.returncode else ():
                _copy(distribution, packages / f"{_normalised(distribution.metadata['Name'])}@3.{minor}")


def _copy(distribution: metadata.Distribution, out: Path) -> None:
    """Copies what a distribution has beside its metadata; not its programs."""
    out.mkdir(parents=True)
    for name in sorted({file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}):
        source = Path(str(distribution.locate_file(name)))
        # A link to sources is a line in a .pth file.
        if source.is_dir():
            environment.copy_tree(source, out / name, skipped=("__pycache__", "direct_url.json"))
        elif source.is_file() and source.suffix != ".pth":
            environment.link(source, out / name)
