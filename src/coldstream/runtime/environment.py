"""Puts an installed Python environment into one folder that runs wherever it is mounted.

A virtual environment names its place in its scripts and in `pyvenv.cfg`, and uses the interpreter and the standard
library of another installation, and shared libraries of the system. The folder has them all, as an installation by
itself: Python derives its prefix from where its executable is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from coldstream.errors import ColdstreamError, NotFoundError, UsageError
from coldstream.machine.extras import own_requirement, pip_install
from coldstream.runtime.runtime_manifest import Platform

# Bytecode there is valid for the times of files, which an image does not keep. `compile_all` makes it anew.
_SKIPPED = ("__pycache__",)
# Not needed to serve, or written for another place.
_SKIPPED_OF_PYTHON = (*_SKIPPED, "site-packages", "dist-packages", "test", "idlelib", "turtledemo", "ensurepip", "*.a")
_SKIPPED_SCRIPTS = re.compile(r"(activate|python|pip|coverage|wheel)")
# Of the C library and the GPU's driver, which belong to the node.
_OF_THE_NODE = re.compile(
    r"(ld-linux.*|linux-vdso|libc|libm|libdl|libpthread|librt|libutil|libresolv|libanl|libnss_.*|libBrokenLocale"
    r"|libcuda|libnvidia-.*|libamdhip64)\.so.*"
)
# CUDA's minor versions run on any driver of the major version (docs.nvidia.com/deploy/cuda-compatibility).
_DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
# What the environment's own interpreter says about itself.
_FACTS = """
import json, platform, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps({
    "base": sys.base_prefix, "executable": sys._base_executable, "stdlib": paths["stdlib"], "include": paths["include"],
    "scripts": paths["scripts"], "path": sys.path, "minor": "%d.%d" % sys.version_info[:2],
    "version": platform.python_version(), "machine": platform.machine(), "library": sysconfig.get_config_var("LIBDIR"),
    "shared": sysconfig.get_config_var("INSTSONAME") if sysconfig.get_config_var("Py_ENABLE_SHARED") else None,
}))
"""
# Calls nothing: vLLM's processes do, when they start.
_LOAD_PLUGIN = """
from importlib.metadata import distribution
if not [point.load() for point in distribution("coldstream").entry_points if point.group == "vllm.general_plugins"]:
    raise SystemExit("it has no entry point for vLLM")
