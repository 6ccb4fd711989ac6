"""A machine with nothing on it: a namespace behind a capped link, an empty disk, empty memory, a cold page cache."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.servers.nginx import nginx

from bare_node.sources import NGINX, Sources
from slow_disk import slow_disk
from streaming.link import Link

ADDRESS, PORT = "198.18.0.2", 8000
_READY_SECONDS = 600
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNPRIVILEGED = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs")


class Node:
    """A machine with nothing on it.

    Attributes:
        folder: Its empty disk.
        group: The control group that its processes are in.
        environ: What they get; nothing of this process's own.
    """

    def __init__(self, folder: Path, group: Path, *, unprivileged: bool) -> None:
        self.folder, self.group, self._unprivileged = folder, group, unprivileged
        self.environ = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        self.began = self.began_time = 0.0
        self._cpu_before = self._cpu_seconds()

    def start(self, link: Link, script: str, served: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """Runs a shell script on it. What the servers read is in their page cache; all else is cold."""
        for name in ("home", "tmp"):
            (self.folder / name).mkdir()
        if self._unprivileged:
            subprocess.run(["chown", "-R", "65534:65534", self.folder], check=True)
        drop_caches()
        for path in served:
            subprocess.run(["sh", "-c", f"find {path} -type f | xargs cat > /dev/null"], check=True)
        # A mount namespace of its own, with empty memory; its mounts vanish with it.
        memory = "mount -t tmpfs -o mode=1777,size=60% none /dev/shm"
        enter = f'echo $$ > {self.group}/cgroup.procs && {memory} && exec "$@"'
        user = _UNPRIVILEGED if self._unprivileged else ()
        command = [
            "nsenter",
            f"--net=/run/netns/{link.enter[-1]}",
            "unshare",
            "--mount",
            "sh",
            "-c",
            enter,
            "sh",
            *user,
        ]
        with open(self.folder / "log", "wb") as log:
            self.began, self.began_time = time.monotonic(), time.time()
            return subprocess.Popen(
                [*command, "sh", "-c", script],
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Asks its program to end."""
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)

    def kill(self) -> None:
        """Ends whatever still runs on it."""
        until = time.monotonic() + 20
        while (pids := self._pids()) and time.monotonic() < until:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def _pids(self) -> list[int]:
        lists = [self.group / "cgroup.procs", *self.group.glob("*/cgroup.procs")]
        return [int(pid) for path in lists for pid in path.read_text().split()]

    def cpu_seconds(self) -> float:
        """Of all its processes until now."""
        return self._cpu_seconds() - self._cpu_before

    def _cpu_seconds(self) -> float:
        usage = self.group / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        return int((self.group / "cpu.stat").read_text().split()[1]) / 1e6

    def log(self) -> str:
        """The end of what it printed."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]


@contextmanager
def new_node(*, unprivileged: bool) -> Iterator[Node]:
    """An empty machine; its disk and its control group are removed at the end."""
    base = Path("/sys/fs/cgroup/cpuacct")
    group = (base if base.is_dir() else base.parent) / f"coldstream-bare-{os.getpid()}"
    group.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="coldstream-node-", dir="/var/tmp"))
    folder.chmod(0o755)
    node = Node(folder, group, unprivileged=unprivileged)
    try:
        yield node
    finally:
        node.kill()
        subprocess.run(["rm", "-rf", folder], check=True)
        # podman makes groups of this name for other resources, too.
        for root in {group, *Path("/sys/fs/cgroup").glob(f"*/{group.name}")}:
            for path, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):
                    os.rmdir(path)


class Watch(threading.Thread):
    """Notices when the bootstrap program executes coldstream, and how much memory it and its programs had before.

    Attributes:
        executed: Seconds after the start; None where it never was.
        cpu: CPU seconds of the node until then.
        memory: The peak, in bytes.
    """

    def __init__(self, node: Node, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._node, self._process = node, process
        self.executed: float | None = None
        self.cpu, self.memory = 0.0, 0
        self.start()

    def run(self) -> None:
        pid = str(self._process.pid)
        while self._process.returncode is None:
            with suppress(OSError):
                if "/coldstream-runtimes-" in os.readlink(f"/proc/{pid}/exe"):
                    self.executed, self.cpu = time.time() - self._node.began_time, self._node.cpu_seconds()
                    return
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in (pid, *children))
                self.memory = max(self.memory, pages * os.sysconf("SC_PAGE_SIZE"))
            time.sleep(0.005)


@contextmanager
def servers(sources: Sources, link: Link, other: str | None) -> Iterator[list[str]]:
    """The URLs of the bucket and of another folder's server, on the far side of the link."""
    with ExitStack() as stack, link.server_side():
        roots = [sources.folder / "bucket", *([sources.folder / other] if other else [])]
        urls = [stack.enter_context(nginx(root, host=link.host, extra=NGINX)).url for root in roots]
        yield urls


@contextmanager
def disk(bytes_per_second: float) -> Iterator[Path]:
    """An empty file system, in memory, whose reads and writes wait as on a disk of this speed."""
    with tempfile.TemporaryDirectory(prefix="coldstream-bare-", dir="/dev/shm") as folder:
        image = Path(folder, "disk")
        with image.open("wb") as file:
            file.truncate(5 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-N", "200000", image], check=True)
        with slow_disk(image, latency_seconds=0, bytes_per_second=bytes_per_second, writable=True) as mounted:
            mounted.chmod(0o1777)
            yield mounted


def drop_caches() -> None:
    """Empties the page cache of this machine."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def timed(command: Sequence[str | Path]) -> tuple[float, float]:
    """Wall and CPU seconds of a command."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime


def process_cpu(pid: int) -> float:
    """CPU seconds of a process until now; 0 for none."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for_first_token(process: subprocess.Popen[bytes], node: Node, model: str) -> float:
    """Asks again and again; returns the seconds since the node's first instruction."""
    body = json.dumps({"model": model, "prompt": "the river", "max_tokens": 1})
    while True:
        connection = http.client.HTTPConnection(ADDRESS, PORT, timeout=60)
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                return time.monotonic() - node.began
        connection.close()
        if process.poll() is not None or time.monotonic() > node.began + _READY_SECONDS:
            raise SystemExit(f"no token came:\n{node.log()}")
        time.sleep(0.05)
