"""The bootstrap program on a bare node: another Python, an empty environment, real servers, and what can go wrong."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from coldstream.places.place import Store
from coldstream.runtime.runtime_manifest import RuntimeManifest, Unpacker, encode_manifest
from tests.conftest import fresh_bucket, quick_store
from tests.runtimes import (
    BOOTSTRAP,
    MOUNT,
    SQUASHFS,
    ArtificialRuntime,
    BareNode,
    artificial_runtime,
    changed_bootstrap,
    interpreters,
    replace_struct,
)
from tests.servers.nginx import make_certificate, nginx
from tests.servers.ranged import HttpProxy
from tests.servers.stores import Faults, S3Server, fault_proxy
from tests.users import AS_ROOT

pytestmark = SQUASHFS
UID = 1000910000
DISK = "disk.f_bavail * disk.f_frsize"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> ArtificialRuntime:
    return artificial_runtime(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> ArtificialRuntime:
    return artificial_runtime(tmp_path_factory.mktemp("evil"), is_evil=True)


class Bucket:
    """A bucket with the runtime, behind the fault proxy, and a node that uses it."""

    def __init__(self, server: S3Server, name: str, faults: Faults, store: Store, base: Path) -> None:
        self.faults, self.store, self.name = faults, store, name
        self.node = BareNode(base, server.environ(name))


@pytest.fixture(scope="module")
def published(moto: S3Server, runtime: ArtificialRuntime) -> tuple[str, Store]:
    """A bucket that no test changes."""
    name = fresh_bucket(moto)
    store = quick_store(moto.environ(name))
    runtime.publish(store)
    return name, store


@pytest.fixture
def bucket(moto: S3Server, published: tuple[str, Store], tmp_path: Path) -> Iterator[Bucket]:
    with fault_proxy(moto) as (server, faults):
        yield Bucket(server, published[0], faults, published[1], tmp_path)


@pytest.fixture
def own_bucket(moto: S3Server, runtime: ArtificialRuntime, tmp_path: Path) -> Bucket:
    """A bucket that the test may change."""
    name = fresh_bucket(moto)
    store = quick_store(moto.environ(name))
    runtime.publish(store)
    return Bucket(moto, name, Faults(), store, tmp_path)


@pytest.mark.parametrize("python", interpreters())
def test_a_runtime_is_unpacked_and_started(bucket: Bucket, runtime: ArtificialRuntime, python: str) -> None:
    node = BareNode(bucket.node.base, bucket.node.environ, python=python)
    node.environ |= {"PYTHONPATH": "/elsewhere", "VIRTUAL_ENV": "/elsewhere", "HOME": str(node.base)}
    ended = node.start(f"sha256:{runtime.digest}", "serve", "org/m", "--", "--port", "8000", "with space")
    assert ended.is_started, ended
    assert ended.err == ""
    root = node.runtimes / runtime.digest / "tree"
    assert ended.root == root
    arguments = [line[9:] for line in ended.out.splitlines() if line.startswith("argument ")]
    assert arguments == ["-s", f"{root}/bin/coldstream", "serve", "org/m", "--", "--port", "8000", "with space"]
    environ = ended.environ
    assert environ["R2_SECRET_KEY"] == node.environ["R2_SECRET_KEY"]
    assert environ["PATH"] == f"{root}/bin:{os.defpath}"
    assert environ["LD_LIBRARY_PATH"] == f"{root}/lib:{root}/lib/system"
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & environ.keys()
    assert environ["HOME"] == str(node.base)
    phases = json.loads(environ["COLDSTREAM_BOOTSTRAP"])["phases"]
    assert [phase[0] for phase in phases] == ["fetch", "unpack"]
    # The image is only needed until it is unpacked.
    assert not (root.parent / "image").exists()


def test_the_next_start_needs_no_server(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    first = bucket.node.start(runtime.digest)
    assert first.is_started
    # Every chunk, the manifest and the unpacker, once.
    assert len(bucket.faults.requests) == len(runtime.manifest.image.chunks) + 2
    bucket.node.environ["R2_ENDPOINT"] = "http://127.0.0.1:9"
    again = bucket.node.start(runtime.digest)
    assert again.is_started
    assert again.root == first.root
    assert json.loads(again.environ["COLDSTREAM_BOOTSTRAP"])["phases"] == []


@MOUNT
def test_root_mounts_the_image(bucket: Bucket, runtime: ArtificialRuntime, tmp_path: Path) -> None:
    del bucket.node.environ["COLDSTREAM_RUNTIME_MODE"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mount").write_text(
        f'#!/bin/sh\nhead -c 4 "$3" >{tmp_path}/read\nexec {shutil.which("mount")} "$@"\n'
    )
    (tmp_path / "bin/mount").chmod(0o755)
    bucket.node.environ["PATH"] = f"{tmp_path}/bin:{os.defpath}"
    attached = []

    def on_request(line: str) -> None:
        if line.endswith("/image"):
            attached.append(loop_devices(bucket.node.base))
            # As udev does: what it has read of an empty image must not be what others see.
            for device in attached[-1]:
                with open(f"/dev/{device}", "rb") as file:
                    file.read(1 << 20)

    bucket.faults.on_request = on_request
    try:
        first = bucket.node.start(runtime.digest)
        if first.root.name == "tree":
            pytest.skip(f"this machine does not mount: {first.err}")
        assert first.is_started
        phases = json.loads(first.environ["COLDSTREAM_BOOTSTRAP"])["phases"]
        assert [phase[0] for phase in phases] == ["fetch", "mount"]
        for flag in (os.ST_RDONLY, os.ST_NOSUID, os.ST_NODEV):
            assert os.statvfs(first.root).f_flag & flag
        # Attaching a device to a file with content would wait until the disk has it.
        (device,) = loop_devices(bucket.node.base)
        assert attached == [[device]] * len(runtime.manifest.image.chunks)
        assert Path("/sys/block", device, "loop/autoclear").read_text() == "1\n"
        assert (tmp_path / "read").read_text() == "hsqs"
        requests = len(bucket.faults.requests)
        assert bucket.node.start(runtime.digest).root == first.root
        assert len(bucket.faults.requests) == requests
        # As after a reboot: what the disk has is checked again before it is mounted.
        unmount(first.root.parent)
        damage(first.root.parent / "image", at=5_000_000)
        assert bucket.node.start(runtime.digest).is_started
        assert len(bucket.faults.requests) == requests + 2
    finally:
        unmount(bucket.node.runtimes / runtime.digest)


@MOUNT
def test_linux_without_loop_configure(bucket: Bucket, runtime: ArtificialRuntime, tmp_path: Path) -> None:
    """Before 5.8: the program `mount` attaches the device."""
    program = changed_bootstrap(tmp_path / "start.py", "0x4C0A", "0x4CFF")
    bucket.node.environ["COLDSTREAM_RUNTIME_MODE"] = "mount"
    folder = bucket.node.runtimes / runtime.digest
    try:
        ended = bucket.node.start(runtime.digest, program=program)
        assert ended.is_started, ended
        assert ended.err == ""
        assert ended.root == folder / "mount"
    finally:
        unmount(folder)
    wait_for(lambda: not loop_devices(bucket.node.base))


@MOUNT
def test_what_cannot_be_mounted_is_unpacked(bucket: Bucket, runtime: ArtificialRuntime, tmp_path: Path) -> None:
    del bucket.node.environ["COLDSTREAM_RUNTIME_MODE"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mount").write_text("#!/bin/sh\necho 'mount: permission denied' >&2\nexit 32\n")
    (tmp_path / "bin/mount").chmod(0o755)
    bucket.node.environ["PATH"] = f"{tmp_path}/bin:{os.defpath}"
    ended = bucket.node.start(runtime.digest)
    assert ended.is_started
    assert ended.root.name == "tree"
    assert ended.err == "mount: permission denied\n"


def test_signatures_are_valid(rclone: S3Server, runtime: ArtificialRuntime, tmp_path: Path) -> None:
    name = fresh_bucket(rclone)
    runtime.publish(quick_store(rclone.environ(name) | {"COLDSTREAM_STORE": f"s3://{name}/a folder/ü"}))
    node = BareNode(tmp_path, rclone.environ(name) | {"COLDSTREAM_STORE": f"s3://{name}/a folder/ü"})
    node.environ["R2_SECRET_KEY"] = "a-wrong-secret-key"
    node.refused(runtime.digest, 12, "the keys may not read", "SignatureDoesNotMatch")
    node.environ |= {"R2_SECRET_KEY": rclone.secret_key, "R2_ACCESS_KEY": "unknown"}
    node.refused(runtime.digest, 12, "the keys may not read")
    node.environ["R2_ACCESS_KEY"] = rclone.access_key
    assert node.start(runtime.digest).is_started


@pytest.mark.parametrize("mode", ["unpack", pytest.param("mount", marks=MOUNT)])
def test_killed_at_any_moment(bucket: Bucket, runtime: ArtificialRuntime, mode: str) -> None:
    """SIGKILL at 25 moments, with bytes of the disk changed in between: what is executed was verified as a whole."""
    node, chance = bucket.node, random.Random(7)
    node.environ["COLDSTREAM_RUNTIME_MODE"] = mode
    bucket.faults.on_request = lambda line: time.sleep(0.02)
    begin = time.monotonic()
    assert node.start(runtime.digest).is_started
    seconds = time.monotonic() - begin
    folder = node.runtimes / runtime.digest
    image = folder / "image"
    for _ in range(25):
        unmount(folder)
        if (folder / "tree").exists() or (mode == "mount" and image.exists() and chance.random() < 0.3):
            shutil.rmtree(node.runtimes)
        with node.begin(runtime.digest) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, seconds * 0.9))
            process.kill()
            out, _ = process.communicate(timeout=60)
        assert "EVIL" not in out
        unmount(folder)
        if image.exists() and image.stat().st_size:
            damage(image, at=chance.randrange(image.stat().st_size))
    bucket.faults.on_request = None
    ended = node.start(runtime.digest)
    assert ended.is_started, ended
    assert node.start(runtime.digest).root == ended.root
    unmount(folder)
    # The kernel detaches them when their last user ends.
    wait_for(lambda: not loop_devices(node.base))


def test_an_unpacker_of_a_killed_start_is_waited_for(own_bucket: Bucket, runtime: ArtificialRuntime) -> None:
    log = own_bucket.node.base / "log"
    program = '#!/bin/sh\nshift 3\necho begin >>"$LOG"\nsleep 1\nunsquashfs "$@"\necho end >>"$LOG"\n'
    slow = with_unpacker(runtime, {"ld.so": program}).publish(own_bucket.store)
    own_bucket.node.environ |= {
        "LOG": str(log),
        "PATH": f"{os.defpath}:{Path(shutil.which('unsquashfs') or '').parent}",
    }
    with own_bucket.node.begin(slow.digest) as killed:
        wait_for(log.exists)
        killed.kill()
        assert own_bucket.node.start(slow.digest).is_started
    assert log.read_text().split() == ["begin", "end", "begin", "end"]


def test_a_start_that_waits_for_another_says_so(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    bucket.node.runtimes.mkdir(mode=0o700)
    lock = os.open(bucket.node.runtimes, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with bucket.node.begin(runtime.digest) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "runtime: waiting for another start on this machine\n"
        assert not bucket.faults.requests
        os.close(lock)
        out, err = process.communicate(timeout=60)
    assert "files are whole" in out
    assert err == ""


def test_a_crash_of_the_machine(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    """Files that the disk did not have yet are empty afterwards: the tree of an earlier boot is not executed."""
    root = bucket.node.start(runtime.digest).root
    used, program = root.parent / "used", root / "bin/python3"
    boot = used.read_text()
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text()
    for earlier in ("9c1f6c1e-0b7e-4c6b-8a55-000000000000\n", "", None):
        os.truncate(program, 0)
        used.unlink() if earlier is None else used.write_text(earlier)
        bucket.faults.requests.clear()
        assert bucket.node.start(runtime.digest).is_started
        assert len(bucket.faults.requests) == len(runtime.manifest.image.chunks) + 2
        assert used.read_text() == boot
    # On a volume that machines share, another one may run it.
    used.write_text("9c1f6c1e-0b7e-4c6b-8a55-000000000000\n")
    with used.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        bucket.faults.requests.clear()
        assert bucket.node.start(runtime.digest).is_started
    assert not bucket.faults.requests


def test_what_limited_the_unpacker(own_bucket: Bucket, runtime: ArtificialRuntime) -> None:
    program = '#!/bin/sh\nshift 3\nsleep 1\nunsquashfs "$@"\n'
    waits = with_unpacker(runtime, {"ld.so": program}).publish(own_bucket.store)
    own_bucket.node.environ["PATH"] = f"{os.defpath}:{Path(shutil.which('unsquashfs') or '').parent}"
    phases = json.loads(own_bucket.node.start(waits.digest).environ["COLDSTREAM_BOOTSTRAP"])["phases"]
    assert [(phase[0], phase[3]) for phase in phases[1:]] == [("unpack", "disk")]


@pytest.mark.parametrize("mode", ["unpack", pytest.param("mount", marks=MOUNT)])
def test_two_starts_at_once_share_a_download(bucket: Bucket, runtime: ArtificialRuntime, mode: str) -> None:
    bucket.node.environ["COLDSTREAM_RUNTIME_MODE"] = mode
    bucket.faults.on_request = lambda line: time.sleep(0.02)
    with bucket.node.begin(runtime.digest) as one, bucket.node.begin(runtime.digest) as other:
        outputs = [process.communicate(timeout=60) for process in (one, other)]
    unmount(bucket.node.runtimes / runtime.digest)
    assert all("files are whole" in out for out, _ in outputs), outputs
    assert len(bucket.faults.requests) == len(runtime.manifest.image.chunks) + (1 if mode == "mount" else 2)


@pytest.mark.parametrize("mode", ["unpack", pytest.param("mount", marks=MOUNT)])
def test_another_image_is_not_executed(
    own_bucket: Bucket, runtime: ArtificialRuntime, evil: ArtificialRuntime, mode: str
) -> None:
    own_bucket.node.environ["COLDSTREAM_RUNTIME_MODE"] = mode
    own_bucket.store.put(f"{runtime.folder}/image", evil.image.read_bytes())
    own_bucket.node.refused(runtime.digest, 13, "/image is not what was published: its SHA-256 differs")


def test_one_changed_byte_of_the_image(own_bucket: Bucket, runtime: ArtificialRuntime) -> None:
    data = bytearray(runtime.image.read_bytes())
    data[12_345_678] ^= 1
    own_bucket.store.put(f"{runtime.folder}/image", bytes(data))
    own_bucket.node.refused(runtime.digest, 13, "/image is not what was published")
    # What was verified is kept; the rest comes with the right image.
    own_bucket.store.put(f"{runtime.folder}/image", runtime.image.read_bytes())
    assert own_bucket.node.start(runtime.digest).is_started


@pytest.mark.parametrize("size", [0, 3_000_000, 19_999_999])
def test_a_shorter_image(own_bucket: Bucket, runtime: ArtificialRuntime, size: int) -> None:
    own_bucket.store.put(f"{runtime.folder}/image", runtime.image.read_bytes()[:size])
    own_bucket.node.refused(runtime.digest, 13, "/image is not what was published")


def test_another_unpacker(own_bucket: Bucket, runtime: ArtificialRuntime, evil: ArtificialRuntime) -> None:
    own_bucket.store.put(f"{runtime.folder}/unpacker", evil.unpacker)
    own_bucket.node.refused(runtime.digest, 13, "/unpacker is not what was published")


def test_another_manifest(own_bucket: Bucket, runtime: ArtificialRuntime, evil: ArtificialRuntime) -> None:
    """The runtime of someone else under the pinned digest, and another runtime's digest."""
    own_bucket.store.put(f"{runtime.folder}/image", evil.image.read_bytes())
    own_bucket.store.put(f"{runtime.folder}/unpacker", evil.unpacker)
    for manifest in (encode_manifest(evil.manifest), b""):
        own_bucket.store.put(f"{runtime.folder}/manifest.json", manifest)
        own_bucket.node.refused(runtime.digest, 13, "manifest.json is not what was published")