"""
_SCRIPT_START = b"""#!/bin/sh
'''exec' "$(dirname "$(readlink -f "$0")")/python3" "$0" "$@"
' '''
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An installed environment: its interpreter, what `_FACTS` prints, and the folders of packages in `sys.path`."""

    python: Path
    facts: dict[str, str]
    packages: tuple[Path, ...]

    @property
    def site(self) -> str:
        """Where its packages lie in a relocatable folder, relative to it."""
        return f"lib/python{self.facts['minor']}/site-packages"


def inspect(root: Path) -> Environment:
    """Reads what an environment consists of; `root` is its folder, or any interpreter in it.

    Raises:
        NotFoundError: It is not a Python environment, or has no vLLM or no coldstream.
        UsageError: vLLM cannot load coldstream, or another package is installed as a link to its sources.
    """
    python = root if root.is_file() else root / "bin/python3"
    if not python.is_file():
        raise NotFoundError(f"{root} is not a Python environment", hint="name its folder: --from .venv")
    done = subprocess.run([python, "-c", _FACTS], capture_output=True, text=True, check=False, env=_clean_environ())
    if done.returncode:
        raise ColdstreamError(f"{python} does not run: {done.stderr.strip()[-200:]}")
    facts = json.loads(done.stdout)
    inner = {os.path.realpath(facts["stdlib"]), os.path.realpath(f"{facts['stdlib']}/lib-dynload")}
    folders = [Path(entry) for entry in facts["path"] if entry and os.path.realpath(entry) not in inner]
    packages = tuple(folder for folder in folders if folder.name in {"site-packages", "dist-packages"})
    environment = Environment(python=python, facts=facts, packages=packages)
    for name in ("vllm", "coldstream"):
        if version_of(environment, name) is None:
            raise NotFoundError(
                f"{name} is not installed in {root}", hint=f"run: {python} -m pip install {name}   (or see --from)"
            )
    links = sorted(name for name in _links_to_sources(packages) if name != "coldstream")
    if links:
        raise UsageError(
            f"{', '.join(links)} in {root} is installed as a link to its sources (pip install -e)",
            hint="install it without -e",
        )
    command = (python, "-B", "-c", _LOAD_PLUGIN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_clean_environ(), cwd="/")
    if done.returncode:
        install = pip_install("--force-reinstall", "--no-deps", own_requirement(), python=str(python))
        raise UsageError(
            f"vLLM cannot load coldstream in {root}: {done.stderr.strip().rpartition(chr(10))[2]}",
            hint=f"run: {install}",
        )
    return environment


def version_of(environment: Environment, package: str) -> str | None:
    """The version of an installed distribution; None when there is none."""
    installed = metadata.distributions(name=package, path=[str(folder) for folder in environment.packages])
    return next((distribution.version for distribution in installed), None)


def relocate(environment: Environment, out: Path) -> Platform:
    """Fills an empty folder with an environment, by hard links where the file system allows; returns what is in it."""
    facts, copied = environment.facts, out / "lib" / f"python{environment.facts['minor']}"
    (out / "bin").mkdir()
    copy_tree(Path(facts["stdlib"]), copied, skipped=_SKIPPED_OF_PYTHON)
    if Path(facts["include"]).is_dir():
        copy_tree(Path(facts["include"]), out / "include" / Path(facts["include"]).name)
    executable = Path(facts["executable"]).resolve()
    link(executable, out / "bin" / f"python{facts['minor']}")
    for name in ("python3", "python"):
        (out / "bin" / name).symlink_to(f"python{facts['minor']}")
    if facts["shared"]:
        link(Path(facts["library"], facts["shared"]), out / "lib" / facts["shared"])
    # The first folder of `sys.path` wins.
    for folder in reversed(environment.packages):
        copy_tree(folder, out / environment.site, skipped=_SKIPPED)
    # Where Debian's Python looks.
    (out / "lib/python3").mkdir(exist_ok=True)
    (out / "lib/python3/dist-packages").symlink_to(f"../python{facts['minor']}/site-packages")
    _replace_link_to_sources(environment, out / environment.site)
    _copy_scripts(Path(facts["scripts"]), out / "bin")
    (out / "bin/coldstream").unlink(missing_ok=True)
    _write_program(out / "bin/coldstream", b"from coldstream.cli import main\n\nmain()\n")
    compile_all(environment.python, copied)
    _add_system_libraries(out)
    return platform_of(environment, out)


def platform_of(environment: Environment, out: Path) -> Platform:
    """What a relocated environment contains, and what it needs of a node."""
    torch = out / environment.site / "torch/version.py"
    match = re.search(r"^cuda.*= '([\d.]+)'", torch.read_text(), re.MULTILINE) if torch.is_file() else None
    return Platform(
        machine=environment.facts["machine"],
        glibc=oldest_glibc(out),
        python=environment.facts["version"],
        vllm=version_of(environment, "vllm") or "",
        torch=version_of(environment, "torch") or "",
        coldstream=version_of(environment, "coldstream") or "",
        cuda=match[1] if match else None,
        driver=_DRIVERS.get(match[1].partition(".")[0]) if match else None,
    )


def compile_all(python: Path, folder: Path) -> None:
    """Adds bytecode that is used whatever the files' times are; what fails is for other versions of Python.

    Bytecode names its source relative to the folder, so that it does not depend on where the folder is.
    """
    words = ("-m", "compileall", "-q", "-j", "0", "-s", folder, "--invalidation-mode", "unchecked-hash", folder)
    subprocess.run([python, *words], capture_output=True, check=False, env=_clean_environ())


def libraries_of(files: Iterable[Path], searched: Path | None = None) -> dict[str, Path]:
    """The shared libraries that ELF files load when they start, by name, without those of the node.

    The libraries in the folder `searched` come before the system's.
    """
    environ = _clean_environ() | ({"LD_LIBRARY_PATH": str(searched)} if searched else {})
    names = [str(file) for file in files]
    libraries = {}
    for start in range(0, len(names), 500):
        done = subprocess.run(["ldd", *names[start : start + 500]], capture_output=True, check=False, env=environ)
        for name, path in re.findall(rb"^\t(\S+) => (/\S+) \(", done.stdout, re.MULTILINE):
            if not _OF_THE_NODE.fullmatch(os.fsdecode(name)):
                libraries[os.fsdecode(name)] = Path(os.fsdecode(path))
    return libraries


def _clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}


def _links_to_sources(packages: Iterable[Path]) -> Iterator[str]:
    for folder in packages:
        for path in folder.glob("*.dist-info/direct_url.json"):
            if json.loads(path.read_text()).get("dir_info", {}).get("editable"):
                yield path.parent.name.partition("-")[0].lower()


def _replace_link_to_sources(environment: Environment, site: Path) -> None:
    """Copies coldstream itself where it is installed as a link to its sources."""
    if "coldstream" not in _links_to_sources([site]):
        return
    source = "import coldstream; print(coldstream.__path__[0])"
    done = subprocess.run(
        [environment.python, "-c", source], capture_output=True, text=True, check=True, env=_clean_environ()
    )
    for path in [*site.glob("__editable__*coldstream*"), *site.glob("_coldstream.pth")]:
        path.unlink()
    copy_tree(Path(done.stdout.strip()), site / "coldstream", skipped=_SKIPPED)
    for path in site.glob("coldstream-*.dist-info/direct_url.json"):
        path.unlink()


def _copy_scripts(scripts: Path, out: Path) -> None:
    """Programs of packages, those in Python so that they run with the interpreter beside them."""
    for path in scripts.iterdir():
        if _SKIPPED_SCRIPTS.match(path.name) or not path.is_file() or (out / path.name).exists():
            continue
        with path.open("rb") as file:
            first, rest = file.readline(4096), b""
            if first.startswith(b"#!"):
                rest = file.read()
        # pip and uv begin scripts of environments with long paths like `_SCRIPT_START`.
        is_shell_start = first == b"#!/bin/sh\n" and rest.startswith(b"'''exec'")
        is_python = is_shell_start or re.match(rb"#!.*python", first) is not None
        if is_shell_start:
            rest = rest.partition(b"' '''\n")[2]
        if is_python:
            _write_program(out / path.name, rest)
        else:
            link(path, out / path.name)


def _write_program(path: Path, source: bytes) -> None:
    path.write_bytes(_SCRIPT_START + source)
    path.chmod(0o755)


def _add_system_libraries(out: Path) -> None:
    """Copies the system's libraries that the folder's files load, to `lib/system`."""
    system = out / "lib/system"
    system.mkdir()
    for name, path in libraries_of(_binaries(out), out / "lib").items():
        if not path.is_relative_to(out):
            shutil.copy2(path.resolve(), system / name)


def _binaries(folder: Path) -> Iterator[Path]:
    """The ELF files below a folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if (".so" in name or parent.endswith("/bin")) and path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    if file.read(4) == b"\x7fELF":
                        yield path


def oldest_glibc(out: Path) -> str:
    """The oldest version of the C library with every symbol that the files name; not above this machine's."""
    own = int((os.confstr("CS_GNU_LIBC_VERSION") or "glibc 2.17").rpartition(".")[2])
    newest = 17
    for path in _binaries(out):
        for match in re.finditer(rb"\0GLIBC_2\.(\d+)(?=\0)", path.read_bytes()):
            newest = max(newest, int(match[1]))
    return f"2.{min(newest, own)}"


def copy_tree(source: Path, target: Path, *, skipped: tuple[str, ...] = ()) -> None:
    """Copies a folder over another; symbolic links stay links if they lead to the folder itself."""
    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns(*skipped), dirs_exist_ok=True)


def link(source: str | Path, target: str | Path) -> None:
    """A second name of a file, or a copy on another file system; replaces what is there."""
    source, target = os.path.realpath(source), Path(target)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    if not stat.S_IMODE(target.stat().st_mode) & stat.S_IROTH:
        shutil.copy2(source, f"{target}.new")
        os.chmod(f"{target}.new", stat.S_IMODE(target.stat().st_mode) | 0o444)
        os.replace(f"{target}.new", target)
