"""The S3 server of the demo behind a capped link."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coldstream.operate.demo_bucket import BUCKET, DemoServer, s3_server
from streaming.link import Link, capped_link


@contextmanager
def capped_bucket(folder: Path, bits_per_second: float) -> Iterator[tuple[Link, DemoServer]]:
    """A server over a folder of objects; clients start with `link.enter`.

    Args:
        folder: With the bucket.
        bits_per_second: The cap.
    """
    with capped_link(bits_per_second) as link, link.server_side(), s3_server(folder, host=link.host) as server:
        yield link, server


def keys_of(server: DemoServer) -> dict[str, str]:
    """The environment that finds it, and gets in."""
    return {
        "R2_ENDPOINT": server.endpoint,
        "R2_BUCKET": BUCKET,
        "R2_ACCESS_KEY": server.access_key,
        "R2_SECRET_KEY": server.secret_key,
    }