def test_a_digest_that_is_not_in_the_bucket(bucket: Bucket) -> None:
    bucket.node.refused("sha256:" + "0" * 64, 10, "does not exist", "coldstream runtime list")


def test_a_part_of_the_runtime_is_missing(own_bucket: Bucket, runtime: ArtificialRuntime) -> None:
    own_bucket.store.delete([f"{runtime.folder}/image"])
    own_bucket.node.refused(runtime.digest, 10, "/image does not exist")


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"machine": "sparc64"}, f"the runtime needs machine sparc64, and this machine has {os.uname().machine}"),
        ({"glibc": "2.999"}, "the runtime needs glibc 2.999, and this machine has "),
        ({"cuda": "13.0", "driver": "99999.1"}, "the runtime needs driver 99999.1, and this machine has "),
    ],
)
def test_another_machine(bucket: Bucket, runtime: ArtificialRuntime, needs: dict[str, str], words: str) -> None:
    other = runtime.needing(**needs)
    bucket.store.put(f"{other.folder}/manifest.json", encode_manifest(other.manifest))
    requests = len(bucket.faults.requests)
    bucket.node.refused(other.digest, 2, words)
    assert len(bucket.faults.requests) == requests + 1


def test_no_room(bucket: Bucket, runtime: ArtificialRuntime, tmp_path: Path) -> None:
    """It says how much is needed before anything but the manifest is downloaded."""
    program = changed_bootstrap(tmp_path / "start.py", DISK, "(5 << 30)")
    huge = runtime.needing(unpacked=500 << 40 >> 10)
    bucket.store.put(f"{huge.folder}/manifest.json", encode_manifest(huge.manifest))
    need = huge.manifest.image.size + huge.manifest.image.unpacked + (64 << 20) >> 20
    words = f"the runtime needs {need} MiB: ", "has 5120 MiB (COLDSTREAM_RUNTIME_DIR chooses)"
    bucket.node.refused(huge.digest, 1, *words, program=program)
    assert len(bucket.faults.requests) == 1


