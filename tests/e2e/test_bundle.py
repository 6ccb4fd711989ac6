"""Warm-start bundles in real stores: restored, published, refused. vLLM itself is in tests/vllm."""

from __future__ import annotations

import copy
import os
import shutil
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coldstream.engines.vllm.vllm_caches import VllmCaches
from coldstream.net.retry import Retry
from coldstream.node.bundle import bundle_store, warm_start
from coldstream.node.bundle.bundle_pointer import Key, decode, encode
from coldstream.node.bundle.bundle_store import BundleStore
from coldstream.node.bundle.local_bundles import LocalBundle
from coldstream.node.bundle.warm_start import WarmStart, WarmState
from coldstream.places.place import Store
from tests.e2e.command import Command
from tests.servers.stores import Faults

SECRET = b"s" * 32
NAME = "org/model"
PREFIX = f".coldstream/bundles/{NAME}/"
KEY = Key(parts={"model": "m", "vllm": "0.32.0", "device": "cpu"})
FILES = {"inductor/ab/kernel.so": b"\x7fELF" * 5000, "vllm/modelinfos/llama.json": b"{}"}


class Node:
    """A machine: its caches lie where those of every other node do, as its user's settings say."""

    def __init__(self, tmp_path: Path, store: Store, *, mode: str = "auto") -> None:
        self.base = tmp_path / "cache/bundles"
        # A start's calls end with it.
        store = copy.copy(store)
        store.retry = Retry(store.retry.backoff)  # type: ignore[misc]
        self.warm = WarmStart(
            LocalBundle(self.base, KEY, VllmCaches()), BundleStore(store, NAME), secret=SECRET, mode=mode
        )
        self.root = LocalBundle(self.base, KEY, VllmCaches()).root

    def start(self, files: dict[str, bytes] | None = None, *, reads: bytes | None = None) -> WarmState:
        """A start of something that builds these files, if they are not there, and answers."""
        self.warm.restore()
        for path, content in (FILES if files is None else files).items():
            if not (self.root / path).exists():
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_bytes(content)
        over = threading.Event()
        over.set()
        self.warm.publish(ready_seconds=88.0, reads=lambda: reads, over=over)
        self.warm.close()
        return self.warm.state

    def content(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.root)): p.read_bytes() for p in self.root.rglob("*") if p.is_file()}

    def wiped(self) -> None:
        shutil.rmtree(self.base.parent)


def keys(store: Store, suffix: str = "") -> list[str]:
    return [info.key for info in store.list(PREFIX) if info.key.endswith(suffix)]


def test_one_node_builds_and_the_next_restores(tmp_path: Path, store: Store) -> None:
    first = Node(tmp_path, store)
    state = first.start(reads=b"names")
    assert (state.state, state.built, state.compiled, state.published) == ("none", 2, 1, "published")
    assert {key.rpartition(".")[2] for key in keys(store)} == {"bundle", "gz", "reads"}
    again = Node(tmp_path, store)
    assert (again.start().state, again.warm.state.published) == ("local", "kept")
    first.wiped()

    second = Node(tmp_path, store)
    state = second.start()
    assert (state.state, state.built, state.published) == ("restored", 0, "kept")
    assert second.content() == FILES
    assert second.warm.reads == b"names"
    assert state.bytes > 0


def test_what_a_later_start_adds_is_published_for_the_next(tmp_path: Path, store: Store) -> None:
    Node(tmp_path, store).start()
    more = {**FILES, "inductor/cd/other.so": b"new"}
    state = Node(tmp_path, store).start(more)
    assert (state.state, state.published) == ("local", "published")
    assert len(keys(store, ".bundle")) == 1
    third = Node(tmp_path, store)
    third.wiped()
    assert third.start().state == "restored"
    assert third.content() == more


def test_graphs_compiled_while_serving_are_published_on_a_spot_interruption(tmp_path: Path, moto_store: Store) -> None:
    node = Node(tmp_path, moto_store)
    node.warm.restore()
    over = threading.Event()
    over.set()
    node.warm.publish_more(over=over)
    assert keys(moto_store) == [], "it has not answered yet"
    (node.root / "inductor").mkdir()
    (node.root / "inductor/1.so").write_text("1")
    node.warm.publish(ready_seconds=1.0, reads=lambda: b"names", over=over)
    node.warm.publish_more(over=over)
    assert node.warm.state.published == "kept"
    (node.root / "inductor/2.so").write_text("2")
    node.warm.publish_more(over=over)
    assert node.warm.state.published == "published"
    node.warm.close()
    node.wiped()
    second = Node(tmp_path, moto_store)
    assert second.start({}).state == "restored"
    assert set(second.content()) == {"inductor/1.so", "inductor/2.so"}
    assert second.warm.reads == b"names"


