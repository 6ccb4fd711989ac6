"""A machine of the cloud: `python -m tests.launch.node SPEC`, the first process of namespaces of its own.

Its disk is this machine's, copied on write and without this checkout; its network is one cable. It has the system's
Python and what SkyPilot installs, and neither coldstream nor vLLM. It begins when a line comes on standard input.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.launch import names
from tests.launch.namespace import be_first, run
from tests.launch.ssh import SshServer

HOME = "/home/ubuntu"
# The changes that SkyPilot's set-up makes to a machine's system, which are not made to this one.
_NOT_HERE = ("systemctl", "service", "apt", "apt-get", "dpkg", "reboot", "shutdown")
_NOTHING = "#!/bin/sh\nexit 0\n"
_SUDO = '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n'
_ENVIRONMENT = (
    f"HOME={HOME}",
    "USER=ubuntu",
    "LOGNAME=ubuntu",
    "SHELL=/bin/bash",
    "LANG=C.UTF-8",
    # SkyPilot installs by uv what is installed already, for which uv would ask an index unless this is set.
    "UV_OFFLINE=1",
    "UV_PYTHON_DOWNLOADS=never",
    # Ray runs jobs at a low priority, which matters here, where machines share two cores.
    "RAY_worker_niceness=0",
    # For vLLM's build for processors: a cache of 1 GiB, and no compilation, which takes a minute on two cores.
    "VLLM_CPU_KVCACHE_SPACE=1",
    "VLLM_CPU_CI_ENV=1",
    "VLLM_NO_USAGE_STATS=1",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)


@dataclass(frozen=True)
class Spec:
    """What a machine is.

    Attributes:
        name: The instance's id.
        disk: An empty folder, not on the disk that `/` is on.
        home: The home folder that it starts with.
        checkout: Of this repository, which it cannot see.
        addresses: Its own.
        log: Where the SSH server writes down what is asked.
    """

    name: str
    disk: str
    home: str
    checkout: str
    addresses: tuple[str, ...]
    log: str

    def text(self) -> str:
        """For the command line; no secret."""
        return json.dumps(asdict(self))


def mount_disk(disk: Path, checkout: Path) -> Path:
    """This machine's disk, to be written without writing on it; the folder of its root.

    Args:
        disk: An empty folder on another file system.
        checkout: What is not to be seen.
    """
    written, work, root, temporary = (disk / name for name in ("written", "work", "root", "tmp"))
    for folder in (written, work, root, temporary):
        folder.mkdir()
    temporary.chmod(0o1777)
    run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={written},workdir={work}", root)
    run("mount", "-t", "proc", "proc", root / "proc")
    run("mount", "-t", "sysfs", "sysfs", root / "sys")
    run("mount", "--rbind", "/dev", root / "dev")
    run("mount", "-t", "tmpfs", "tmpfs", root / "dev/shm")
    run("mount", "--bind", temporary, root / "tmp")
    hidden = root / str(checkout).lstrip("/")
    if hidden.is_dir():
        run("mount", "-t", "tmpfs", "tmpfs", hidden)
    (root / HOME.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name in (*_NOT_HERE, "sudo"):
        program = root / "usr/local/sbin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(_SUDO if name == "sudo" else _NOTHING)
        program.chmod(0o755)
    return root


def _live() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    disk = Path(spec.disk)
    print("up", flush=True)
    if not sys.stdin.readline():
        return
    socket.sethostname(spec.name)
    for link in ("lo", "e0"):
        run("ip", "link", "set", link, "up")
    for address in spec.addresses:
        run("ip", "address", "add", f"{address}/32", "dev", "e0")
    run("ip", "route", "add", "default", "dev", "e0")
    root = mount_disk(disk, Path(spec.checkout))
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text(f"nameserver {names.ADDRESS}\noptions attempts:1\n")
    home = root / HOME.lstrip("/")
    for name in ("home", "home-work"):
        (disk / name).mkdir()
    layers = f"lowerdir={spec.home},upperdir={disk / 'home'},workdir={disk / 'home-work'}"
    run("mount", "-t", "overlay", "overlay", "-o", layers, home)
    server = SshServer(("chroot", str(root), "/usr/bin/env", "-i", *_ENVIRONMENT), Path(spec.log))
    asyncio.run(server.serve())


if __name__ == "__main__":
    be_first(_live)