@MOUNT
def test_a_place_from_which_nothing_is_executed(bucket: Bucket, runtime: ArtificialRuntime, tmp_path: Path) -> None:
    place = tmp_path / "noexec"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,size=200m", "tmpfs", place], check=False).returncode:
        pytest.skip("this machine does not mount")
    try:
        bucket.node.environ["COLDSTREAM_RUNTIME_DIR"] = str(place)
        bucket.node.refused(runtime.digest, 1, f"{place}/coldstream-runtimes-0 is mounted noexec")
        assert len(bucket.faults.requests) == 1
        # The image is executed from its own mount.
        del bucket.node.environ["COLDSTREAM_RUNTIME_MODE"]
        assert bucket.node.start(runtime.digest).is_started
    finally:
        subprocess.run(["umount", "-R", place], check=False, capture_output=True)
        subprocess.run(["umount", "-R", place], check=False, capture_output=True)


def test_folders_of_others(bucket: Bucket, runtime: ArtificialRuntime, evil: ArtificialRuntime) -> None:
    """Anyone may write to /tmp: a planted folder, or a link to one, is not used, whatever is in it."""
    node = bucket.node
    planted = node.base / "planted" / runtime.digest / "tree/bin"
    planted.mkdir(parents=True)
    (planted / "python3").write_text('#!/bin/sh\ntouch "$SENTINEL"\n')
    (planted / "python3").chmod(0o755)
    node.runtimes.symlink_to(node.base / "planted")
    node.refused(runtime.digest, 1, f"{node.runtimes} belongs to others")
    node.runtimes.unlink()
    (node.base / "planted").rename(node.runtimes)
    for mode in (0o777, 0o770, 0o720, 0o702, 0o755, 0o701):
        node.runtimes.chmod(mode)
        node.refused(runtime.digest, 1, f"{node.runtimes} belongs to others")
    node.runtimes.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(node.runtimes, UID, 0)
        node.refused(runtime.digest, 1, f"{node.runtimes} belongs to others")
    shutil.rmtree(node.runtimes)
    node.runtimes.write_text("a file")
    node.refused(runtime.digest, 1, f"{node.runtimes} File exists")


