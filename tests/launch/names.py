"""The name server of the machines, which knows no name and keeps what it is asked for.

A machine that is to get everything from the bucket, whose address it has, asks for no name of a package index.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

# Of those that are for documentation (RFC 5737).
ADDRESS = "192.0.2.53"
_HEADER_BYTES = 12
# A response to a query that wanted recursion: the name does not exist (RFC 1035, 4.1.1).
_NO_SUCH_NAME = b"\x81\x83"


def answer_names(log: Path) -> None:
    """Answers until this process ends; a line for each query: who asked, and for which name."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((ADDRESS, 53))

    def answer() -> None:
        with log.open("w", buffering=1) as kept:
            while True:
                query, sender = server.recvfrom(512)
                name, end = name_in(query)
                kept.write(f"{sender[0]} {name}\n")
                # The question comes back, with no answers and nothing beside them.
                server.sendto(query[:2] + _NO_SUCH_NAME + b"\0\1" + bytes(6) + query[_HEADER_BYTES : end + 4], sender)

    threading.Thread(target=answer, daemon=True).start()


def name_in(query: bytes) -> tuple[str, int]:
    """The name, and where its question goes on with type and class."""
    labels, at = [], _HEADER_BYTES
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels).lower(), at + 1
