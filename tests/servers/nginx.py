"""Debian's nginx on loopback, serving a folder: plain and, with a self-made authority, over TLS.

The ports come from the kernel: the sockets are bound here and nginx inherits them (its `NGINX` variable, made for
binary upgrades), so no port is guessed and nothing can take it in between. The server runs in the foreground, from a
folder of its own, and ends with its context or with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Not on an ordinary user's PATH on Debian.
_PROGRAM = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")

_CONFIG = """
daemon off;
{user}
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_rlimit_nofile 4096;
events {{ worker_connections 2048; }}
http {{
    log_format plain '$status $request_method $uri $http_range';
    access_log {access_log};
    default_type application/octet-stream;
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile {sendfile};
    sendfile_max_chunk {send_bytes};
    tcp_nopush on;
    output_buffers 2 512k;
    open_file_cache max=1000;
    keepalive_requests {keepalive_requests};
    keepalive_timeout 75s;
    limit_rate {limit_rate};
    {http}
    server {{
        listen {host}:{port};
        {tls}
        root {root};
        location = /nginx-ready {{ access_log off; return 204; }}
        {extra}
    }}
}}
"""

_TLS = """
        listen {host}:{port} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:4m;
        {ciphers}
"""

# What object stores pick where the client leaves the choice, and the cheaper one: every client gets the same cipher.
_AES_128 = """
        ssl_prefer_server_ciphers on;
        ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
"""


@dataclass(frozen=True)
class Nginx:
    """A running server.

    Attributes:
        url: `http://host:port`.
        tls_url: `https://host:port`, or None without TLS.
        authority: The PEM file of the authority that signed its certificate, or None without TLS.
        folder: Where its configuration and logs are, for as long as it runs.
        pid: Of its master process.
    """

    url: str
    tls_url: str | None
    authority: Path | None
    folder: Path
    pid: int

    def log(self) -> str:
        """What it wrote to its error log."""
        try:
            return (self.folder / "error.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""


def find() -> str | None:
    """The path of nginx, or None where it is not installed."""
    return _PROGRAM


def require() -> str:
    """The path of nginx; skips the calling test without it."""
    if _PROGRAM is None:
        import pytest

        pytest.skip("nginx is not installed (apt-get install nginx)")
    return _PROGRAM


def version() -> str:
    """nginx's version, as "1.22.1"."""
    done = subprocess.run([require(), "-v"], capture_output=True, text=True, check=True)
    return done.stderr.strip().rpartition("/")[2]


@contextmanager
def nginx(
    root: Path,
    *,
    tls: bool = False,
    workers: int = 2,
    limit_rate: int = 0,
    keepalive_requests: int = 1_000_000,
    sendfile: bool = True,
    send_bytes: int = 2 << 20,
    host: str = "127.0.0.1",
    aes_128: bool = False,
    access_log: bool = False,
    extra: str = "",
    http: str = "",
) -> Iterator[Nginx]:
    """Serves a folder until the context ends.

    Args:
        root: What to serve; ETags, ranges and conditions are nginx's own.
        tls: Whether to listen with TLS as well, on a second port.
        workers: Worker processes.
        limit_rate: Bytes per second and answer; 0 is no limit. nginx looks at its clock after each `send_bytes`, so
            a limit is kept well only where `send_bytes` is small beside an answer.
        keepalive_requests: Requests after which a connection is closed.
        sendfile: Whether the kernel copies from the page cache to a plain socket.
        send_bytes: The most that one turn sends to one connection.
        host: The address to listen on: loopback, or one of a network namespace's.
        aes_128: Whether TLS offers only AES-128-GCM.
        access_log: Whether to write `access.log` into the server's folder: status, method, path, Range.
        extra: More directives for the `server` block.
        http: More directives for the block around it; "FOLDER" stands for the server's folder.

    Raises:
        RuntimeError: nginx refused its configuration; the text is its error log.
    """
    program = require()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nginx-")))
        sockets = [_listen(stack, host) for _ in range(2 if tls else 1)]
        ports = [entry.getsockname()[1] for entry in sockets]
        authority, tls_text = None, ""
        if tls:
            authority = make_certificate(folder, host)
            ciphers = _AES_128 if aes_128 else ""
            tls_text = _TLS.format(host=host, port=ports[1], folder=folder, ciphers=ciphers)
        (folder / "nginx.conf").write_text(
            _CONFIG.format(
                # Otherwise the workers of a server started by root become nobody, who may not read the folder.
                user="user root;" if os.geteuid() == 0 else "",
                workers=workers,
                folder=folder,
                access_log=f"{folder}/access.log plain" if access_log else "off",
                sendfile="on" if sendfile else "off",
                send_bytes=send_bytes,
                keepalive_requests=keepalive_requests,
                limit_rate=limit_rate,
                host=host,
                port=ports[0],
                tls=tls_text,
                root=root,
                extra=extra.replace("FOLDER", str(folder)),
                http=http.replace("FOLDER", str(folder)),
            )
        )
        descriptors = [entry.fileno() for entry in sockets]
        process = subprocess.Popen(
            [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")],
            env={**os.environ, "NGINX": "".join(f"{descriptor};" for descriptor in descriptors)},
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # one system call, which takes no lock
        )
        stack.callback(_stop, process)
        for entry in sockets:
            entry.close()
        server = Nginx(
            url=f"http://{host}:{ports[0]}",
            tls_url=f"https://{host}:{ports[1]}" if tls else None,
            authority=authority,
            folder=folder,
            pid=process.pid,
        )
        _wait(server, process, (host, ports[0]))
        yield server


def make_certificate(folder: Path, host: str = "127.0.0.1") -> Path:
    """Makes an authority (`ca.pem`) and a certificate signed by it (`server.pem`, `server.key`), with openssl.

    The certificate is for `localhost` and the address `host`. Skips the calling test without openssl.

    Returns:
        The authority's PEM file.
    """
    if shutil.which("openssl") is None:
        import pytest

        pytest.skip("openssl is not installed (apt-get install openssl)")
    (folder / "server.ext").write_text(f"subjectAltName=DNS:localhost,IP:{host}\nextendedKeyUsage=serverAuth\n")
    signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for command in (
        ["req", "-x509", *key, "-days", "30", "-subj", "/CN=coldstream tests", "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", "-new", *key, "-subj", f"/CN={host}", "-keyout", "server.key", "-out", "server.csr"],
        ["x509", "-req", "-days", "30", "-in", "server.csr", *signer, "-extfile", "server.ext", "-out", "server.pem"],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder / "ca.pem"


def _listen(stack: ExitStack, host: str) -> socket.socket:
    listening = stack.enter_context(socket.socket())
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, 0))
    listening.listen(511)
    # nginx leaves inherited sockets as they are; a worker that loses the race for a connection would wait in accept.
    listening.setblocking(False)
    return listening


def _wait(server: Nginx, process: subprocess.Popen[bytes], address: tuple[str, int]) -> None:
    # The sockets listen already, so this blocks until a worker answers, or until nginx gives up and they close.
    with socket.create_connection(address, timeout=20) as connection:
        try:
            connection.sendall(b"HEAD /nginx-ready HTTP/1.0\r\n\r\n")
            answered = bool(connection.recv(1))
        except ConnectionError:
            answered = False
    if not answered:
        raise RuntimeError(f"nginx did not start (exit {process.poll()}): {server.log().strip()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    # Linux: prctl(PR_SET_PDEATHSIG, SIGTERM), so that a killed test leaves no server behind.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