@pytest.mark.parametrize(
    ("setting", "value", "code", "words"),
    [
        ("R2_BUCKET", "", 2, "no bucket is configured"),
        ("COLDSTREAM_STORE", "file:///models", 2, "no bucket is configured"),
        ("R2_ENDPOINT", "account.r2.example.com", 2, "the endpoint is not a URL"),
        ("R2_ENDPOINT", "http://127.0.0.1:port", 2, "is wrong: "),
        ("COLDSTREAM_RETRY_SECONDS", "3m", 2, "COLDSTREAM_RETRY_SECONDS is wrong"),
        ("R2_SECRET_KEY", "", 12, "no keys for the bucket"),
        ("R2_SECRET_KEY", "hidden\nkey", 12, "no keys for the bucket, or they have spaces"),
        ("R2_ACCESS_KEY", "hidden key", 12, "no keys for the bucket, or they have spaces"),
        ("R2_SESSION_TOKEN", "hidden\r\nX-Header: 1", 12, "no keys for the bucket, or they have spaces"),
        ("AWS_REGION", "auto\nX-Header: 1", 2, "the endpoint is not a URL"),
        ("R2_ENDPOINT", "ftp://127.0.0.1", 2, "the endpoint is not a URL"),
        ("http_proxy", "http://127.0.0.1:port", 2, "is wrong: "),
        ("COLDSTREAM_RUNTIME_DIR", "/proc/a\n\x1b[31m", 1, r"/proc/a\n\x1b[31m/coldstream-runtimes-"),
        ("R2_ENDPOINT", "http://127.0.0.1:9", 1, "127.0.0.1:9 cannot be read: "),
        ("R2_ENDPOINT", "http://user:hidden@127.0.0.1:9", 1, "127.0.0.1:9 cannot be read: "),
    ],
)
def test_settings(bucket: Bucket, runtime: ArtificialRuntime, setting: str, value: str, code: int, words: str) -> None:
    bucket.node.environ |= {setting: value, "COLDSTREAM_RETRY_SECONDS": value if "RETRY" in setting else "0"}
    assert "hidden" not in bucket.node.refused(runtime.digest, code, words)


