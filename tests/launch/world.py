"""A network without a way out, in which every address is here: a cloud, a bucket, and the commands that are run.

`python -m tests.launch.world FOLDER HOME`, the first process of its namespaces: it says when all is up, and all ends
with it. Keys of the bucket come on standard input.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.launch import cloud
from tests.launch.catalogue import write_catalogue
from tests.launch.certificate import answer_check, write_certificate
from tests.launch.image import CHECKOUT
from tests.launch.names import answer_names
from tests.launch.namespace import be_first, first_of, network_of, run, unshared

# Of those that are for documentation (RFC 5737): nothing takes it for this very machine.
BUCKET_ENDPOINT = "http://192.0.2.10:9000"
BUCKET = "models"
SKY = CHECKOUT / ".venv-sky/bin/sky"
VLLM = CHECKOUT / ".venv-vllm"
# The controllers of services and jobs run beside the API server, rather than on machines of their own.
_SKY_CONFIG = """\
serve:
  controller:
    consolidation_mode: true
jobs:
  controller:
    consolidation_mode: true
"""


@dataclass
class World:
    """A running one.

    Attributes:
        folder: With all of its files.
        pid: Its first process.
        environ: What commands run with: no secret of ours.
    """

    folder: Path
    pid: int
    environ: dict[str, str]
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    @property
    def disks(self) -> Path:
        """The machines' disks, by instance: they lie in memory, in the world's own mounts."""
        return Path(f"/proc/{self.pid}/root") / str(self.folder / "disks").lstrip("/")

    def run(
        self,
        *argv: str | Path,
        environ: Mapping[str, str] | None = None,
        seconds: float = 1200,
        code: int | None = 0,
    ) -> str:
        """Runs a command in it, and returns its standard output; all output is kept for the search for secrets.

        Args:
            argv: The command.
            environ: More variables.
            seconds: After which it has failed.
            code: That it must exit with; None for any.
        """
        number = next(self._count)
        outputs = [self.folder / "output" / f"{number:03d}.{kind}" for kind in ("out", "err")]
        inside = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--"]
        inside += ["env", f"--chdir={self.folder}", *map(str, argv)]
        with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
            ended = subprocess.run(
                inside,
                env={**self.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=seconds,
                check=False,
            ).returncode
        text, said = (path.read_text(errors="replace") for path in outputs)
        assert code in {None, ended}, f"{argv}: exit {ended}\n{text[-5000:]}\n{said[-5000:]}"
        return text

    def sky(self, *arguments: str, **options: object) -> str:
        """Runs SkyPilot."""
        return self.run(SKY, *arguments, **options)  # type: ignore[arg-type]

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread's new connections are made in it."""
        with network_of(self.pid):
            yield

    def get(self, url: str, *, key: str | None = None, document: object = None) -> tuple[int, str]:
        """Status and body; status 0 if there is no answer. A document is posted."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = None
        if document is not None:
            headers["Content-Type"], data = "application/json", json.dumps(document).encode()
        request = urllib.request.Request(url, data, headers)
        with self.network():
            try:
                with urllib.request.urlopen(request, timeout=60 if data else 5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as exc:
                with exc:
                    return exc.code, ""
            except OSError as exc:
                return 0, str(exc)


@contextmanager
def world(folder: Path, *, home: Path, keys: tuple[str, str]) -> Iterator[World]:
    """Runs one for the length of the block.

    Args:
        folder: An empty one.
        home: What machines start with.
        keys: Of the bucket: access key and secret key.
    """
    for name in ("home", "output", "logs", "disks", "bucket", "tmp"):
        (folder / name).mkdir()
    (folder / "bucket" / BUCKET).mkdir()
    (folder / "home/.sky").mkdir()
    (folder / "home/.sky/config.yaml").write_text(_SKY_CONFIG)
    write_catalogue(folder / "home")
    certificate = folder / "certificate.pem"
    write_certificate(certificate, folder / "certificate-key.pem")
    trusted = dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE"), str(certificate))
    environ = {
        "PATH": f"{SKY.parent}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "SKYPILOT_USER_ID": "c01d57e4",
        # It builds a wheel of itself for machines; "0" means without an environment of its own, from an index.
        "PIP_NO_BUILD_ISOLATION": "0",
        # It starts as many controllers of jobs as fit the memory, each of which takes seconds to start: one is enough.
        "SKYPILOT_POD_MEMORY_GB_LIMIT": "6",
        **cloud.ENVIRON,
        **trusted,
    }
    with (folder / "logs/world.log").open("w") as log:
        process = subprocess.Popen(
            unshared(sys.executable, "-m", "tests.launch.world", str(folder), str(home)),
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(keys) + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
            assert said == "up\n", (folder / "logs/world.log").read_text()[-3000:]
            yield World(folder, first_of(process.pid), environ)
        finally:
            process.kill()


def _private_temporary_folder(kept: list[Path]) -> None:
    """What SkyPilot leaves in /tmp goes with the world; what is ours there stays where it is."""
    run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    inside = [path for path in kept if path.is_relative_to("/tmp")]
    for number, path in enumerate(inside):
        (Path("/mnt") / str(number)).mkdir()
        run("mount", "--bind", path, f"/mnt/{number}")
    run("mount", "-t", "tmpfs", "tmpfs", "/tmp")
    for number, path in enumerate(inside):
        path.mkdir(parents=True)
        run("mount", "--bind", f"/mnt/{number}", path)
    run("umount", "--lazy", "/mnt")


def _live() -> None:
    folder, home = Path(sys.argv[1]), Path(sys.argv[2])
    keys = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _private_temporary_folder([folder, CHECKOUT])
    run("mount", "-t", "tmpfs", "-o", "size=12g", "tmpfs", folder / "disks")
    run("ip", "link", "set", "lo", "up")
    run("ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo")
    # What machines see as the sender.
    run("ip", "address", "add", "198.51.100.1/32", "dev", "lo")
    answer_check(folder / "certificate.pem", folder / "certificate-key.pem")
    answer_names(folder / "logs/names.log")
    cloud.start_api(folder / "logs/moto.log")
    _start_bucket(folder / "logs/bucket.log", folder / "bucket", keys)
    cloud.Machines(folder, home=home, checkout=CHECKOUT).start()
    print("up", flush=True)
    # Serve until the parent process closes the pipe.
    sys.stdin.read()


def _start_bucket(log: Path, root: Path, keys: list[str]) -> None:
    """`rclone serve s3`, with a line for each request in its log."""
    server = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("rclone")), "serve", "s3", str(root)),
            *("--addr", BUCKET_ENDPOINT.removeprefix("http://"), "--vfs-cache-mode", "off", "-vv"),
            # By default, it hashes a whole object for each request of a part.
            *("--etag-hash", ""),
        ],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{keys[0]},{keys[1]}"', "RCLONE_CONFIG": os.devnull},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def keep() -> None:
        assert server.stderr is not None
        with log.open("w", buffering=1) as kept:
            for line in server.stderr:
                # It says what it was configured with, too.
                if keys[1] not in line:
                    kept.write(line)

    threading.Thread(target=keep, daemon=True).start()


def missing() -> str:
    """What a world needs and is not here; "" when all is."""
    if not sys.platform.startswith("linux"):
        return "Linux"
    if os.geteuid() != 0:
        return "root"
    programs = ("unshare", "nsenter", "ip", "ssh", "rsync", "mount", "chroot", "mksquashfs")
    if lacking := [name for name in programs if not shutil.which(name)]:
        return f"programs: {', '.join(lacking)}"
    if not SKY.is_file():
        return "SkyPilot in .venv-sky (make .venv-sky/tests.done)"
    if not (VLLM / "bin/vllm").is_file():
        return "vLLM's build for processors in .venv-vllm (make .venv-vllm/tests.done)"
    probe = (
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/a /mnt/b /mnt/c"
        " && mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/a,workdir=/mnt/b /mnt/c"
        " && ip link set lo up && ip link add v1 type veth peer name v2"
    )
    done = subprocess.run(unshared("sh", "-c", probe), capture_output=True, text=True, check=False)
    if done.returncode:
        return f"namespaces, overlayfs or virtual network cards: {done.stderr.strip()}"
    return ""


if __name__ == "__main__":
    be_first(_live)
