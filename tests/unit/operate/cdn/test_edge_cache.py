"""What a look at a few bytes of an object tells, and what `warm` makes of it, with an edge that answers as scripted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from coldstream.net.retry import Retry
from coldstream.operate.cdn.edge_cache import CdnObject, Edge, EdgeAnswer, check, look_again, places, warm
from coldstream.places.cdn_domain import CdnDomain
from coldstream.progress import Progress

BODY = bytes(range(100))
ITEM = CdnObject(
    model="org/m",
    key="org/m/m.safetensors",
    label="m.safetensors",
    size=100,
    etag="abc",
    sha256=hashlib.sha256(BODY).hexdigest(),
    is_weights=True,
    is_read=True,
)
GOOD = EdgeAnswer(status=206, cache="HIT", size=100, etag="abc")


@dataclass
class Script:
    """An edge that keeps some bytes of each object, and keeps what it was asked for by the byte.

    Attributes:
        kept: The bytes that are kept.
        keeps: Whether a read of all of an object makes it keep all.
        asked: The bytes that were asked for, in order.
    """

    kept: set[int] = field(default_factory=set)
    keeps: bool = True
    asked: list[int | None] = field(default_factory=list)

    def byte(self, key: str, at: int | None) -> EdgeAnswer:
        self.asked.append(at)
        found = at is None or at in self.kept
        self.kept |= {at} if at is not None else set()
        return replace(GOOD, cache="HIT" if found else "MISS")

    def whole(self, key: str, on_bytes: Callable[[int], None]) -> EdgeAnswer:
        on_bytes(100)
        found = len(self.kept) == 100
        self.kept |= set(range(100)) if self.keeps else {0}
        return replace(
            GOOD, status=200, cache="HIT" if found else "MISS", received=100, sha256=hashlib.sha256(BODY).hexdigest()
        )


class Scripted(Edge):
    """`Edge`, for those that want one."""

    def __init__(self, script: Script) -> None:
        super().__init__(CdnDomain(url="http://127.0.0.1:1"))
        self.byte = script.byte  # type: ignore[method-assign]
        self.whole = script.whole  # type: ignore[method-assign]


def nobody_asks(item: CdnObject) -> bool:
    """The bucket, which is asked for what the domain has not alone."""
    raise AssertionError(item.key)


def checked(script: Script) -> tuple[str, str, str, str]:
    (found,) = check(Scripted(script), [ITEM], limit_bytes=1000, in_bucket=nobody_asks)
    return found.state, found.first, found.second, found.fix


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100])
def test_the_bytes_that_are_looked_at(size: int) -> None:
    seen = {tuple(places(replace(ITEM, size=size))) for _ in range(200)}
    for found in seen:
        assert len(set(found)) == len(found)
        assert {0, size - 1} <= set(found) if size else found == (None,)
    assert len(seen) > 50 or size < 100, "the one between is another each time"


def test_an_object_that_is_kept_whole() -> None:
    assert checked(Script(kept=set(range(100)))) == ("kept", "HIT", "HIT", "")


@pytest.mark.parametrize("kept", [{0}, {0, 99}, set(range(99)), set(range(1, 100))])
def test_an_object_of_which_a_part_is_kept(kept: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.randint", lambda low, high: 50)
    script = Script(kept=set(kept))
    state, _, second, mend = checked(script)
    if kept == set(range(1, 100)):
        # The first look has brought what was missing.
        assert (state, second) == ("kept", "HIT")
        return
    assert (state, second) == ("coming", "MISS")
    assert mend == "only a part is kept: coldstream cdn warm org/m"


def test_what_was_never_read_is_coming_however_much_the_looks_bring() -> None:
    assert checked(Script())[:3] == ("coming", "MISS", "MISS")


def test_an_edge_that_keeps_nothing_is_asked_once() -> None:
    answer, partly = look_again(lambda key, at: replace(GOOD, cache="DYNAMIC"), ITEM)
    assert (answer.cache, partly) == ("DYNAMIC", False)


def test_a_fault_in_the_midst_counts() -> None:
    answer, _ = look_again(lambda key, at: GOOD if at == 0 else replace(GOOD, etag="old"), ITEM)
    assert answer.etag == "old"


@pytest.mark.parametrize("keeps", [True, False])
def test_only_what_is_kept_whole_counts_as_a_hit(keeps: bool) -> None:
    script = Script(keeps=keeps)
    found = warm(
        Scripted(script),
        [ITEM],
        limit_bytes=1000,
        in_bucket=nobody_asks,
        progress=Progress(),
        retry=Retry(),
    )
    assert (found.bytes, found.first_hits) == (100, 0)
    assert (found.hits, found.hit_bytes) == ((1, 100) if keeps else (0, 0))
    assert found.findings[0].state == ("kept" if keeps else "coming")
    assert found.findings[0].fix == ("" if keeps else "only a part is kept: coldstream cdn warm org/m")
    # All of it was read once, and then a few bytes.
    assert script.asked[:2] == [0, 99]