def test_folders_on_the_way_belong_to_the_user_alone(
    bucket: Bucket, runtime: ArtificialRuntime, tmp_path: Path
) -> None:
    """Whatever the umask is, which coldstream then has again."""
    bucket.node.environ["COLDSTREAM_RUNTIME_DIR"] = str(tmp_path / "a/b")
    ended = bucket.node.start(runtime.digest, umask=0)
    assert ended.is_started
    assert "\numask 0000\n" in ended.out
    for folder in ended.root.parents:
        if folder == tmp_path:
            break
        assert folder.stat().st_mode & 0o77 == 0, folder


@AS_ROOT
def test_no_permission_to_write(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    base = Path(tempfile.mkdtemp(prefix="coldstream-pod-"))
    try:
        base.chmod(0o755)
        program = shutil.copy(BOOTSTRAP, base / "start.py")
        bucket.node.environ["COLDSTREAM_RUNTIME_DIR"] = str(base)
        words = f"MiB: {base}/coldstream-runtimes-{UID} Permission denied (COLDSTREAM_RUNTIME_DIR chooses)"
        bucket.node.refused(runtime.digest, 1, words, user=UID, group=0, extra_groups=[], program=program)
    finally:
        shutil.rmtree(base)


def test_a_disk_that_refuses_the_image(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    """As with a quota."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))

    bucket.node.refused(runtime.digest, 1, "File too large (see COLDSTREAM_RUNTIME_DIR)", preexec_fn=limit)


def test_a_missing_file_of_certificates(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    bucket.node.environ |= {"R2_ENDPOINT": "https://127.0.0.1:9", "AWS_CA_BUNDLE": "/nonexistent.pem"}
    bucket.node.refused(runtime.digest, 2, "AWS_CA_BUNDLE", "No such file")


@pytest.mark.parametrize("digest", ["76496d0e", "sha256:", "sha256:" + "A" * 64, "", "../../" + "0" * 64])
def test_a_digest_has_to_be_whole(bucket: Bucket, digest: str) -> None:
    bucket.node.refused(digest, 2, "usage: bootstrap.py sha256:DIGEST")
    assert not bucket.faults.requests


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", "they have expired"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
        (403, "AccessDenied", "HTTP 403 AccessDenied"),
    ],
)
def test_keys_that_end_in_the_middle(
    bucket: Bucket, runtime: ArtificialRuntime, status: int, code: str, words: str
) -> None:
    seen = []

    def on_request(line: str) -> None:
        seen.append(line)
        if len(seen) == 8:
            bucket.faults.add("fail", times=1000, status=status, code=code)

    bucket.faults.on_request = on_request
    bucket.node.refused(runtime.digest, 12, "the keys may not read s3://", words)
    bucket.faults.pending.clear()
    bucket.faults.on_request = None
    assert bucket.node.start(runtime.digest).is_started


def test_a_store_with_passing_faults(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    """503s, cut connections, lost answers and a page in the place of bytes."""
    bucket.faults.add("fail", times=2)
    bucket.faults.add("fail", times=2, status=429)
    bucket.faults.add("cut_response", times=4, after_bytes=1000)
    bucket.faults.add("lose_answer", times=2)
    bucket.faults.add("page", "image", times=1, text="<html>please log in</html>")
    bucket.node.environ["COLDSTREAM_RETRY_SECONDS"] = "20"
    assert bucket.node.start(runtime.digest).is_started
    assert sum(fault.left for fault in bucket.faults.pending) == 0


def test_a_store_that_cuts_every_answer(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    """A cut is a fault of the network, not of the runtime's integrity."""
    bucket.faults.add("cut_response", "image", times=1000, after_bytes=1000)
    bucket.node.environ["COLDSTREAM_RETRY_SECONDS"] = "1"
    bucket.node.refused(runtime.digest, 1, "cannot be read: ")


def test_a_store_that_ignores_ranges(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    bucket.faults.drop_range = True
    bucket.node.refused(runtime.digest, 13, "/image is not what was published")


def test_a_slow_last_chunk_is_overtaken(bucket: Bucket, runtime: ArtificialRuntime, tmp_path: Path) -> None:
    """Long before the request that does not end has timed out."""
    program = changed_bootstrap(tmp_path / "start.py", "timeout=20", "timeout=600")
    slow, over = threading.Event(), threading.Event()

    def on_request(line: str) -> None:
        if line.endswith("/image") and not slow.is_set():
            slow.set()
            over.wait(120)

    bucket.faults.on_request = on_request
    try:
        assert bucket.node.start(runtime.digest, program=program).is_started
    finally:
        over.set()
    assert len(bucket.faults.requests) >= len(runtime.manifest.image.chunks) + 3


def test_through_a_proxy(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    with HttpProxy(credentials="user:password") as proxy:
        bucket.node.environ["http_proxy"] = proxy.url
        assert bucket.node.start(runtime.digest).is_started
        assert len(proxy.lines) >= len(runtime.manifest.image.chunks)
        bucket.node.environ["no_proxy"] = "127.0.0.1"
        shutil.rmtree(bucket.node.runtimes)
        lines = len(proxy.lines)
        assert bucket.node.start(runtime.digest).is_started
        assert len(proxy.lines) == lines


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_https_with_an_own_authority(
    moto: S3Server, published: tuple[str, Store], runtime: ArtificialRuntime, tmp_path: Path, variable: str
) -> None:
    authority = make_certificate(tmp_path)
    pem = tmp_path / "both.pem"
    pem.write_text((tmp_path / "server.pem").read_text() + (tmp_path / "server.key").read_text())
    with fault_proxy(moto, tls=pem) as (server, _), HttpProxy() as proxy:
        node = BareNode(tmp_path, server.environ(published[0]))
        node.refused(runtime.digest, 1, urlsplit(server.endpoint).netloc, "SSL_CERT_FILE", "clock")
        node.environ[variable] = str(authority)
        assert node.start(runtime.digest).is_started
        shutil.rmtree(node.runtimes)
        node.environ["https_proxy"] = proxy.url
        assert node.start(runtime.digest).is_started
        assert any(line.startswith("CONNECT ") for line in proxy.lines)


@AS_ROOT
def test_a_user_id_without_a_name(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    """An arbitrary uid with gid 0, without HOME, in a folder that the kubelet made."""
    base = Path(tempfile.mkdtemp(prefix="coldstream-pod-"))
    try:
        base.chmod(0o2777)
        program = base / "start.py"
        shutil.copy(BOOTSTRAP, program)
        node = BareNode(base, bucket.node.environ)
        node.environ |= {"COLDSTREAM_RUNTIME_DIR": str(base), "SENTINEL": str(base / "SENTINEL")}
        options = {"user": UID, "group": 0, "extra_groups": [], "program": str(program)}
        ended = node.start(runtime.digest, **options)
        assert ended.is_started, ended
        folder = base / f"coldstream-runtimes-{UID}"
        assert ended.root == folder / runtime.digest / "tree"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert ended.environ["HOME"] == str(ended.root.parent)
        assert ended.environ["USER"] == "coldstream"
        # The home `/`, and nowhere to write but in the folder.
        node.environ["HOME"] = "/"
        assert node.start(runtime.digest, **options).environ["HOME"] == str(ended.root.parent)
    finally:
        shutil.rmtree(base)


@AS_ROOT
def test_the_usual_places_of_a_user_id_without_a_home(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    uid = UID + os.getpid() % 1000
    base = Path(tempfile.mkdtemp(prefix="coldstream-pod-"))
    try:
        base.chmod(0o777)
        program = changed_bootstrap(base / "start.py", DISK, "(5 << 30)")
        huge = runtime.needing(unpacked=500 << 40 >> 10)
        bucket.store.put(f"{huge.folder}/manifest.json", encode_manifest(huge.manifest))
        del bucket.node.environ["COLDSTREAM_RUNTIME_DIR"]
        message = bucket.node.refused(
            huge.digest, 1, user=uid, group=0, extra_groups=[], program=program, cwd=str(base)
        )
        for place in ("/dev/shm", "/var/tmp", "/tmp"):
            assert f"{place}/coldstream-runtimes-{uid}" in message
        assert list(base.iterdir()) == [Path(program)]
        # A cache in one of them is one folder with two names, locked once.
        for cache in ("/var/tmp/", str(base)):
            bucket.node.environ["COLDSTREAM_CACHE_DIR"] = cache
            message = bucket.node.refused(
                huge.digest, 1, user=uid, group=0, extra_groups=[], program=program, cwd=str(base)
            )
        assert f"{base}/coldstream-runtimes-{uid}" in message
    finally:
        shutil.rmtree(base)
        for place in ("/dev/shm", "/var/tmp", "/tmp"):
            shutil.rmtree(f"{place}/coldstream-runtimes-{uid}", ignore_errors=True)


def test_memory(runtime: ArtificialRuntime, tmp_path: Path) -> None:
    """At most 256 MiB with 40 chunks of 4 MiB on their way, and for the unpacker likewise."""
    large = artificial_runtime(tmp_path / "large", size=170 << 20)
    chunk = 4 << 20
    data = large.image.read_bytes()
    image = replace_struct(large.manifest.image, chunk_bytes=chunk, chunks=hashes(data, chunk))
    large = ArtificialRuntime(
        manifest=replace_struct(large.manifest, image=image), image=large.image, unpacker=large.unpacker
    )
    large.publish(quick_store({"COLDSTREAM_STORE": (tmp_path / "root/models").as_uri()}))
    with nginx(tmp_path / "root") as server:
        keys = {"R2_ACCESS_KEY": "key", "R2_SECRET_KEY": "secret", "R2_BUCKET": "models", "R2_ENDPOINT": server.url}
        node = BareNode(tmp_path / "node", keys)
        program = (
            "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
            "print('KiB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
        )
        done = subprocess.run(
            [node.python, "-c", program, node.python, str(BOOTSTRAP), large.digest, "serve", "org/m"],
            env=node.environ,
            capture_output=True,
            text=True,
            check=True,
        )
    assert "files are whole" in done.stdout
    assert int(done.stdout.split()[-1]) < 256 << 10, done.stdout.splitlines()[-1]


def test_secrets_are_not_in_the_arguments(bucket: Bucket, runtime: ArtificialRuntime) -> None:
    bucket.node.environ["R2_SESSION_TOKEN"] = "a-session-token"
    lines = []

    def on_request(line: str) -> None:
        lines.append(line)
        time.sleep(0.01)

    bucket.faults.on_request = on_request
    with bucket.node.begin(runtime.digest) as process:
        seen = set()
        while process.poll() is None:
            seen |= set(Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"))
        process.communicate()
    for secret in (bucket.node.environ["R2_SECRET_KEY"], "a-session-token"):
        assert not any(secret.encode() in argument for argument in seen)
        assert not any(secret in line for line in lines)
    assert runtime.digest.encode() in seen


def loop_devices(folder: Path) -> list[str]:
    """The names of the loop devices whose files lie in a folder."""
    names = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(f"{folder}/"):
                names.append(path.parts[3])
    return names


def unmount(folder: Path) -> None:
    """Unmounts a runtime, if its image is mounted: at once, or when the last child of a killed start has ended."""
    point = folder / "mount"
    wait_for(lambda: not point.is_mount() or subprocess.run(["umount", point], check=False).returncode == 0)


def damage(path: Path, *, at: int) -> None:
    """Changes a byte."""
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([(byte or b"\0")[0] ^ 0xFF]), at)


def hashes(data: bytes, chunk_bytes: int) -> list[str]:
    """The SHA-256 of each chunk."""
    return [hashlib.sha256(data[start : start + chunk_bytes]).hexdigest() for start in range(0, len(data), chunk_bytes)]


def with_unpacker(runtime: ArtificialRuntime, files: dict[str, str]) -> ArtificialRuntime:
    """A runtime with another unpacker."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o755
            archive.addfile(info, BytesIO(text.encode()))
    tool = buffer.getvalue()
    unpacker = Unpacker(size=len(tool), sha256=hashlib.sha256(tool).hexdigest())
    manifest: RuntimeManifest = replace_struct(runtime.manifest, unpacker=unpacker)
    return ArtificialRuntime(manifest=manifest, image=runtime.image, unpacker=tool)


def wait_for(condition: Callable[[], object]) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
