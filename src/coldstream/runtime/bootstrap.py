#!/usr/bin/env python3
"""Starts coldstream on a machine that has Python 3.8, keys for the bucket, and nothing else.

    python3 -I bootstrap.py sha256:DIGEST serve org/model [flags] [-- vLLM's flags]

DIGEST is the SHA-256 of the runtime's manifest, which has those of the unpacker and of the image's chunks: nothing runs
that the author of the command did not choose. The image is mounted or unpacked, and executed in this process's place.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import io
import json
import os
import platform
import re
import shutil
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from http import client
from typing import Any, Iterator
from urllib import parse, request

CONNECTIONS = 40  # R2 and S3 give each 20 to 70 MB/s; each holds a chunk of 4 MiB


class StartError(Exception):
    """Ends the start with one of coldstream's exit codes (docs/exit-codes.md) and a message."""


def setting(*names: str) -> str:
    return next((os.environ[name].strip() for name in names if os.environ.get(name, "").strip()), "")


def content(path: str) -> str:
    with contextlib.suppress(OSError), open(path) as file:
        return file.read()
    return ""


def first(pattern: str, text: str, default: str = "") -> str:
    match = re.search(pattern, text)
    return match[1] if match else default


class BucketClient:
    """Signed, verified GETs from the store that coldstream's own settings name; tried again for a while."""

    def __init__(self) -> None:
        store = setting("COLDSTREAM_STORE") or "s3://" + setting("R2_BUCKET")
        if not re.match("s3://.", store):
            raise StartError(2, "no bucket is configured: set R2_BUCKET, or COLDSTREAM_STORE=s3://bucket")
        self.root, region = f"{store[5:].strip('/')}/.coldstream/runtimes", setting("AWS_REGION", "AWS_DEFAULT_REGION")
        endpoint = setting("R2_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        self.region = region or ("auto" if "r2.cloudflarestorage" in endpoint else "us-east-1")
        self.url = parse.urlsplit(endpoint or f"https://s3.{self.region}.amazonaws.com")
        r2 = setting("R2_ACCESS_KEY"), setting("R2_SECRET_KEY"), setting("R2_SESSION_TOKEN")
        aws = setting("AWS_ACCESS_KEY_ID"), setting("AWS_SECRET_ACCESS_KEY"), setting("AWS_SESSION_TOKEN")
        self.key, self.secret, token = r2 if r2[0] else aws
        if not all(re.fullmatch("[!-~]+", key) for key in (self.key, self.secret, token or "none")):
            raise StartError(12, "no keys for the bucket, or they have spaces: set R2_ACCESS_KEY and R2_SECRET_KEY")
        self.session = {"x-amz-security-token": token} if token else {}
        self.host, self.netloc = self.url.hostname or "", self.url.netloc.rpartition("@")[2]
        proxy = "" if request.proxy_bypass(self.host) else request.getproxies().get(self.url.scheme, "")
        self.proxy = parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}") if proxy else None
        user = parse.unquote(self.proxy.netloc.rpartition("@")[0] if self.proxy else "").encode()
        self.proxy_keys = {"proxy-authorization": f"Basic {base64.b64encode(user).decode()}"} if user else {}
        is_https, self.connections = self.url.scheme == "https", {}  # type: bool, dict[int, client.HTTPConnection]
        self.prefix = f"http://{self.netloc}" if self.proxy and not is_https else ""
        if not self.host or not re.fullmatch("https?://[!-~]+", f"{self.url.scheme}://{self.netloc}{self.region}"):
            raise StartError(2, "the endpoint is not a URL: R2_ENDPOINT=https://ACCOUNT.r2.cloudflarestorage.com")
        try:
            self.port = self.url.port or (443 if is_https else 80)
            self.server = (self.proxy.hostname or "", self.proxy.port or 80) if self.proxy else (self.host, self.port)
            self.patience = float(setting("COLDSTREAM_RETRY_SECONDS") or 180)
            self.tls = ssl.create_default_context(cafile=setting("AWS_CA_BUNDLE") or None) if is_https else None
        except (ValueError, OSError) as exc:
            raise StartError(2, f"the endpoint, AWS_CA_BUNDLE or COLDSTREAM_RETRY_SECONDS is wrong: {exc}") from None

    def connect(self) -> client.HTTPConnection:
        if not self.tls:
            return client.HTTPConnection(*self.server, timeout=20)
        connection = client.HTTPSConnection(*self.server, timeout=20, context=self.tls)
        if self.proxy:
            connection.set_tunnel(self.host, self.port, self.proxy_keys)
        return connection

    def get(self, name: str, span: tuple[int, int] | None) -> bytes:
        path = parse.quote(f"/{self.root}/{name}")
        now, empty = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), hashlib.sha256().hexdigest()  # AWS signature 4
        headers = {"host": self.netloc, "x-amz-content-sha256": empty, "x-amz-date": now, **self.session}
        names, lines = ";".join(sorted(headers)), "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = f"GET\n{path}\n\n{lines}\n{names}\n{empty}"
        scope, key = f"{now[:8]}/{self.region}/s3/aws4_request", f"AWS4{self.secret}".encode()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        for part in [*scope.split("/"), text]:
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        credential = f"Credential={self.key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        headers.update({"authorization": f"AWS4-HMAC-SHA256 {credential}"}, **(self.proxy_keys if self.prefix else {}))
        headers.update({"range": f"bytes={span[0]}-{span[1] - 1}"} if span else {})
        connection = self.connections.setdefault(threading.get_ident(), self.connect())
        connection.request("GET", f"{self.prefix}{path}", headers=headers)
        response, size_max = connection.getresponse(), span[1] - span[0] if span else 64 << 20
        body = response.read(size_max)
        if len(body) < size_max and response.length:
            raise OSError("the connection was cut")
        if response.status in (200, 206, 416):  # 416: the object is smaller than what was published
            return body
        code = first(r"<Code>(\w{1,64})</Code>", body[:4096].decode("utf-8", "replace"))
        if response.status in (429, 500, 502, 503, 504) or code == "RequestTimeout":
            raise OSError(f"HTTP {response.status} {code}")
        if response.status == 404:
            raise StartError(10, f"s3:/{path} does not exist; see: coldstream runtime list")
        known = {"RequestTimeTooSkewed": "this machine's clock is wrong", "ExpiredToken": "they have expired"}
        raise StartError(12, f"the keys may not read s3:/{path}: {known.get(code, f'HTTP {response.status} {code}')}")

    def fetch(self, name: str, sha256: str, span: tuple[int, int] | None = None) -> bytes:
        begin, patience = time.monotonic(), self.patience
        while True:
            try:
                data = self.get(name, span)
                if hashlib.sha256(data).hexdigest() == sha256:
                    return data
                error = StartError(13, f"s3://{self.root}/{name} is not what was published: its SHA-256 differs")
                patience = min(patience, 5)  # it may have been damaged on the way
            except ssl.SSLCertVerificationError as exc:
                raise StartError(1, f"{self.netloc}: {exc.verify_message} (SSL_CERT_FILE, or the clock?)") from None
            except (OSError, client.HTTPException) as exc:
                error = StartError(1, f"{self.netloc} cannot be read: {str(exc) or type(exc).__name__}")
            self.connections.pop(threading.get_ident(), None)  # the next request makes another
            if time.monotonic() - begin > patience:
                raise error
            time.sleep(min(5, 0.2 + (time.monotonic() - begin) / 4))


