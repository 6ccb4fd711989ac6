"""A package index on loopback: a folder of wheels, as pip reads it."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

# Debian 12's Python.
_FOR_THE_IMAGE = ("--python-version", "3.11", "--only-binary", ":all:")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Lists folders as links, which is the format of a simple index (PEP 503)."""

    def log_message(self, *_: object) -> None:
        """Writes nothing."""


def download(folder: Path, *requirements: str) -> None:
    """Brings wheels for the image's Python, with all that they need, each into the folder of its project."""
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download")
    subprocess.run([*pip, "--dest", str(folder), *requirements, *_FOR_THE_IMAGE], check=True, timeout=200)
    for wheel in [*folder.glob("*.whl")]:
        project = folder / re.sub("[-_.]+", "-", wheel.name.partition("-")[0]).lower()
        project.mkdir(exist_ok=True)
        wheel.rename(project / wheel.name)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The index's address, for as long as the block."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
