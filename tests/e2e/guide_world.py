"""What the guide's commands find: a bucket with R2's rules, a Hub with a real model, vLLM, SkyPilot's stand-in.

python -m tests.e2e.guide_world          puts what the commands print now into docs/guide.md
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from coldstream.node.http_endpoint import free_port
from coldstream.operate.demo_bucket import find_model
from tests.guide import Session, written
from tests.servers.fake_sky import fake_sky
from tests.servers.hub import FakeHub
from tests.servers.r2 import r2
from tests.servers.stores import moto_server

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs/guide.md"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
VLLM = ROOT / ".venv-vllm/bin/vllm"
# What the guide says, and what a test may listen on.
_PORTS = ("8000", "9400")
_KEPT = {"PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "TMPDIR"}


@dataclass(frozen=True)
class World:
    """A place to run the guide in.

    Attributes:
        session: Of its commands.
        text: The guide, with ports that are free.
        ports: The guide's ports, and those.
        places: What a path begins with, and what the guide says instead.
    """

    session: Session
    text: str
    ports: tuple[tuple[str, str], ...]
    places: tuple[tuple[str, str], ...]

    def as_in_the_guide(self, text: str) -> str:
        """What was printed, with the guide's ports and places."""
        for place, said in self.places:
            text = text.replace(place, said)
        for said, free in self.ports:
            text = re.sub(rf"\b{free}\b", said, text)
        return text


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """The servers, until the context ends.

    Args:
        folder: For everything that is written.
    """
    model, _ = find_model(folder)
    ports = tuple((said, str(free_port())) for said in _PORTS)
    text = GUIDE.read_text()
    for said, free in ports:
        text = re.sub(rf"\b{said}\b", free, text)
    with ExitStack() as stack:
        moto = stack.enter_context(moto_server())
        double = stack.enter_context(r2(moto))
        hub = stack.enter_context(FakeHub())
        hub.add_repo(MODEL, {str(path.relative_to(model)): path for path in sorted(model.rglob("*")) if path.is_file()})
        moto.create_bucket("models")
        (folder / "sky").mkdir()
        sky = stack.enter_context(fake_sky(folder / "sky", ()))
        work = folder / "work"
        work.mkdir()
        environ = {name: value for name, value in os.environ.items() if name in _KEPT} | double.environ("models")
        environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,127.0.0.2")
        environ |= {
            "PATH": f"{sky.program.parent}:{Path(sys.executable).parent}:{VLLM.parent}:{os.environ['PATH']}",
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "COLDSTREAM_CACHE_DIR": str(folder / "cache"),
            "COLDSTREAM_CACHE_LIMIT": "20GB",
            "VLLM_API_KEY": "a-key-of-the-guide-and-of-nobody-else",
            "VLLM_CACHE_ROOT": str(folder / "vllm"),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "100",
        }
        session = Session(work, environ)
        try:
            places = (
                (str(folder / "cache"), "~/.cache/coldstream"),
                (str(sky.program.parent), "/opt/sky/bin"),
                (str(VLLM.parent), "/opt/vllm/bin"),
                (str(VLLM.parent.resolve()), "/opt/vllm/bin"),
            )
            yield World(session, text, ports, places)
        finally:
            session.close()


def _main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="coldstream-guide-"))
    try:
        with world(folder) as found:
            text = written(found.text, found.session)
        GUIDE.write_text(found.as_in_the_guide(text))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main()