def download(bucket: BucketClient, name: str, image: dict[str, Any], file: int) -> str:
    """Brings an image over many connections; what an interrupted start has brought is kept. Returns what limited it."""
    is_resumed, size, seconds = os.fstat(file).st_blocks, image["chunk_bytes"], {"link": 0.0, "disk": 0.0}

    def bring(index: int) -> int:
        start, sha256, begin = index * size, image["chunks"][index], time.monotonic()
        if not is_resumed or hashlib.sha256(os.pread(file, size, start)).hexdigest() != sha256:
            data, read = bucket.fetch(name, sha256, (start, min(start + size, image["size"]))), time.monotonic()
            if os.pwrite(file, data, start) < len(data):
                raise OSError("No space left for the runtime")
            seconds["link"] += read - begin
            seconds["disk"] += time.monotonic() - read
        return index

    begin = shown = time.monotonic()
    left, cpu, pool = set(range(len(image["chunks"]))), time.process_time(), ThreadPoolExecutor(CONNECTIONS)
    running = {pool.submit(bring, index) for index in sorted(left)}
    while left:
        done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        left -= {future.result() for future in done}
        if not done and len(running) == len(left) < CONNECTIONS:  # the last ones are slow: they may be overtaken, once
            running |= {pool.submit(bring, index) for index in left}
        if left and time.monotonic() - shown > (1 if sys.stderr.isatty() else 5):
            shown = time.monotonic()
            print(f"runtime: {1 - len(left) / len(image['chunks']):.0%} of {image['size'] >> 20} MiB", file=sys.stderr)
    share = (time.process_time() - cpu) / (time.monotonic() - begin) / len(os.sched_getaffinity(0))
    return "processor" if share > 0.8 else max(seconds, key=lambda what: seconds[what])


