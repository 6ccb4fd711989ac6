from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coldstream.operate.bench import pagecache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="posix_fadvise")
MIB = 1 << 20


def test_files_are_dropped_where_the_whole_page_cache_may_not_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x" * MIB)
    monkeypatch.setattr(pagecache, "_DROP", tmp_path / "no-such-file")
    assert pagecache.drop([tmp_path]) == "files"
    assert pagecache.drop([tmp_path / "empty"]) == "nothing"
    monkeypatch.setattr(pagecache, "_DROP", tmp_path / "drop")
    (tmp_path / "drop").touch()
    assert pagecache.drop([tmp_path]) == "everything"
    assert (tmp_path / "drop").read_text() == "1\n"
    assert "memory" in pagecache.description("nothing", requested=True)
    assert "left alone" in pagecache.description("nothing", requested=False)
