"""The fake Hub, driven by the real ``huggingface_hub`` and, for bytes and faults, by hand."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import (
    HfApi,
    close_session,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from tests.servers import hub as hub_module
from tests.servers.hub import FakeHub, parse_range

REPO = "org/model"
WEIGHTS = bytes(range(256)) * 4096
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": WEIGHTS,
    "onnx/model.bin": b"tiny, yet in LFS by its name",
    "onnx/notes.txt": b"",
}


@pytest.fixture(autouse=True)
def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the library off this user's caches, tokens, proxies and off the Xet protocol.

    It reads its environment at import, which may have been long ago, hence the constants.
    """
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    close_session()
    yield
    close_session()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the library wait no time between its tries, and tell how long it wanted to."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        running.add_repo(REPO, FILES)
        yield running


def api(hub: FakeHub, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def download(hub: FakeHub, path: str, token: str | bool = False, revision: str = "main") -> bytes:
    found = hf_hub_download(REPO, path, endpoint=hub.endpoint, token=token, revision=revision)
    return Path(found).read_bytes()


def link(hub: FakeHub, path: str = "model.safetensors") -> str:
    """Return the signed link to a file on the CDN."""
    url = hf_hub_url(REPO, path, endpoint=hub.endpoint)
    return get_hf_file_metadata(url, token=False).location


def fetch(
    url: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[http.client.HTTPResponse, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", headers=headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_model_info_names_the_commit_and_its_files(hub: FakeHub) -> None:
    info = api(hub).model_info(REPO, files_metadata=True)
    assert info.id == REPO
    assert info.sha is not None
    assert len(info.sha) == 40
    assert (info.private, info.gated) == (False, False)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert set(siblings) == set(FILES)
    weights = siblings["model.safetensors"].lfs
    assert weights is not None
    assert weights.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert siblings["config.json"].lfs is None


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_tree_is_the_same_on_pages_of_any_size(page_size: int) -> None:
    with FakeHub(page_size=page_size) as hub:
        hub.add_repo(REPO, FILES)
        entries = list(api(hub).list_repo_tree(REPO, recursive=True))
        pages = len(hub.requests)
    assert pages == -(-5 // page_size)
    assert [e.path for e in entries if isinstance(e, RepoFolder)] == ["onnx"]
    files = {e.path: e for e in entries if isinstance(e, RepoFile)}
    assert {path: e.size for path, e in files.items()} == {p: len(b) for p, b in FILES.items()}
    # The id of the empty blob is the same in every git repository.
    assert files["onnx/notes.txt"].blob_id == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    tiny = files["onnx/model.bin"].lfs
    assert tiny is not None
    assert tiny.sha256 == hashlib.sha256(FILES["onnx/model.bin"]).hexdigest()
    assert files["config.json"].lfs is None


def test_tree_of_one_folder(hub: FakeHub) -> None:
    assert [e.path for e in api(hub).list_repo_tree(REPO)] == [
        "config.json",
        "model.safetensors",
        "onnx",
    ]
    inside = [e.path for e in api(hub).list_repo_tree(REPO, "onnx")]
    assert inside == ["onnx/model.bin", "onnx/notes.txt"]
    with pytest.raises(EntryNotFoundError):
        list(api(hub).list_repo_tree(REPO, "nowhere"))


def test_metadata_of_small_and_large_files(hub: FakeHub) -> None:
    sha = api(hub).model_info(REPO).sha
    small = get_hf_file_metadata(hf_hub_url(REPO, "config.json", endpoint=hub.endpoint))
    assert (small.commit_hash, small.size) == (sha, len(FILES["config.json"]))
    assert small.location.startswith(hub.endpoint)
    large = get_hf_file_metadata(hf_hub_url(REPO, "model.safetensors", endpoint=hub.endpoint))
    assert (large.commit_hash, large.size) == (sha, len(WEIGHTS))
    assert large.etag == hashlib.sha256(WEIGHTS).hexdigest()
    assert large.location.startswith(hub.cdn_endpoint)
    assert urlsplit(hub.endpoint).hostname != urlsplit(hub.cdn_endpoint).hostname


@pytest.mark.parametrize("path", FILES)
def test_download(hub: FakeHub, path: str) -> None:
    assert download(hub, path) == FILES[path]


def test_snapshot_from_disk_with_redirects_inside_the_hub(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path, content in FILES.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    with FakeHub(resolve_cache=True) as hub:
        hub.add_repo(REPO, {path: source / path for path in FILES})
        found = Path(snapshot_download(REPO, endpoint=hub.endpoint, token=False, max_workers=2))
        assert {path: (found / path).read_bytes() for path in FILES} == FILES
        assert any(r.path.startswith("/api/resolve-cache/") for r in hub.requests)
        assert hub.bytes_sent("model.safetensors", "cdn") == len(WEIGHTS)


def test_disk_and_memory_give_the_same_commit_and_a_changed_file_another(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"one")
    one, two, three = FakeHub(), FakeHub(), FakeHub()
    first = one.add_repo(REPO, {"model.bin": file})
    assert two.add_repo(REPO, {"model.bin": b"one"}) == first
    file.write_bytes(b"three")
    assert three.add_repo(REPO, {"model.bin": file}) != first


def test_old_commits_and_branches_stay_readable(hub: FakeHub) -> None:
    old = api(hub).model_info(REPO).sha
    assert old is not None
    new = hub.add_repo(REPO, {"config.json": b"new"})
    draft = hub.add_repo(REPO, {"config.json": b"draft"}, branch="refs/pr/1")
    assert len({old, new, draft}) == 3
    assert api(hub).model_info(REPO).sha == new
    assert api(hub).model_info(REPO, revision="refs/pr/1").sha == draft
    contents = [download(hub, "config.json", revision=r) for r in (old, "main", "refs/pr/1")]
    assert contents == [FILES["config.json"], b"new", b"draft"]


def test_renamed_repository_redirects(hub: FakeHub) -> None:
    hub.rename_repo(REPO, "company/model")
    assert api(hub).model_info(REPO).id == "company/model"
    assert len(list(api(hub).list_repo_tree(REPO, recursive=True))) == 5
    assert download(hub, "model.safetensors") == WEIGHTS
    response, _ = fetch(f"{hub.endpoint}/api/models/{REPO}")
    location = response.getheader("Location") or ""
    assert (response.status, location.partition("?")[0]) == (307, "/api/models/company/model")


def test_gated_repository(hub: FakeHub) -> None:
    hub.add_repo(REPO, FILES, gated=True)
    hub.known_tokens.add("hf_known")
    hub.accepted_tokens.add("hf_accepted")
    assert api(hub).model_info(REPO).gated == "manual"
    statuses: dict[str | bool, int] = {False: 401, "hf_known": 403}
    for token, status in statuses.items():
        with pytest.raises(GatedRepoError) as error:
            download(hub, "config.json", token)
        assert error.value.response.status_code == status
    assert download(hub, "config.json", "hf_accepted") == FILES["config.json"]


def test_gate_before_the_api() -> None:
    with FakeHub(gate_api=True) as hub:
        hub.add_repo(REPO, FILES, gated="auto")
        with pytest.raises(GatedRepoError):
            api(hub).model_info(REPO)


def test_private_and_missing_repositories_look_alike(hub: FakeHub) -> None:
    hub.add_repo(REPO, FILES, private_token="hf_owner")
    hub.known_tokens.add("hf_known")
    tokens: list[str | bool] = [False, "hf_known"]
    for token in tokens:
        answers = []
        for repo_id in (REPO, "org/missing"):
            with pytest.raises(RepositoryNotFoundError) as error:
                api(hub, token).model_info(repo_id)
            assert not isinstance(error.value, GatedRepoError)
            answers.append((error.value.response.status_code, error.value.server_message))
        assert answers[0] == answers[1]
    assert api(hub, "hf_owner").model_info(REPO).private is True
    assert download(hub, "model.safetensors", "hf_owner") == WEIGHTS


def test_invalid_token_is_not_a_missing_repository(hub: FakeHub) -> None:
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
        api(hub, "hf_stale").model_info(REPO)
    assert not isinstance(error.value, RepositoryNotFoundError)
    assert error.value.response.status_code == 401


def test_unknown_revision_and_unknown_file(hub: FakeHub) -> None:
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info(REPO, revision="nope")
    with pytest.raises(RevisionNotFoundError):
        download(hub, "config.json", revision="f" * 40)
    with pytest.raises(EntryNotFoundError):
        download(hub, "nope.json")


def test_token_does_not_reach_the_cdn(hub: FakeHub) -> None:
    hub.known_tokens.add("hf_known")
    assert download(hub, "model.safetensors", "hf_known") == WEIGHTS
    seen = {record.listener: record.had_authorization for record in hub.requests}
    assert seen == {"hub": True, "cdn": False}


def test_cdn_refuses_and_records_a_token(hub: FakeHub) -> None:
    response, _ = fetch(link(hub), {"Authorization": "Bearer hf_known"})
    assert response.status == 400
    last = hub.requests[-1]
    assert (last.listener, last.status, last.had_authorization) == ("cdn", 400, True)


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("wanted", ["bytes=0-0", "bytes=5-9", "bytes=7-", "bytes=-3", "bytes=2-999999999"])
def test_ranges(hub: FakeHub, path: str, wanted: str) -> None:
    content = FILES[path]
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    expected = content[int(first) : int(last or 10**9) + 1] if first else content[-int(last) :]
    response, body = fetch(link(hub, path), {"Range": wanted})
    assert (response.status, body) == (206, expected)
    start = int(first) if first else len(content) - len(expected)
    span = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
    assert response.getheader("Content-Range") == span
    last_record = hub.requests[-1]
    assert (last_record.range, last_record.bytes_sent) == (wanted, len(expected))


def test_range_outside_the_file(hub: FakeHub) -> None:
    response, _ = fetch(link(hub), {"Range": f"bytes={len(WEIGHTS)}-"})
    assert response.status == 416
    assert response.getheader("Content-Range") == f"bytes */{len(WEIGHTS)}"


def test_parse_range_ignores_what_it_cannot_use() -> None:
    for header in (None, "bytes=-", "bytes=5-2", "bytes=0-1,4-5", "lines=1-2"):
        assert parse_range(header, 10) is None
    for header in ("bytes=10-", "bytes=-0"):
        with pytest.raises(ValueError, match="bytes"):
            parse_range(header, 10)


def test_head_on_the_cdn_sends_no_body_and_keeps_the_connection(hub: FakeHub) -> None:
    parts = urlsplit(link(hub))
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    for method, length in (("HEAD", 0), ("GET", len(WEIGHTS))):
        connection.request(method, f"{parts.path}?{parts.query}")
        opened = connection.sock
        response = connection.getresponse()
        assert response.getheader("Content-Length") == str(len(WEIGHTS))
        assert len(response.read()) == length
        assert connection.sock is opened
    connection.close()


def test_links_expire(hub: FakeHub) -> None:
    good = link(hub)
    assert fetch(good, method="HEAD")[0].status == 200
    assert fetch(good[:-1] + ("0" if good[-1] != "0" else "1"))[0].status == 403
    assert fetch(good.partition("?")[0])[0].status == 403
    hub.faults.expire_links()
    assert fetch(good)[0].status == 403
    hub.faults.link_seconds = 0
    assert fetch(link(hub))[0].status == 403
    hub.faults.clear()
    assert fetch(link(hub))[1] == WEIGHTS


@pytest.mark.skipif(huggingface_hub.__version__.startswith("1."), reason="1.x waits only on the later pages")
def test_rate_limit_is_waited_for(hub: FakeHub, naps: list[float]) -> None:
    hub.faults.rate_limit(2, seconds=7)
    assert len(list(api(hub).list_repo_tree(REPO))) == 3
    assert naps == [8, 8]
    assert [record.status for record in hub.requests] == [429, 429, 200]


def test_rate_limit_reaches_calls_that_do_not_wait(hub: FakeHub) -> None:
    hub.faults.rate_limit(1, seconds=55)
    hub.faults.rate_limit(1, seconds=5, where="resolve")
    with pytest.raises(HfHubHTTPError, match="Retry after 55 seconds"):
        api(hub).model_info(REPO)
    with pytest.raises(HfHubHTTPError, match="'resolvers' rate limit"):
        get_hf_file_metadata(hf_hub_url(REPO, "config.json", endpoint=hub.endpoint))
    assert api(hub).model_info(REPO).id == REPO


def test_failures_are_counted_down_where_they_belong(hub: FakeHub, naps: list[float]) -> None:
    hub.faults.fail(1, status=503, where="cdn")
    hub.faults.fail(1, status=500, where="resolve")
    assert api(hub).model_info(REPO).id == REPO
    with pytest.raises(HfHubHTTPError, match="500"):
        link(hub)
    good = link(hub)
    assert [fetch(good)[0].status for _ in range(2)] == [503, 200]


def test_library_resumes_a_cut_download(hub: FakeHub, naps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    # The library drops a chunk that is cut, and by default its chunks are 10 MB long.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.faults.cut(2, after_bytes=1000)
    assert download(hub, "model.safetensors") == WEIGHTS
    on_cdn = [record for record in hub.requests if record.listener == "cdn"]
    assert [record.range for record in on_cdn] == [None, "bytes=1000-", "bytes=2000-"]
    assert hub.bytes_sent("model.safetensors", "cdn") == len(WEIGHTS)
    assert naps == [1, 1]


def test_cut_file_from_disk_and_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(WEIGHTS)
    hub.add_repo(REPO, {"model.safetensors": file, "config.json": b"0123456789"})
    hub.faults.cut(1, after_bytes=70_000)
    hub.faults.cut(1, after_bytes=3, where="resolve")
    with pytest.raises(http.client.IncompleteRead) as error:
        fetch(link(hub))
    assert error.value.partial == WEIGHTS[:70_000]
    with pytest.raises(http.client.IncompleteRead) as error:
        fetch(link(hub, "config.json"))
    assert error.value.partial == b"012"


@pytest.mark.parametrize("on_disk", [False, True])
def test_corruption_flips_one_byte_of_whole_files_and_ranges(hub: FakeHub, tmp_path: Path, on_disk: bool) -> None:
    if on_disk:
        file = tmp_path / "model.safetensors"
        file.write_bytes(WEIGHTS)
        hub.add_repo(REPO, {"model.safetensors": file})
    hub.faults.corrupt("model.safetensors", 1000)
    hub.faults.corrupt("model.safetensors", len(WEIGHTS) - 1)
    bad = bytearray(WEIGHTS)
    bad[1000] ^= 1
    bad[-1] ^= 1
    url = link(hub)
    assert fetch(url)[1] == bad
    assert fetch(url, {"Range": "bytes=1000-1001"})[1] == bad[1000:1002]
    assert fetch(url, {"Range": "bytes=0-999"})[1] == WEIGHTS[:1000]
    # The library does not verify: a corrupt download is a success to it.
    assert download(hub, "model.safetensors") == bad


def test_ignored_ranges(hub: FakeHub, naps: list[float]) -> None:
    hub.faults.ignore_range(True)
    response, body = fetch(link(hub), {"Range": "bytes=5-9"})
    assert (response.status, body) == (200, WEIGHTS)
    hub.faults.cut(1, after_bytes=1000)
    assert download(hub, "model.safetensors") == WEIGHTS


def test_xet_hashes_are_announced_only_on_request(hub: FakeHub) -> None:
    url = hf_hub_url(REPO, "model.safetensors", endpoint=hub.endpoint)
    assert get_hf_file_metadata(url).xet_file_data is None
    with FakeHub(xet=True) as other:
        other.add_repo(REPO, FILES)
        url = hf_hub_url(REPO, "model.safetensors", endpoint=other.endpoint)
        xet = get_hf_file_metadata(url, endpoint=other.endpoint).xet_file_data
        entries = list(api(other).list_repo_tree(REPO))
    assert xet is not None
    hashes = {e.path: e.xet_hash for e in entries if isinstance(e, RepoFile)}
    assert hashes == {"config.json": None, "model.safetensors": xet.file_hash}


def test_throttle_slows_a_connection_down(hub: FakeHub) -> None:
    url = link(hub)
    hub.faults.throttle = 10 * len(WEIGHTS)
    started = time.monotonic()
    assert fetch(url)[1] == WEIGHTS
    assert time.monotonic() - started >= 0.09


def test_stop_breaks_stalled_and_idle_connections() -> None:
    hub = FakeHub().start()
    hub.add_repo(REPO, FILES)
    idle = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc)
    idle.request("HEAD", f"/api/models/{REPO}")
    assert idle.getresponse().status == 200
    hub.faults.stall(1, seconds=3600)
    stalled = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=10)
    stalled.request("GET", f"/api/models/{REPO}")
    while len(hub.requests) < 2:
        threading.Event().wait(0.001)
    assert hub.requests[-1].status == 0
    before = threading.active_count()
    hub.stop()  # and does not wait for the hour
    assert threading.active_count() <= before - 4
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        stalled.getresponse()
    idle.close()
    stalled.close()


def test_stalled_request_is_answered_in_the_end(hub: FakeHub) -> None:
    hub.faults.stall(1, seconds=0.05, where="api")
    started = time.monotonic()
    assert api(hub).model_info(REPO).id == REPO
    assert time.monotonic() - started >= 0.05


def test_folder_served_by_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "folder/sub").mkdir(parents=True)
    (tmp_path / "folder/sub/config.json").write_bytes(b"{}")
    command = [sys.executable, str(hub_module.__file__), REPO, str(tmp_path / "folder")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        _, body = fetch(f"{endpoint}/api/models/{REPO}")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert [sibling["rfilename"] for sibling in json.loads(body)["siblings"]] == ["sub/config.json"]
