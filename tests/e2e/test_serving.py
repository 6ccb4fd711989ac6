"""The folder that vLLM is given, and the service that its ranks ask; vLLM itself is in tests/vllm."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import coldstream
from coldstream.errors import ColdstreamError, IntegrityError, UnavailableError
from coldstream.loading.options import Options
from coldstream.node.http_endpoint import free_port
from coldstream.node.load_service import FIRST, FIRST_DRAFT, LoadService, ask
from coldstream.node.model_folder import model_folder, read_note
from coldstream.settings import Settings, load_settings
from coldstream.telemetry.metrics.registry import Metrics
from tests.checkpoints import expected_tensors, raw_bytes, sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.models import write_model
from tests.servers.hub import FakeHub
from tests.servers.ranged import RangedServer
from tests.servers.stores import S3Server
from tests.unit.telemetry.metrics.loads import value


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    found = sharded_checkpoint(shards=2, layers=2)
    return {**found, "tokenizer.json": b"{}", "1_Pooling/config.json": b"{}"}


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[RangedServer]:
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        yield server


def settings(tmp_path: Path) -> Settings:
    given = {
        "COLDSTREAM_CACHE_LIMIT": "20GB",
        "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"),
        "COLDSTREAM_RETRY_SECONDS": "1",
    }
    return load_settings(given, environ={})


def test_the_folder_has_all_but_the_weights(server: RangedServer, files: dict[str, bytes], tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    path = Path(coldstream.prepare(uri, settings=settings(tmp_path)))
    for name, content in files.items():
        if name.endswith(".safetensors"):
            header = 8 + int.from_bytes(content[:8], "little")
            assert (path / name).read_bytes() == content[:header], "a stub: only the header"
        elif name in {"config.json", "model.safetensors.index.json"}:
            assert (path / name).read_bytes() == content
    note = read_note(path)
    assert note is not None
    assert str(note.uri) == uri
    asked = server.count("config.json")
    assert coldstream.prepare(uri, settings=settings(tmp_path)) == str(path)
    assert server.count("config.json") == asked, "made once"


def test_another_version_gets_another_folder_and_without_network_the_last_one_serves(
    server: RangedServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    uri = f"{server.url}/m"
    first = model_folder(uri, settings(tmp_path))
    changed = sharded_checkpoint(shards=2, layers=2, seed=9)
    for path, content in changed.items():
        server.put(f"/m/{path}", content)
    server.put("/m/config.json", b'{"changed": 1}')
    second = model_folder(uri, settings(tmp_path))
    assert second.path != first.path
    assert json.loads((second.path / "config.json").read_text()) == {"changed": 1}
    with server.refusing():
        third = model_folder(uri, settings(tmp_path))
    assert third.offline
    assert third.path == second.path


def test_without_a_cache_the_folder_lies_among_temporary_files(
    server: RangedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only root, a full disk, a volume of another user: a load goes on without a cache, and so does a start."""
    (tmp_path / "cache").write_text("a file")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = os.umask(0)
    try:
        path = Path(coldstream.prepare(f"{server.url}/m", settings=settings(tmp_path)))
    finally:
        os.umask(before)
    private = temporary / f"coldstream-{os.geteuid()}"
    assert path.is_relative_to(private)
    assert (path / "config.json").is_file()
    for each in (private, *private.rglob("*")):
        assert stat.S_IMODE(each.stat().st_mode) == (0o700 if each.is_dir() else 0o600), each


def test_without_network_and_without_a_folder_it_says_so(server: RangedServer, tmp_path: Path) -> None:
    with server.refusing(), pytest.raises(UnavailableError):
        model_folder(f"{server.url}/m", settings(tmp_path))


def test_a_broken_file_leaves_no_folder(server: RangedServer, files: dict[str, bytes], tmp_path: Path) -> None:
    server.put("/m/config.json", b"")
    server.add("status", "config.json", status=503, times=None)
    with pytest.raises((UnavailableError, IntegrityError)):
        model_folder(f"{server.url}/m", settings(tmp_path))
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "config" in path.name]
    assert not left


def service(uri: str, tmp_path: Path) -> LoadService:
    return LoadService(uri, options=Options(settings=settings(tmp_path), cache=False))


