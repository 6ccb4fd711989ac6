"""Where values of secrets have come to lie: in files, and in what every user of a machine can see of its processes."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = 1 << 20
_SAMPLE_SECONDS = 0.1
_TEXT_MAX = 4000


@dataclass(frozen=True)
class Found:
    """A file with secrets in it.

    Attributes:
        path: Below the folder that was searched.
        names: Of the secrets.
        mode: Its permissions.
    """

    path: str
    names: tuple[str, ...]
    mode: int

    def __str__(self) -> str:
        return f"{self.path} ({self.mode:o}): {', '.join(self.names)}"


def search(folder: Path, secrets: Mapping[str, str], *, without: Iterable[str] = ()) -> list[Found]:
    """The files below a folder that hold a secret, as it is or in base64.

    Args:
        folder: Where to look.
        secrets: Name to value.
        without: Folders below it that are left out.
    """
    left_out = {str(folder / name) for name in without}
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if os.path.join(parent, name) not in left_out]
        for name in files:
            path = Path(parent, name)
            if path.is_symlink() or not path.is_file():
                continue
            with suppress(FileNotFoundError):  # it may go at any time
                mode = path.stat().st_mode & 0o777
                if names := _names_in(path, secrets):
                    found.append(Found(str(path.relative_to(folder)), names, mode))
    return found


def _forms(value: bytes) -> list[bytes]:
    """As it is, and in base64, where it looks different at each of three places within other text."""
    found = [value]
    for before in range(3):
        text = base64.b64encode(b"\0" * before + value)
        found.append(text[-(-before * 8 // 6) : (before + len(value)) * 8 // 6])
    return found


def _names_in(path: Path, secrets: Mapping[str, str]) -> tuple[str, ...]:
    forms = {name: _forms(value.encode()) for name, value in secrets.items()}
    overlap = max(len(form) for some in forms.values() for form in some)
    found = set()
    try:
        with path.open("rb") as file:
            rest = b""
            while block := file.read(_BLOCK):
                text = rest + block
                found |= {name for name, some in forms.items() if any(form in text for form in some)}
                rest = text[-overlap:]
    except OSError:
        pass  # it is gone
    return tuple(sorted(found))


@dataclass
class Processes:
    """The command lines that had secrets in them, masked."""

    seen: set[str] = field(default_factory=set)
    looked: int = 0


@contextmanager
def watched_processes(secrets: Mapping[str, str]) -> Iterator[Processes]:
    """Looks at all command lines of this machine, ten times a second, for the length of the block."""
    found, over = Processes(), threading.Event()
    values = {value.encode(): name.encode() for name, value in secrets.items()}

    def look() -> None:
        while not over.is_set():
            for name in os.listdir("/proc"):
                if name.isdecimal():
                    _look_at(name)
            found.looked += 1
            time.sleep(_SAMPLE_SECONDS)

    def _look_at(pid: str) -> None:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                text = file.read()
        except OSError:
            return
        if any(value in text for value in values):
            for value, name in values.items():
                text = text.replace(value, b"<" + name + b">")
            found.seen.add(text.replace(b"\0", b" ").decode(errors="replace")[:_TEXT_MAX].strip())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
