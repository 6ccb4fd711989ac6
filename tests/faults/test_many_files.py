"""Loads in a program that has more files open than `select` can wait for."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

import coldstream
from tests.checkpoints import expected_tensors, raw_bytes, sharded_checkpoint
from tests.servers.ranged import RangedServer

FILES = 1100


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * FILES:
        pytest.skip(f"no more than {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * FILES), hard))
    opened = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(FILES)]
    try:
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_load_and_a_shared_load(tmp_path_factory: pytest.TempPathFactory) -> None:
    files = sharded_checkpoint(shards=2, layers=2)
    expected = expected_tensors(tmp_path_factory.mktemp("expected"), files)
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        with coldstream.stream(f"{server.url}/m", framework="buffer", cache=False) as loading:
            assert {name: raw_bytes(tensor) for name, tensor in loading} == expected
        with coldstream.share(f"{server.url}/m", consumers=1, cache=False) as shared:
            with coldstream.attach(shared.address, framework="buffer") as attached:
                assert {name: raw_bytes(tensor) for name, tensor in attached} == expected
            shared.wait()
