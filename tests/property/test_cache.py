"""The local cache under arbitrary sequences of what may happen to it."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.cache.cache import Cache
from coldstream.cache.copy_records import OURS, RECORD, CopyContents, CopyPlan, parse_plan
from coldstream.cache.space import CachedCopy, Disk, victims_for
from coldstream.errors import DiskError
from tests.unit.cache.cached_models import HUGE, URI, Model, begun

models = st.builds(
    lambda files, seed, hashed: Model({f"d{i % 2}/f{i}": f for i, f in enumerate(files)}, seed=seed, hashed=hashed),
    st.lists(st.lists(st.integers(1, 40), max_size=5), min_size=1, max_size=4),
    st.integers(0, 3),
    st.booleans(),
)
kinds = st.sampled_from(["write", "write", "write", "forget", "reopen"])
step_lists = st.lists(st.tuples(kinds, st.integers(0, 99)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(models, step_lists)
def test_any_order_of_writing_and_forgetting(model: Model, steps: list[tuple[str, int]]) -> None:
    chunks = model.chunks()
    expected: set[tuple[int, int]] = set()
    with tempfile.TemporaryDirectory() as folder, model.open(Cache(Path(folder) / "c", bytes_max=HUGE)) as copy:
        writer = copy.writer(repair=True)
        assert writer is not None
        for step, number in steps if chunks else ():
            at = chunks[number % len(chunks)]
            if step == "write":
                model.write(writer, *at)
                expected.add(at)
            elif step == "forget":
                writer.forget(*at)
                expected.discard(at)
            else:
                writer.close()
                again = copy.writer(repair=True)
                assert again is not None
                writer = again
            claimed = {(file, chunk) for file, chunk in chunks if copy.have(file)[chunk]}
            assert claimed == expected
            assert model.check(copy) == len(expected)
            assert copy.complete == (len(expected) == len(chunks))
        writer.close()
        assert model.check(copy) == len(expected)


@settings(max_examples=60, deadline=None)
@given(models, st.randoms(use_true_random=False), st.binary(max_size=80), st.integers(0, 400))
def test_any_journal_claims_only_what_is_right(model: Model, rng: object, tail: bytes, cut: int) -> None:
    order = model.chunks()
    rng.shuffle(order)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder, model.open(Cache(Path(folder) / "c", bytes_max=HUGE)) as copy:
        writer = copy.writer()
        if writer is None:
            return
        with writer:
            for file, chunk in order[: len(order) // 2 + 1]:
                model.write(writer, file, chunk)
        journal = copy.folder / OURS / "journal"
        kept = journal.read_bytes()[:cut]
        journal.write_bytes(kept + tail)
        whole = len(kept) // RECORD.size
        if model.files[0].digests is not None:
            # With a manifest no other record is believed, but for one that takes a claim back.
            claimed = {(file, chunk) for file, chunk in order if copy.have(file)[chunk]}
            assert claimed <= set(order[:whole])
        with copy.writer(repair=True) or begun(copy) as writer:
            for file, entry in enumerate(model.files):
                for chunk, there in enumerate(copy.have(file)):
                    start, stop = entry.bounds(chunk)
                    digest = copy.digests(file)[chunk * 16 : chunk * 16 + 16]
                    # What every reader does.
                    if there and xxhash.xxh3_128_digest(copy.path(file).read_bytes()[start:stop]) != digest:
                        writer.forget(file, chunk)
            model.write_all(writer)
        assert copy.complete
        assert model.check(copy) == len(order)


@given(st.binary(max_size=500))
def test_any_bytes_are_a_journal(data: bytes) -> None:
    contents = CopyContents(Path("/nonexistent"), Model(hashed=False).files)
    contents.apply(data[: len(data) - len(data) % RECORD.size])
    for there, digests, missing in zip(contents.claimed, contents._digests, contents.missing, strict=True):
        assert len(there) - sum(there) == missing
        assert [any(digests[16 * chunk : 16 * chunk + 16]) for chunk in range(len(there))] == [bool(b) for b in there]


@given(models, st.binary(max_size=20), st.integers(0, 2000), st.integers(0, 40))
def test_any_damage_to_a_plan_is_found_or_harmless(model: Model, patch: bytes, start: int, length: int) -> None:
    plan = CopyPlan(uri=URI, name="org/model", version="1", files=tuple(model.files))
    data = plan.serialize()
    assert parse_plan(data) == plan
    found = parse_plan(data[:start] + patch + data[start + length :])
    if found is not None:
        assert parse_plan(found.serialize()) == found
        contents = CopyContents(Path("/nonexistent"), found.files)
        contents.refresh()
        assert not any(any(contents.there(index)) for index in range(len(found.files)))


def entry(number: int, size: int, *, total: int, in_use: bool, writing: bool) -> CachedCopy:
    return CachedCopy(
        name=f"m/{number}",
        version="1",
        uri=URI,
        folder=Path(f"/c/{number}"),
        bytes=size,
        bytes_total=total,
        complete=False,
        in_use=in_use or writing,
        writing=writing,
        used=datetime.fromtimestamp(number, timezone.utc),
    )


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans(), st.booleans()), max_size=8),
    st.tuples(st.integers(0, 40), st.integers(0, 60)),
    st.integers(0, 200),
    st.integers(-20, 100),
)
def test_what_is_evicted_makes_room_and_is_no_more_than_needed(
    found: list[tuple[int, int, bool, bool]], own_bytes: tuple[int, int], limit: int, free: int
) -> None:
    others = [
        entry(number, size, total=total, in_use=in_use, writing=writing)
        for number, (size, total, in_use, writing) in enumerate(found)
    ]
    own = entry(99, own_bytes[0], total=own_bytes[1], in_use=True, writing=True)
    disk = Disk(limit_bytes=limit, free_bytes=free)

    def fits(gone: list[CachedCopy]) -> bool:
        left = [other for other in others if other not in gone]
        growth = max(own.bytes_total - own.bytes, 0) + sum(other.bytes_reserved - other.bytes for other in others)
        return own.bytes_total + sum(other.bytes_reserved for other in left) <= limit and growth <= free + sum(
            other.bytes for other in gone
        )

    idle = [other for other in others if not other.in_use]
    victims: list[CachedCopy] | None = None
    with suppress(DiskError):
        victims = victims_for(own, others, disk)
    if victims is None:
        assert own.bytes_total > limit or not fits(idle)
    else:
        assert victims == idle[: len(victims)]
        assert fits(victims)
        assert not victims or not fits(victims[:-1])