def check_platform(needs: dict[str, str]) -> None:
    driver = first(r" (\d+\.[\d.]+) ", content("/proc/driver/nvidia/version"), "none")
    for what, own in (("machine", os.uname().machine), ("glibc", platform.libc_ver()[1] or "none"), ("driver", driver)):
        has, least = ([int(part) for part in re.findall(r"\d+", text)] for text in (own, needs[what] or ""))
        if own != needs[what] if what == "machine" else has < least:
            raise StartError(2, f"the runtime needs {what} {needs[what]}, and this machine has {own}")


def places(digest: str, need: int = 0, *, is_executed: bool = False) -> Iterator[tuple[str, str]]:
    """Where a runtime may lie, the fastest first: folders that no one else can enter, and why each cannot be used."""
    memory = int(first(r"MemAvailable:\s*(\d+)", content("/proc/meminfo"), "0")) << 10
    limit, used = content("/sys/fs/cgroup/memory.max").strip(), content("/sys/fs/cgroup/memory.current")
    memory = min(memory, int(limit) - int(used)) if limit.isdigit() else memory
    cache = setting("COLDSTREAM_CACHE_DIR") or f"{setting('XDG_CACHE_HOME') or '~/.cache'}/coldstream"
    cache = re.sub("^~.*", "/tmp", os.path.expanduser(cache))  # a user id without a name has no home
    for base in [chosen] if (chosen := setting("COLDSTREAM_RUNTIME_DIR")) else ["/dev/shm", cache, "/var/tmp", "/tmp"]:
        folder = os.path.abspath(os.path.join(base, f"coldstream-runtimes-{os.geteuid()}"))
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            info, disk, image = os.lstat(folder), os.statvfs(folder), os.path.join(folder, digest, "image")
            room = disk.f_bavail * disk.f_frsize + (os.stat(image).st_blocks * 512 if os.path.exists(image) else 0)
            room = min(room, memory // 3) if folder.startswith("/dev/shm/") else room  # the model needs memory, too
            is_refused = is_executed and disk.f_flag & os.ST_NOEXEC
            fault = f"has {room >> 20} MiB" if room < need else "is mounted noexec" if is_refused else ""
            is_ours = info.st_uid == os.geteuid() and info.st_mode & 0o170077 == 0o40000
            yield folder, fault if is_ours else "belongs to others, or is open to them"
        except OSError as exc:
            yield folder, exc.strerror or str(exc)


def attach(file: int, tries: int = 8) -> io.FileIO | None:
    """A loop device that ends with its last user. Linux first writes what the file has to the disk: attach it empty."""
    with contextlib.suppress(OSError), io.FileIO("/dev/loop-control") as control:
        device = io.FileIO(f"/dev/loop{fcntl.ioctl(control, 0x4C82)}")  # LOOP_CTL_GET_FREE
        fcntl.ioctl(device, 0x4C0A, struct.pack("2I52xI240x", file, 0, 5))  # LOOP_CONFIGURE: read-only, autoclear
        return device
    return attach(file, tries - 1) if tries else None  # another program may have taken the free device


def provide(digest: str, folders: list[str], locks: list[int], phases: list[list[Any]], *, is_mounted: bool) -> str:
    """The root of the runtime, brought here unless an earlier start did."""
    for folder in (os.path.join(parent, digest) for parent in folders):
        if os.path.isdir(f"{folder}/tree"):
            with contextlib.suppress(BlockingIOError), open(f"{folder}/used", "a") as used:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or it runs, perhaps on another machine
                if content(used.name) != content("/proc/sys/kernel/random/boot_id"):  # a crash may have emptied files
                    shutil.rmtree(f"{folder}/tree")
        if os.path.isdir(f"{folder}/tree") or os.path.ismount(f"{folder}/mount"):
            return f"{folder}/tree" if os.path.isdir(f"{folder}/tree") else f"{folder}/mount"
        shutil.rmtree(f"{folder}/tree.part", ignore_errors=True)
    bucket = BucketClient()
    manifest = json.loads(bucket.fetch(f"{digest}/manifest.json", digest))
    check_platform(manifest["platform"])
    began, image = time.time(), manifest["image"]
    need = image["size"] + (0 if is_mounted else image["unpacked"]) + (64 << 20)
    tried = list(places(digest, need, is_executed=not is_mounted))
    folder, faults = next((parent for parent, fault in tried if not fault), ""), "; ".join(map(" ".join, tried))
    if not folder:
        raise StartError(1, f"the runtime needs {need >> 20} MiB: {faults} (COLDSTREAM_RUNTIME_DIR chooses)")
    path, point, tree, tool = (f"{folder}/{digest}/{name}" for name in ("image", "mount", "tree", "unpacker"))
    os.makedirs(point, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file, image["size"])
    device = attach(file) if is_mounted else None
    limit, fetched = download(bucket, f"{digest}/image", image, file), time.time()
    phases.append(["fetch", began, fetched, limit])
    if device:
        fcntl.ioctl(device, 0x1261)  # BLKFLSBUF: forget what was read while it was empty
    source = [device.name] if device else ["-o", "loop", path]
    if is_mounted and subprocess.call(["mount", "-o", "ro,nosuid,nodev", *source, point], pass_fds=locks):
        return provide(digest, folders, locks, phases, is_mounted=False)  # perhaps where there is more room
    if not is_mounted:
        unpacker = bucket.fetch(f"{digest}/unpacker", manifest["unpacker"]["sha256"])
        with tarfile.open(fileobj=io.BytesIO(unpacker)) as archive:
            archive.extraction_filter = lambda member, _: member  # of what was published
            archive.extractall(tool)
        flags = ("-q", "-n", "-f", "-no-xattrs", "-da", "8", "-fr", "8")  # by default, its queues take 512 MiB
        program = (f"{tool}/ld.so", "--library-path", tool, f"{tool}/unsquashfs", *flags)
        if subprocess.call([*program, "-d", f"{tree}.part", path], stdout=subprocess.DEVNULL, pass_fds=locks):
            raise StartError(1, f"the runtime cannot be unpacked to {tree} (see COLDSTREAM_RUNTIME_DIR)")
        os.rename(f"{tree}.part", tree)
        os.unlink(path)
    limit = "disk" if sum(os.times()[2:4]) < (time.time() - fetched) / 2 else "processor"  # the programs waited, or not
    phases.append(["mount" if is_mounted else "unpack", fetched, time.time(), limit])
    return point if is_mounted else tree


def main(arguments: list[str]) -> None:
    began, umask, phases = time.time(), os.umask(0o077), []  # type: float, int, list[list[Any]]
    digest = first("^(?:sha256:)?([0-9a-f]{64})$", arguments[0] if len(arguments) > 1 else "")
    if not digest:
        raise StartError(2, "usage: bootstrap.py sha256:DIGEST serve MODEL ...")
    # One start at a time brings a runtime. If it is killed, its programs hold the locks. Two places may be one folder.
    folders = dict(sorted((os.stat(folder)[1:3], folder) for folder, fault in places(digest) if not fault))
    locks = [os.open(folder, os.O_RDONLY) for folder in folders.values()]
    (notice := threading.Timer(1, os.write, [2, b"runtime: waiting for another start on this machine\n"])).start()
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    notice.cancel()
    mount = setting("COLDSTREAM_RUNTIME_MODE") != "unpack" and os.access("/dev/loop-control", os.W_OK)
    root = provide(digest, [*folders.values()], locks, phases, is_mounted=mount and shutil.which("mount") is not None)
    used = os.open(f"{os.path.dirname(root)}/used", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(used, content("/proc/sys/kernel/random/boot_id").encode())
    fcntl.flock(used, fcntl.LOCK_SH)  # while coldstream runs, `coldstream cache prune` leaves the runtime
    fcntl.fcntl(used, fcntl.F_SETFD, 0)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environ["COLDSTREAM_BOOTSTRAP"] = json.dumps({"began": began, "phases": phases})
    environ["LD_LIBRARY_PATH"] = f"{root}/lib:{root}/lib/system:{setting('LD_LIBRARY_PATH')}".rstrip(":")
    environ["PATH"] = f"{root}/bin:{os.environ.get('PATH', os.defpath)}"
    environ.setdefault("USER", "coldstream")  # a user id without a name has none
    environ["HOME"] = os.path.expanduser("~") if os.access(os.path.expanduser("~"), os.W_OK) else os.path.dirname(root)
    python = f"{root}/bin/python3" if os.path.exists(f"{root}/bin/python3") else sys.executable
    os.umask(umask)
    os.execve(python, [python, "-s", f"{root}/bin/coldstream", *arguments[1:]], environ)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        os._exit(130)
    except (StartError, OSError) as exc:
        code, message = exc.args if isinstance(exc, StartError) else (1, f"{exc} (see COLDSTREAM_RUNTIME_DIR)")
        os.write(2, b"error: %s\n" % str(message).encode("unicode_escape"))  # a server's answer may be in it
        os._exit(code)  # at once: threads may be waiting for the bucket