def test_the_modes(tmp_path: Path, store: Store) -> None:
    node = Node(tmp_path, store, mode="read")
    assert node.start().published == "no: --bundle read does not publish"
    assert keys(store) == []
    node = Node(tmp_path, store, mode="write")
    assert (node.start().state, node.warm.state.published) == ("local", "published")
    node.wiped()
    node = Node(tmp_path, store, mode="write")
    assert (node.start().state, node.warm.state.published) == ("none", "published"), "it builds anew, and replaces"
    node.wiped()
    node = Node(tmp_path, store, mode="read")
    assert node.start().state == "restored"


def test_caches_of_a_start_that_did_not_come_up_give_way(tmp_path: Path, store: Store) -> None:
    Node(tmp_path, store).start()
    node = Node(tmp_path, store)
    node.wiped()
    (node.root / "inductor").mkdir(parents=True)
    (node.root / "inductor/half").write_text("ha")
    assert node.start().state == "restored"
    assert node.content() == FILES


def tampered(store: Store, how: str) -> None:
    """Somebody who can write to the bucket, and has no signing key."""
    (pointer,), (archive,) = keys(store, ".bundle"), keys(store, ".gz")
    data, content = store.get(pointer)[0], store.get(archive)[0]
    if how == "pointer changed":
        store.put(pointer, data.replace(b'"files":2', b'"files":3'))
    elif how == "pointer truncated":
        store.put(pointer, data[:-20])
    elif how == "pointer empty":
        store.put(pointer, b"")
    elif how == "pointer huge":
        store.put(pointer, data + b" " * 10**6)
    elif how == "foreign key":
        store.put(pointer, encode(decode(data, SECRET), b"f" * 32))
    elif how == "signed for another start":
        other = Key(parts={"model": "other"})
        store.put(pointer, encode(_with(data, key=other.digest), SECRET))
    elif how == "archive changed":
        store.put(archive, content[:-9] + b"x" + content[-8:])
    elif how == "archive truncated":
        store.put(archive, content[:-1])
    elif how == "archive longer":
        store.put(archive, content + b"x")
    elif how == "archive gone":
        store.delete([archive])


def _with(data: bytes, **changes: Any) -> Any:
    return msgspec.structs.replace(decode(data, SECRET), **changes)


@pytest.mark.parametrize(
    "how",
    [
        "pointer changed",
        "pointer truncated",
        "pointer empty",
        "pointer huge",
        "foreign key",
        "signed for another start",
        "archive changed",
        "archive truncated",
        "archive longer",
    ],
)
def test_a_bundle_that_differs_from_its_signature_is_rejected_and_the_start_continues(
    tmp_path: Path, store: Store, how: str
) -> None:
    node = Node(tmp_path, store)
    node.start()
    node.wiped()
    tampered(store, how)
    node = Node(tmp_path, store)
    node.warm.restore()
    if how == "archive longer":
        # Nothing beyond the signed size is even asked for.
        assert node.warm.state.state == "restored"
        return
    assert node.warm.state.state == "refused", node.warm.state
    assert "\n" not in node.warm.state.detail
    assert node.content() == {}
    node.warm.close()
    # What it builds replaces what was refused.
    node = Node(tmp_path, store)
    assert node.start().published == "published"
    node.wiped()
    assert Node(tmp_path, store).start().state == "restored"


