"""podman with images, containers and settings of its own, and a base image with Python and nothing else."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.vllm.conftest import PYTHON, clean_environ

RUNTIME = Path(__file__).with_name("oci_runtime.py")
# What a slim image has: Python with its standard library, and certificates.
PACKAGES = "python3,ca-certificates"
# Containers without some of a root's rights, mounts, and device files in the base image.
_CAPABILITIES = {"CAP_SETPCAP": 8, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{folder}/images"
runroot = "{folder}/run"
"""
_CONTAINERS = """
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "without-limits"
[engine.runtimes]
without-limits = ["{runtime}"]
"""


def missing() -> str:
    """What containers with vLLM need and is not here; "" when all is."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "Linux and root"
    effective = int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    if lacking := [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]:
        return f"rights: {', '.join(lacking)}"
    programs = ("podman", "runc", "catatonit", "debootstrap", "mksquashfs")
    if lacking := [name for name in programs if not shutil.which(name, path=_PATH)]:
        return f"programs: {', '.join(lacking)} (apt-get install podman runc catatonit debootstrap squashfs-tools)"
    if not PYTHON.exists():
        return "vLLM in .venv-vllm (make .venv-vllm/tests.done)"
    return ""


@dataclass(frozen=True)
class Podman:
    """podman's command, for the images and containers below a folder. Its callers see what else is in the machine's."""

    environ: Mapping[str, str]

    def __call__(self, *arguments: str, stdin: bytes | None = None, code: int | None = 0, seconds: float = 120) -> str:
        """Runs it to its end; its output, and that of errors.

        Args:
            arguments: The command's.
            stdin: What it reads.
            code: The exit code that it must have, within the time; None for any, also none.
            seconds: How long it may take.
        """
        command = ["podman", *arguments]
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command,
                env=self.environ,
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
            text = done.stdout.decode(errors="replace")
            assert code in {None, done.returncode}, f"{command[:3]}: exit {done.returncode}\n{text[-4000:]}"
            return text
        assert code is None, f"{command[:3]} has not ended within {seconds:.0f} s"
        return ""

    def refusal(self, archive: Path) -> str:
        """Why it runs no containers on this machine, for whatever reason; "" if it runs one with a single program."""
        with tarfile.open(archive, "w") as file:
            file.add(str(shutil.which("catatonit", path=_PATH)), "catatonit")  # needs no libraries
        try:
            self("import", str(archive), "localhost/one-program")
            self("run", "--rm", "--network", "host", "localhost/one-program", "/catatonit", "--version")
        except AssertionError as exc:
            return str(exc)
        return ""

    def tag(self, image: str, name: str) -> None:
        """Gives an image a name as files have it, such as vllm/vllm-openai:v0.32.0."""
        first, slash, _ = name.partition("/")
        is_full = slash and ("." in first or ":" in first or first == "localhost")
        self("tag", image, name if is_full else f"docker.io/{name}" if slash else f"docker.io/library/{name}")

    @contextmanager
    def playing(self, path: Path) -> Iterator[Running]:
        """`podman kube play` of a file with one deployment, for as long as the block."""
        try:
            self("kube", "play", str(path))
            yield self._only_container("name=-vllm$")  # not the one that holds the pod
        finally:
            self("kube", "down", str(path), code=None)

    @contextmanager
    def composing(self, program: Path, path: Path, *, environ: Mapping[str, str]) -> Iterator[Running]:
        """`podman-compose up` of a file with one service, for as long as the block."""

        def compose(*arguments: str) -> None:
            done = subprocess.run(
                [program, "--file", path, *arguments],
                env={**self.environ, **environ},
                cwd=path.parent,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr

        try:
            compose("up", "--detach")
            yield self._only_container("label=com.docker.compose.service")
        finally:
            compose("down", "--volumes")

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Running]:
        """`podman run` for as long as the block."""
        name = self("run", "--detach", "--network", "host", *arguments).strip()
        try:
            yield self._served_by(name)
        finally:
            self("rm", "--force", "--time", "10", name)

    def _only_container(self, condition: str) -> Running:
        [name] = self("ps", "--all", "--filter", condition, "--format={{.Names}}").split()
        return self._served_by(name)

    def _served_by(self, name: str) -> Running:
        state = ("container", "inspect", name, "--format={{.State.Running}}")
        return Running(lambda: self("logs", name), lambda: self(*state).strip() == "true")


@contextmanager
def podman(folder: Path) -> Iterator[Podman]:
    """podman with its images and containers below a folder; they end with the block."""
    for name, text in (("storage", _STORAGE), ("containers", _CONTAINERS)):
        (folder / f"{name}.conf").write_text(text.format(folder=folder, runtime=RUNTIME))
    environ = clean_environ(
        PATH=_PATH,
        CONTAINERS_STORAGE_CONF=str(folder / "storage.conf"),
        CONTAINERS_CONF=str(folder / "containers.conf"),
    )
    command = Podman(environ)
    try:
        yield command
    finally:
        for arguments in (("pod", "rm"), ("rm",), ("volume", "rm"), ("rmi",)):
            command(*arguments, "--all", "--force", code=None, seconds=60)
        # podman mounts its folder of layers over itself.
        subprocess.run(["umount", folder / "images/overlay"], stderr=subprocess.DEVNULL, check=False)


def base_image(archive: Path) -> Path:
    """A tar of Debian's smallest system with Python, made if it is not there."""
    if not archive.exists():
        tree, part = archive.with_name("tree"), archive.with_name("part.tar")
        shutil.rmtree(tree, ignore_errors=True)
        log = archive.with_name("debootstrap.log")
        with log.open("wb") as file:
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(tree)]
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PATH": _PATH}, check=False
            )
        assert done.returncode == 0, log.read_text(errors="replace")[-2000:]
        skipped = ("./var/cache/apt", "./var/lib/apt", "./usr/share/doc", "./usr/share/locale")
        excluded = [f"--exclude={path}/*" for path in skipped]
        subprocess.run(["tar", "-C", tree, *excluded, "-cf", part, "."], check=True)
        shutil.rmtree(tree)
        part.rename(archive)
    return archive


@dataclass(frozen=True)
class Running:
    """A container that serves a model.

    Attributes:
        log: Reads what it has written.
        is_running: Whether it has not ended.
    """

    log: Callable[[], str]
    is_running: Callable[[], bool]

    def answer(self, port: int, model: str, *, key: str = "", seconds: float = 400) -> str:
        """What the model says as soon as it serves."""
        deadline = time.monotonic() + seconds
        while True:
            assert self.is_running(), self.log()[-6000:]
            assert time.monotonic() < deadline, self.log()[-6000:]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("GET", "/health")
                reply = connection.getresponse()
                reply.read()
                if reply.status == 200:
                    return _ask(connection, model, key)
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.5)


def _ask(connection: http.client.HTTPConnection, model: str, key: str) -> str:
    body = {"model": model, "prompt": "the river", "max_tokens": 12, "temperature": 0}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    text = reply.read()
    assert reply.status == 200, text
    answer = json.loads(text)
    assert answer["usage"]["completion_tokens"] == 12, answer
    return str(answer["choices"][0]["text"])
