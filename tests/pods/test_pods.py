"""Bare containers become servers of a model: Python, a bucket, and vLLM's answer."""

from __future__ import annotations

import os
import re
from pathlib import Path

from coldstream import __version__
from coldstream.node.http_endpoint import free_port
from tests.pods import package_index
from tests.pods.conftest import CPU_FLAGS, IMAGE, MODEL, UID, Origin
from tests.pods.containers import Podman

# vLLM's processes share 160 MiB; a container of podman and docker has 64 MiB.
MEMORY = ("--shm-size", "1g")
# vLLM's image, as far as the Dockerfile uses it: Python with pip, and a user who has set an index.
BASE = """
FROM {image}
ADD {index}pip/{wheel} /
RUN python3 /{wheel}/pip install --quiet pip
"""
PIP_CONF = """
[global]
index-url = {index}
break-system-packages = true
"""
ROOT = Path(__file__).resolve().parents[2]


def start(origin: Origin, port: int) -> tuple[str, ...]:
    """The line of docs/runtime.md."""
    serve = ("serve", MODEL, "--", *CPU_FLAGS, "--host", "127.0.0.1", "--port", str(port))
    return ("python3", "-I", "/start.py", f"sha256:{origin.digest}", *serve)


def test_podman_run_as_root(podman: Podman, origin: Origin) -> None:
    port = free_port()
    options = (*MEMORY, "--env-file", str(origin.env_file), "--volume", f"{origin.start}:/start.py:ro")
    with podman.running(*options, IMAGE, *start(origin, port)) as container:
        origin.confirm(container.answer(port, MODEL))


def test_podman_run_as_any_user_on_a_read_only_root(podman: Podman, origin: Origin, tmp_path: Path) -> None:
    """As OpenShift does: no name, no home, no writable folder but a volume that the kubelet made for a group."""
    volume, port = tmp_path / "volume", free_port()
    volume.mkdir()
    os.chown(volume, 0, UID)
    volume.chmod(0o2775)
    options = (
        *MEMORY,
        *("--user", f"{UID}:0", "--group-add", str(UID), "--cap-drop", "all", "--security-opt", "no-new-privileges"),
        *("--read-only", "--read-only-tmpfs=false", "--volume", f"{volume}:/cache"),
        *("--env-file", str(origin.env_file), "--env", "COLDSTREAM_CACHE_DIR=/cache"),
        *("--volume", f"{origin.start}:/start.py:ro"),
    )
    command = ("env", "-u", "HOME", *start(origin, port))
    with podman.running(*options, IMAGE, *command) as container:
        origin.confirm(container.answer(port, MODEL))


def test_build_of_the_dockerfile(podman: Podman, tmp_path: Path) -> None:
    """With an index that has the packages of coldstream, and on a base image that has pip and no vLLM."""
    text = (ROOT / "Dockerfile").read_text()
    [base] = re.findall(r"^FROM (.+):\$\{VLLM\}$", text, re.MULTILINE)
    [version] = re.findall(r"^ARG VLLM=(.+)$", text, re.MULTILINE)
    wheels, settings = tmp_path / "wheels", tmp_path / "pip.conf"
    package_index.download(wheels, "pip", "hatchling", f"{ROOT}[tls]")
    with package_index.serving(wheels) as index:
        settings.write_text(PIP_CONF.format(index=index))
        [pip] = (wheels / "pip").iterdir()
        (tmp_path / "Dockerfile").write_text(BASE.format(image=IMAGE, index=index, wheel=pip.name))
        options = ("--pull=never", "--network=host", "--volume", f"{settings}:/etc/pip.conf:ro")
        podman("build", *options, "--tag", f"docker.io/{base}:{version}", str(tmp_path))
        podman("build", *options, "--tag", "localhost/coldstream", str(ROOT), seconds=300)
    run = ("run", "--rm", "--network=host")
    assert podman(*run, "--entrypoint", "coldstream", "localhost/coldstream", "--version").split()[-1] == __version__
    assert "error: vLLM is not installed" in podman(*run, "localhost/coldstream", MODEL, code=10)