def test_an_archive_that_is_gone_is_done_without(tmp_path: Path, store: Store) -> None:
    node = Node(tmp_path, store)
    node.start()
    node.wiped()
    tampered(store, "archive gone")
    node = Node(tmp_path, store)
    node.warm.restore()
    assert node.warm.state.state == "none"
    assert "no" in node.warm.state.detail
    node.warm.close()


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_restore_takes_no_longer_than_the_start_that_it_spares(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    Node(tmp_path, store).start()
    node = Node(tmp_path, store)
    node.wiped()
    (pointer,) = keys(store, ".bundle")
    store.put(pointer, encode(_with(store.get(pointer)[0], ready_seconds=0.2), SECRET))
    monkeypatch.setattr(warm_start, "_RESTORE_SECONDS_MIN", 0.1)

    def fetch(self: BundleStore, *_: object) -> None:
        while True:
            self.store.retry.check()

    monkeypatch.setattr(BundleStore, "fetch", fetch)
    node.warm.restore()
    assert node.warm.state.state == "none"
    assert "longer" in node.warm.state.detail
    assert node.content() == {}
    node.warm.close()


def test_a_signed_bomb_is_refused(tmp_path: Path, store: Store) -> None:
    """Whoever has the key may be wrong, too: no more is unpacked than the pointer says."""
    node = Node(tmp_path, store)
    node.start({"inductor/zeros.so": bytes(5_000_000)})
    node.wiped()
    (pointer,) = keys(store, ".bundle")
    data, _ = store.get(pointer)
    archive = decode(data, SECRET).archive
    store.put(pointer, encode(_with(data, archive=msgspec.structs.replace(archive, bytes=1000)), SECRET))
    node = Node(tmp_path, store)
    node.warm.restore()
    assert node.warm.state.state == "refused"
    assert "more than" in node.warm.state.detail
    assert node.content() == {}
    node.warm.close()


@pytest.mark.parametrize("at_once", [True, False])
def test_of_two_nodes_that_build_one_wins(tmp_path: Path, moto_store: Store, at_once: bool) -> None:
    """Both find nothing, both build; the second to finish learns it, and leaves nothing behind."""
    store = moto_store
    nodes = [Node(tmp_path / str(number), store) for number in range(2)]
    for number, node in enumerate(nodes):
        node.warm.restore()
        (node.root / "inductor").mkdir()
        (node.root / f"inductor/{number}.so").write_text(str(number))
    over = threading.Event()
    over.set()
    threads = [
        threading.Thread(target=node.warm.publish, kwargs={"ready_seconds": 1.0, "reads": lambda: None, "over": over})
        for node in nodes
    ]
    for thread in threads:
        thread.start()
        if not at_once:
            thread.join(60)
    for thread in threads:
        thread.join(60)
    said = sorted(str(node.warm.state.published) for node in nodes)
    for node in nodes:
        node.warm.close()
    assert said == ["no: another node published first", "published"]
    assert len(keys(store, ".bundle")) == 1
    named = decode(store.get(keys(store, ".bundle")[0])[0], SECRET).archive.sha256
    assert keys(store, ".gz") == [f"{PREFIX}{named}.tar.gz"]


def test_a_large_archive_goes_in_parts_and_comes_back(
    tmp_path: Path, moto_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_store, "_SINGLE_BYTES_MAX", 0)
    monkeypatch.setattr(bundle_store, "_PART_BYTES", 5 << 20)
    monkeypatch.setattr(bundle_store, "_RANGE_BYTES", 3 << 20)
    content = {"inductor/big.so": os.urandom(12 << 20)}
    node = Node(tmp_path, moto_store)
    assert node.start(content).published == "published"
    assert list(moto_store.uploads("")) == []
    node.wiped()
    node = Node(tmp_path, moto_store)
    assert node.start(content).state == "restored"
    assert node.content() == content


def test_keys_that_cannot_write_restore_all_the_same(tmp_path: Path, proxied: tuple[Store, Faults]) -> None:
    store, faults = proxied
    node = Node(tmp_path, store)
    node.start()
    node.wiped()
    faults.add("fail", "^PUT", times=100, status=403, code="AccessDenied")
    node = Node(tmp_path, store)
    state = node.start({**FILES, "inductor/more.so": b"x"})
    assert state.state == "restored"
    assert state.published is not None
    assert state.published.startswith("no: ")


def test_a_bucket_that_does_not_answer_fails_no_start(tmp_path: Path, proxied: tuple[Store, Faults]) -> None:
    store, faults = proxied
    store.retry = Retry(replace(store.retry.backoff, give_up_seconds=1.0))  # type: ignore[misc]
    faults.add("fail", "", times=10_000, status=503, code="SlowDown")
    state = Node(tmp_path, store).start()
    assert state.state == "none"
    assert state.detail
    assert state.published is not None
    assert state.published.startswith("no: ")


def test_archives_that_no_pointer_names_are_swept(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    Node(tmp_path, store).start()
    store.put(f"{PREFIX}{'0' * 64}.tar.gz", b"of a node that was killed")
    Node(tmp_path, store).start({**FILES, "inductor/2.so": b"x"})
    assert len(keys(store, ".gz")) == 3, "another node may still be fetching them"
    monkeypatch.setattr(bundle_store, "_KEPT", timedelta(0))
    Node(tmp_path, store).start({**FILES, "inductor/3.so": b"x"})
    # What is swept is what was there before; times have whole seconds on some servers.
    assert len(keys(store, ".gz")) <= 2


@pytest.fixture
def command(tmp_path: Path, store: Store) -> Command:
    made = Command(None, "", cwd=tmp_path)
    made.environ |= {"COLDSTREAM_STORE": store.uri, "COLDSTREAM_BUNDLE_KEY": SECRET.decode()}
    made.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    return made


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_bundle_list_show_publish_remove(tmp_path: Path, store: Store, command: Command) -> None:
    """Coldstream bundle list; show; publish; remove."""
    out, err = command.run("bundle", "list")
    assert "no bundles" in out
    assert "next:" in err
    Node(tmp_path, store, mode="read").start()
    assert "would publish" in command.run("bundle", "publish", NAME, "--dry-run")[0]
    assert keys(store) == []
    document = command.json("bundle", "publish", NAME)
    assert document["published"][0]["key"] == KEY.digest
    (entry,) = command.json("bundle", "list")["bundles"]
    assert (entry["name"], entry["key"], entry["state"]) == (NAME, KEY.digest, "signed")
    assert entry["bundle"]["archive"]["files"] == 2
    table = command.run("bundle", "list", NAME)[0]
    assert KEY.digest[:12] in table
    assert "0.32.0" in command.run("bundle", "show", NAME, KEY.digest[:6])[0]
    command.run("bundle", "show", NAME, "ffff", code=10)
    command.run("bundle", "show", "org/other", code=10)
    command.run("bundle", "publish", "org/other", code=10)
    command.run("bundle", "remove", NAME, code=2)
    assert "would remove" in command.run("bundle", "remove", NAME, "--dry-run")[0]
    assert keys(store)
    assert "removed" in command.run("bundle", "remove", NAME, KEY.digest[:6], "--yes")[0]
    assert keys(store) == []
    command.run("bundle", "remove", NAME, "--yes", code=10)


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_bundles_list_shows_whether_the_signature_matches(tmp_path: Path, store: Store, command: Command) -> None:
    """Coldstream bundle list, with another key, with none, with a bad one."""
    Node(tmp_path, store).start()
    store.put(f"{PREFIX}{'1' * 64}.bundle", b"\x1b[2J rubbish")

    def states() -> list[str]:
        return sorted(entry["state"] for entry in command.json("bundle", "list")["bundles"])

    assert states() == ["signed", "unreadable"]
    command.environ["COLDSTREAM_BUNDLE_KEY"] = "another key of at least thirty-two"
    assert states() == ["foreign", "unreadable"]
    del command.environ["COLDSTREAM_BUNDLE_KEY"]
    assert states() == ["unreadable", "unverified"]
    assert "setup --bundle-key" in command.run("bundle", "publish", NAME, code=2)[1]
    command.environ["COLDSTREAM_BUNDLE_KEY"] = "short"
    err = command.run("bundle", "list", code=2)[1]
    assert "has 5 characters" in err
    assert "short" not in err


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_setup_makes_a_key_once(tmp_path: Path, store: Store, command: Command) -> None:
    """Coldstream setup --bundle-key."""
    del command.environ["COLDSTREAM_BUNDLE_KEY"]
    out, err = command.run("setup", "--bundle-key")
    text = (tmp_path / ".env").read_text()
    (made,) = [line for line in text.splitlines() if line.startswith("COLDSTREAM_BUNDLE_KEY=")]
    secret = made.partition("=")[2].strip("'")
    assert len(secret) == 64
    assert secret not in out + err
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    command.run("setup", "--bundle-key")
    assert made in (tmp_path / ".env").read_text()


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_a_removed_model_takes_its_bundles_along(tmp_path: Path, store: Store, command: Command) -> None:
    """Coldstream remove org/model --yes."""
    Node(tmp_path, store).start()
    store.put(f"{NAME}/config.json", b"{}")
    assert command.json("remove", NAME, "--yes")["bundles"] == 1
    assert list(store.list("")) == []


@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_bundles_are_no_models(tmp_path: Path, store: Store, command: Command) -> None:
    Node(tmp_path, store).start()
    assert command.json("list")["models"] == []