def read_by_two_ranks(loads: LoadService, uri: str, which: str) -> list[dict[str, bytes]]:
    """The tensors that each of two ranks gets of one load."""
    tensors: list[dict[str, bytes]] = []

    def rank() -> None:
        address = ask(loads.address, uri, which, consumers=2)
        tensors.append({name: raw_bytes(t) for name, t in coldstream.attach(address, framework="buffer")})

    ranks = [threading.Thread(target=rank) for _ in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(60)
    return tensors


def test_ranks_share_a_load_and_reload(server: RangedServer, files: dict[str, bytes], tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    expected = expected_tensors(tmp_path / "x", files)
    size = sum(map(len, expected.values()))
    with service(uri, tmp_path) as loads:
        # The number was not known yet.
        loads.begin(consumers=1)
        for number in (FIRST, "2"):
            before = server.bytes_sent
            assert read_by_two_ranks(loads, uri, number) == [expected, expected]
            if number != FIRST:
                assert server.bytes_sent - before < 1.5 * size, "once for both"
        # Another engine of this node counts from one again.
        address = ask(loads.address, uri, FIRST, consumers=1)
        again = {name: raw_bytes(t) for name, t in coldstream.attach(address, framework="buffer")}
        assert again == expected
        first, second = loads.of_start
        assert loads.first is first
        assert (first._consumers, second._consumers) == (2, 1)


def test_a_service_has_several_models(server: RangedServer, files: dict[str, bytes], tmp_path: Path) -> None:
    """Each has its own loads, version and options; an update of one does not concern the others."""
    main, other = f"{server.url}/m", f"{server.url}/other"
    small = sharded_checkpoint(shards=1, layers=1, seed=5)
    for path, content in small.items():
        server.put(f"/other/{path}", content)

    def read(loads: LoadService, uri: str, which: str) -> dict[str, bytes]:
        address = ask(loads.address, uri, which, consumers=1)
        return {name: raw_bytes(t) for name, t in coldstream.attach(address, framework="buffer")}

    with service(main, tmp_path) as loads:
        loads.begin(consumers=1)
        added = loads.add(other, options=Options(settings=settings(tmp_path), cache=False, workers=1))
        assert loads.add(other, options=Options()) is added, "the first one stays"
        assert read(loads, main, FIRST) == expected_tensors(tmp_path / "x", files)
        assert read(loads, other, FIRST) == expected_tensors(tmp_path / "y", small)
        assert loads.of_start == loads._models[main].of_start[FIRST]
        assert len(loads.loads) == 2
        for path, content in sharded_checkpoint(shards=1, layers=1, seed=6).items():
            server.put(f"/other/{path}", content)
        with pytest.raises(ColdstreamError, match=r"/other was replaced since the engine was started"):
            read(loads, other, "2")
        assert read(loads, main, "2") == expected_tensors(tmp_path / "x", files)
        with pytest.raises(ColdstreamError, match="s3://b/third is not a model that is streamed here: http"):
            ask(loads.address, "s3://b/third", FIRST, consumers=1)
    assert loads.loads == ()


def test_a_model_whose_folder_is_of_another_version_is_refused(server: RangedServer, tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    with service(f"{server.url}/main", tmp_path) as loads:
        loads.add(uri, options=Options(settings=settings(tmp_path), cache=False), version="0" * 64)
        with pytest.raises(ColdstreamError, match="was replaced since the engine was started"):
            ask(loads.address, uri, FIRST, consumers=1)


def test_the_streamer_ends_when_the_last_rank_has_let_go(server: RangedServer, tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    with service(uri, tmp_path) as loads:
        share = loads.begin(consumers=1)
        held = list(coldstream.attach(ask(loads.address, uri, FIRST, consumers=1), framework="buffer"))
        assert held
        assert not share.is_gone
        del held
        assert share.wait_until_gone(10)


def test_loads_that_have_been_read_are_let_go_of_and_counted(server: RangedServer, tmp_path: Path) -> None:
    """A server that reloads its weights repeatedly and is never scraped."""
    uri = f"{server.url}/m"
    with LoadService(uri, options=Options(settings=settings(tmp_path), metrics=False)) as loads:
        counted = Metrics("m", uri=uri)
        counted.follow(lambda: loads.loads, lambda: loads.failures)
        loads.before_drop = counted.look
        # Begun for one reader, and there are two.
        first = loads.begin(consumers=2)
        shares = []
        for number in range(1, 7):
            address = ask(loads.address, uri, str(number), consumers=1)
            share = loads.loads[-1]
            shares.append(share)
            assert sum(1 for _ in coldstream.attach(address, framework="buffer"))
            assert share.wait_until_gone(30)
            assert repr(share._prepared.local_copy).endswith("closed)"), "the cached copy may be evicted at once"
        assert first not in loads.loads
        assert loads.loads == (shares[0], shares[-1]), "the first for its report, the newest until the next one"
        assert loads.first is shares[0]
        assert [*loads._models[uri]._open] == [FIRST, "6"]
        assert shares[0].wait(0) is not None
        # A rank that comes with a number that was let go of reads one of its own, as before.
        assert sum(1 for _ in coldstream.attach(ask(loads.address, uri, "2", consumers=1), framework="buffer"))
        assert loads.loads[-1].wait(30)
        samples = counted.families(live=True)
        labels = {"model": "m", "source": "https"}
        ok = value(samples, "coldstream_loads_total", outcome="ok", verified="no", **labels) or 0
        cut = value(samples, "coldstream_loads_total", outcome="cancelled", verified="unknown", **labels) or 0
        # What was begun for two may have been fetched before it was given up.
        assert (ok, cut) in {(7, 1), (8, 0)}
        assert len(counted._followed) == len(loads.loads) == 2


def test_what_the_service_refuses(server: RangedServer, tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    with service(uri, tmp_path) as loads:
        with pytest.raises(ColdstreamError, match="is not a model that is streamed here"):
            ask(loads.address, "s3://other/model", FIRST, consumers=1)
        with pytest.raises(ColdstreamError, match="invalid request"):
            ask(loads.address, uri, FIRST, consumers=0)
        loads.begin(consumers=1)
        for path, content in sharded_checkpoint(shards=2, layers=2, seed=9).items():
            server.put(f"/m/{path}", content)
        with pytest.raises(ColdstreamError, match="was replaced since the engine was started"):
            ask(loads.address, uri, "2", consumers=1)
        address = loads.address
    with pytest.raises(ColdstreamError, match="does not answer"):
        ask(address, uri, FIRST, consumers=1)


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A `vllm` that says what it was given, and ends."""
    path = tmp_path / "bin/vllm"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\necho "given: $*"\necho "service: $COLDSTREAM_SERVICE keys: $R2_SECRET_KEY"\nexit 3\n')
    path.chmod(0o755)
    return str(path)


def test_what_would_run_is_shown_and_nothing_is_streamed(
    rclone: S3Server, files: dict[str, bytes], program: str, tmp_path: Path
) -> None:
    """coldstream serve org/model --print-command --print-env"""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    command.run("upload", str(write_model(tmp_path / "model", files)), "--as", "org/model")
    flags = ("--vllm", program, "--print-command", "--print-env")
    out, _ = command.run("serve", "org/model", *flags, "--", "--max-model-len", "8192")
    assert f"{program} serve {tmp_path}/cache/folders/" in out
    assert "--load-format coldstream --served-model-name org/model --shutdown-timeout 15 --max-model-len 8192" in out
    assert "unset R2_SECRET_KEY" in out
    assert not (tmp_path / "cache/models").exists()
    wrong = ("--", "--model-loader-extra-config", '{"concurency": 1}')
    _, err = command.run("serve", "org/model", *flags, *wrong, code=2)
    assert "unknown key 'concurency'" in err
    out, _ = command.run("serve", "org/model", *flags, "--loader", "runai")
    uri = f"s3://{command.environ['R2_BUCKET']}/org/model"
    assert f"{program} serve {uri} --load-format runai_streamer" in out
    assert rclone.secret_key not in out
    assert "AWS_SECRET_ACCESS_KEY=****" in out
    out, _ = command.run("serve", "org/model", *flags, "--loader", "runai-sharded", "--", "-tp", "2")
    assert f"{program} serve {uri}-tp2 --load-format runai_streamer_sharded" in out


def test_a_draft_model_in_the_bucket_is_found_before_vllm_starts(
    rclone: S3Server, files: dict[str, bytes], program: str, tmp_path: Path
) -> None:
    """coldstream serve org/model -- --speculative-config '{"model": "org/draft"}'"""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    weights = {"model.safetensors": next(content for path, content in files.items() if path.endswith(".safetensors"))}
    command.run("upload", str(write_model(tmp_path / "model", files)), "--as", "org/model")
    command.run("upload", str(write_model(tmp_path / "draft", files)), "--as", "org/draft")
    command.run("upload", str(write_model(tmp_path / "bare", weights)), "--as", "org/bare")
    serve = ("serve", "org/model", "--vllm", program)

    def config(name: str) -> tuple[str, ...]:
        return ("--", "--speculative-config", json.dumps({"model": name, "num_speculative_tokens": 3}))

    out, _ = command.run(*serve, "--print-command", *config("org/draft"))
    assert re.search(rf'"model": "{tmp_path}/cache/folders/\S+-org-draft-\S+", "num_speculative_tokens": 3', out)
    assert not (tmp_path / "cache/models").exists()
    out, _ = command.run(*serve, "--print-command", *config(str(tmp_path / "draft")))
    assert f'"model": "{tmp_path}/draft"' in out, "a local folder is vLLM's"
    out, _ = command.run(*serve, "--print-command", "--", "-sc", '{"method": "ngram"}')
    assert '-sc \'{"method": "ngram"}\'' in out
    _, err = command.run(*serve, *config("org/absent"), code=10)
    assert "error: the draft model: there is no model org/absent" in err
    assert "hint:  coldstream upload org/absent   (or stream it from the Hub: hf://org/absent)" in err
    _, err = command.run(*serve, *config("org/bare"), code=2)
    assert "error: the draft model org/bare has no config.json" in err
    _, err = command.run(*serve, "--", "--speculative-config", "{model: org/draft}", code=2)
    assert "error: vLLM's --speculative-config is not valid JSON" in err


def test_a_draft_model_streams_once_the_first_load_is_complete(
    server: RangedServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    main, draft = f"{server.url}/m", f"{server.url}/draft"
    small = sharded_checkpoint(shards=1, layers=1, seed=5)
    for path, content in small.items():
        server.put(f"/draft/{path}", content)
    with service(main, tmp_path) as loads:
        server.add("slow", "model-00002", first=2, times=1, bytes_per_second=4e6)
        first = loads.begin(consumers=1)
        added = loads.add(draft, options=Options(settings=settings(tmp_path), cache=False))
        loads.begin_draft(added, consumers=1)
        deadline = time.monotonic() + 30
        while not loads.drafts_of_start:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert first.wait(0) is not None, "it was complete by then"
        before = loads.drafts_of_start
        # More readers than it was begun for.
        assert read_by_two_ranks(loads, draft, FIRST_DRAFT) == [expected_tensors(tmp_path / "y", small)] * 2
        assert len(loads.drafts_of_start) == 1
        assert loads.drafts_of_start != before
        assert loads.of_start == (first,), "a draft model is not another engine's model"
        # A model can be its own draft model: the loads are counted apart.
        address = ask(loads.address, main, FIRST_DRAFT, consumers=1)
        own = {name: raw_bytes(t) for name, t in coldstream.attach(address, framework="buffer")}
        assert own == expected_tensors(tmp_path / "x", files)
        assert len(loads.drafts_of_start) == 2


def test_a_draft_model_that_waits_does_not_delay_the_end(server: RangedServer, tmp_path: Path) -> None:
    server.add("slow", "model-00002", first=2, times=None, bytes_per_second=1e5)
    with service(f"{server.url}/m", tmp_path) as loads:
        loads.begin(consumers=1)
        added = loads.add(f"{server.url}/draft", options=Options(settings=settings(tmp_path)))
        loads.begin_draft(added, consumers=1)
    deadline = time.monotonic() + 10
    while any(thread.name == "coldstream-draft" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert loads.drafts_of_start == ()


@pytest.mark.parametrize("loader", ["coldstream", "default"])
def test_what_vllm_cannot_serve_is_found_before_it_starts(
    loader: str, files: dict[str, bytes], program: str, tmp_path: Path
) -> None:
    """coldstream serve FOLDER, of an adapter, and of weights without a configuration"""
    command = Command(None, "", cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    weights = {"model.safetensors": next(content for path, content in files.items() if path.endswith(".safetensors"))}
    arguments, port = ("serve", "--vllm", program, "--loader", loader), ("--", "--port", str(free_port()))
    out, err = command.process(*arguments, str(write_model(tmp_path / "bare", weights)), *port, code=2)
    assert "bare has no config.json" in err
    assert not out
    for config, base in ((b'{"base_model_name_or_path": "org/base"}', "org/base"), (b"[]", "BASE_MODEL")):
        adapter = {**weights, "adapter_config.json": config}
        _, err = command.process(*arguments, str(write_model(tmp_path / "adapter", adapter)), *port, code=2)
        assert "adapter is an adapter" in err
        assert f"hint:  coldstream serve {base} -- --enable-lora --lora-modules" in err
    command.process(*arguments, str(tmp_path / "bare"), *port, "--hf-config-path", "org/base", code=3)


@pytest.mark.parametrize("flag", ["--tensor-parallel-size", "-tp"])
def test_vllm_s_flags_in_the_wrong_place(flag: str, tmp_path: Path) -> None:
    """coldstream serve org/model --tensor-parallel-size 2"""
    command = Command(None, "", cwd=tmp_path)
    _, err = command.run("serve", "org/model", flag, "2", code=2)
    assert "hint:  the engine's flags follow `--`: coldstream serve MODEL -- --tensor-parallel-size" in err
    _, err = command.run("list", flag, "2", code=2)
    assert "vLLM" not in err


def test_the_child_s_exit_code_and_words_pass_through(
    rclone: S3Server, files: dict[str, bytes], program: str, tmp_path: Path
) -> None:
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    command.run("upload", str(write_model(tmp_path / "model", files)), "--as", "org/model")
    out, _ = command.process("serve", "org/model", "--vllm", program, "--", "--port", str(free_port()), code=3)
    assert "given: serve" in out
    assert "loads keys: \n" in out, "it knows where to ask, and has no key"


def test_a_model_is_resolved_once(server: RangedServer, files: dict[str, bytes], program: str, tmp_path: Path) -> None:
    """coldstream serve URL: the stream and the folder are of one checkpoint."""
    command = Command(None, "", cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    command.process("serve", f"{server.url}/m", "--vllm", program, "--", "--port", str(free_port()), code=3)
    shards = [f"/m/{path}" for path in files if path.endswith(".safetensors")]
    requests = [seen.path for seen in server.requests if (seen.range or "").startswith("bytes=0-")]
    assert requests.count("/m/coldstream.json") == 1, "the manifest"
    assert [requests.count(shard) for shard in shards] == [1] * len(shards), "the headers"
    # Beside the resolution, the folder's copy of the index is a probe and a download.
    assert requests.count("/m/model.safetensors.index.json") == 3
    assert requests.count("/m/config.json") == 2


def test_the_hub_stands_in_for_a_bucket_that_fails(files: dict[str, bytes], program: str, tmp_path: Path) -> None:
    """coldstream serve org/model --fallback hf"""
    with FakeHub() as hub:
        hub.add_repo("org/model", files)
        command = Command(None, "", hub=hub.endpoint, cwd=tmp_path)
        command.environ |= {
            "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"),
            "COLDSTREAM_STORE": (tmp_path / "nothing").as_uri(),
            "COLDSTREAM_RETRY_SECONDS": "1",
        }
        (tmp_path / "nothing").mkdir()
        _, err = command.process("serve", "org/model", "--vllm", program, "--", "--port", str(free_port()), code=10)
        assert "error:" in err
        out, err = command.process(
            "serve", "org/model", "--vllm", program, "--fallback", "hf", "--", "--port", str(free_port()), code=3
        )
    assert "streaming from Hugging Face instead" in err
    assert "--served-model-name org/model" in out
