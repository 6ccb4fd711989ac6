"""A small model Hub and its CDN on two loopback addresses, for tests without a network.

The Hub speaks the part of the Hugging Face Hub's HTTP interface with which ``huggingface_hub``
reads models: model info, the paginated tree and ``resolve``. Large files are redirected with a
signed, expiring link to a second host, the CDN. Faults can be queued while it runs, and every
request is recorded.

    python tests/servers/hub.py REPO_ID FOLDER

serves a folder as one repository and prints the endpoint.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

Where = Literal["api", "resolve", "cdn", "any"]
Source = bytes | Path

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
PIECE = 4 << 20  # bytes handed to the kernel at once: few calls, yet faults and stop() act soon
DATE = "2024-01-01T00:00:00.000Z"  # fixed, so that answers do not differ between runs

_REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_KIND = r"(?P<kind>revision|tree|xet-read-token)"
_API_PATH = re.compile(rf"/api/models/{_REPO}(?:/{_KIND}/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?")
_REFS_PATH = re.compile(rf"/api/models/{_REPO}/refs")
_RESOLVE_PATH = re.compile(rf"/{_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
_CACHE_PATH = re.compile(rf"/api/resolve-cache/models/{_REPO}/(?P<rev>[0-9a-f]{{40}})/(?P<path>.+)")
_CDN_PATH = re.compile(r"/.+?/(?P<oid>[0-9a-f]{64})/(?P<path>.+)")

_digests: dict[tuple[str, int, int, str], str] = {}


def _digest(source: Source, algorithm: str, prefix: bytes = b"") -> str:
    """Hash bytes or a file; a file's digest is kept for as long as its size and mtime stay."""
    if isinstance(source, bytes):
        return hashlib.new(algorithm, prefix + source).hexdigest()
    stat = source.stat()
    key = (str(source.resolve()), stat.st_mtime_ns, stat.st_size, algorithm)
    if key not in _digests:
        digest = hashlib.new(algorithm, prefix)
        with source.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        _digests[key] = digest.hexdigest()
    return _digests[key]


@dataclass(frozen=True)
class Blob:
    """One file's content, as git (small) or LFS (large, then ``sha256`` is set) stores it."""

    source: Source
    size: int
    oid: str
    sha256: str | None = None
    pointer_size: int = 0
    stored_xet_hash: str | None = None

    @classmethod
    def of(cls, path: str, source: Source, lfs_threshold: int) -> Blob:
        """Hash a file; what goes to LFS gets the git id of its pointer file, as on the Hub."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size < lfs_threshold and not path.endswith(LFS_SUFFIXES):
            return cls(source, size, _digest(source, "sha1", b"blob %d\0" % size))
        sha256 = _digest(source, "sha256")
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        pointer = text.encode()
        oid = _digest(pointer, "sha1", b"blob %d\0" % len(pointer))
        return cls(source, size, oid, sha256, len(pointer))

    @property
    def xet_hash(self) -> str:
        """The Xet hash, or a stand-in for it, which is neither the sha256 nor the git id."""
        return self.stored_xet_hash or hashlib.sha256(f"xet:{self.oid}".encode()).hexdigest()


@dataclass(frozen=True)
class Commit:
    """One immutable snapshot of a repository."""

    oid: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    """A model repository: its settings, its commits and where its branches point."""

    repo_id: str
    gated: str | Literal[False] = False
    disabled: bool = False
    private_token: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)


@dataclass
class Record:
    """One request as seen by a listener; ``status`` is 0 until it is answered."""

    listener: Literal["hub", "cdn"]
    method: str
    path: str
    range: str | None
    had_authorization: bool
    status: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True)
class Query:
    """What the handler read from the wire."""

    where: Where
    method: str
    path: str
    query: str
    range: str | None
    authorization: str | None


@dataclass(frozen=True)
class Reply:
    """What the handler is to send: ``length`` bytes of ``body`` from ``start`` on."""

    status: int
    headers: dict[str, str]
    body: Source = b""
    start: int = 0
    length: int = 0
    flips: frozenset[int] = frozenset()


class RefusedError(Exception):
    """Ends the handling of a query with an error reply."""

    def __init__(self, reply: Reply) -> None:
        """Keep the reply to send."""
        super().__init__(reply.status)
        self.reply = reply


def _text(status: int, text: str, kind: str, headers: Mapping[str, str]) -> Reply:
    body = text.encode()
    return Reply(status, {"Content-Type": kind, **headers}, body, length=len(body))


def _json(status: int, value: object, headers: Mapping[str, str] | None = None) -> Reply:
    return _text(status, json.dumps(value), "application/json; charset=utf-8", headers or {})


def _refusal(status: int, message: str, code: str = "", **headers: str) -> RefusedError:
    extra = {"X-Error-Message": message, **{k.replace("_", "-"): v for k, v in headers.items()}}
    if code:
        extra["X-Error-Code"] = code
    return RefusedError(_json(status, {"error": message}, extra))


def _redirect(status: int, location: str, headers: Mapping[str, str]) -> Reply:
    # The body gives the redirect a Content-Length that is not the file's: clients must not use it.
    text = f"Redirecting to {location}"
    return _text(status, text, "text/plain", {"Location": location, **headers})


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (start, length) of a single byte range, or None for the whole file.

    Raises:
        ValueError: The range lies outside the file.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None  # malformed, which RFC 9110 tells servers to ignore
    if start >= size:
        raise ValueError(header)
    return start, stop - start


def _content(blob: Blob, wanted: str | None, headers: dict[str, str], flips: set[int]) -> Reply:
    """Answer with a blob or the range of it that was asked for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    try:
        span = parse_range(wanted, blob.size)
    except ValueError:
        headers["Content-Range"] = f"bytes */{blob.size}"
        return _text(416, "Range Not Satisfiable", "text/plain", headers)
    start, length = span or (0, blob.size)
    if span:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{blob.size}"
    return Reply(206 if span else 200, headers, blob.source, start, length, frozenset(flips))


def _entries(commit: Commit, folder: str, recursive: bool, xet: bool) -> list[dict[str, Any]]:
    """List a folder as the tree endpoint does: in path order, directories included."""
    entries: dict[str, dict[str, Any]] = {}
    for path, blob in commit.files.items():
        entry: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
        if blob.sha256 is not None:
            sizes = {"size": blob.size, "pointerSize": blob.pointer_size}
            entry["lfs"] = {"oid": blob.sha256, **sizes}
            if xet:
                entry["xetHash"] = blob.xet_hash
        entries[path] = entry
        for parent in map(str, list(PurePosixPath(path).parents)[:-1]):
            oid = hashlib.sha1(f"{commit.oid}:{parent}".encode()).hexdigest()
            entries[parent] = {"type": "directory", "oid": oid, "size": 0, "path": parent}
    inside = [path for path in sorted(entries) if not folder or path.startswith(folder + "/")]
    depth = len(PurePosixPath(folder).parts) + 1
    return [entries[p] for p in inside if recursive or len(PurePosixPath(p).parts) == depth]


class Faults:
    """Faults to inject; every method and attribute may be used while the servers run.

    Attributes:
        link_seconds: How long signed links stay valid; zero or less makes dead ones.
        throttle: Bytes per second on each connection, or None for no limit.
    """

    def __init__(self) -> None:
        """Start without any fault."""
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._queue: list[tuple[str, Where, list[float]]] = []
            self._flips: list[tuple[str, int, Where]] = []
            self.link_seconds: float = 3600
            self.throttle: float | None = None
            self.ranges_ignored = False
            self.page_text = ""
            self.link_generation = secrets.token_hex(8)

    def rate_limit(self, n: int, seconds: int = 1, where: Where = "api") -> None:
        """Answer the next n requests with 429 and a RateLimit header."""
        self._add("rate", n, where, seconds)

    def fail(self, n: int, status: int = 503, where: Where = "api") -> None:
        """Answer the next n requests with an error status."""
        self._add("fail", n, where, status)

    def page(self, n: int, text: str, where: Where = "cdn") -> None:
        """Answer the next n requests with 200 and a web page; empty text is an empty answer."""
        self.page_text = text
        self._add("page", n, where, 0)

    def cut(self, n: int, after_bytes: int, where: Where = "cdn") -> None:
        """Close the connection after some body bytes of the next n successful GETs."""
        self._add("cut", n, where, after_bytes)

    def stall(self, n: int, seconds: float, where: Where = "any") -> None:
        """Accept the next n requests and answer them only after a while."""
        self._add("stall", n, where, seconds)

    def corrupt(self, path_suffix: str, offset: int, where: Where = "cdn") -> None:
        """Flip the byte at this offset of a file in everything that is served of it."""
        with self._lock:
            self._flips.append((path_suffix, offset, where))

    def ignore_range(self, ignored: bool = True) -> None:
        """Let the CDN answer ranged GETs with 200 and the whole file."""
        self.ranges_ignored = ignored

    def expire_links(self) -> None:
        """Make every link signed so far invalid, whatever expiry it names."""
        self.link_generation = secrets.token_hex(8)

    def take(self, kind: str, where: Where) -> float | None:
        """Use up one queued fault of this kind, if there is one for this place."""
        with self._lock:
            for index, (queued, place, values) in enumerate(self._queue):
                if queued == kind and place in (where, "any"):
                    value = values.pop()
                    if not values:
                        del self._queue[index]
                    return value
        return None

    def flips(self, path: str, where: Where) -> set[int]:
        """Return the offsets to corrupt in a file."""
        with self._lock:
            places = (where, "any")
            return {at for end, at, place in self._flips if path.endswith(end) and place in places}

    def _add(self, kind: str, n: int, where: Where, value: float) -> None:
        if n > 0:
            with self._lock:
                self._queue.append((kind, where, [value] * n))


def _in_xet(store: Path, blobs: Mapping[str, Blob]) -> dict[str, Blob]:
    """Writes the large files into hf_xet's local store, from which hf_xet reads them back."""
    import hf_xet

    commit = hf_xet.XetSession().new_upload_commit(
        endpoint=f"local://{store}", token="xet-token", token_expiry_unix_secs=1 << 40
    )
    large = {path: blob for path, blob in blobs.items() if blob.sha256}
    for path, blob in large.items():
        content = blob.source if isinstance(blob.source, bytes) else blob.source.read_bytes()
        commit.start_upload_bytes(content, name=path)
    stored = {found.tracking_name: found.xet_info.hash for found in commit.wait_to_finish().uploads.values()}
    return {path: replace(blob, stored_xet_hash=stored.get(path)) for path, blob in blobs.items()}


class FakeHub:
    """A Hub and its CDN, served by threads of this process.

    Attributes:
        faults: What is to go wrong.
        accepted_tokens: Tokens that may read gated repositories.
        known_tokens: Valid tokens without special rights; any other token is answered with 401.
    """

    def __init__(
        self,
        *,
        page_size: int = 1000,
        lfs_threshold: int = 1 << 20,
        hosts: tuple[str, str] = ("127.0.0.1", "127.0.0.2"),
        xet: bool = False,
        xet_store: Path | None = None,
        resolve_cache: bool = False,
        gate_api: bool = False,
    ) -> None:
        """Set up an empty Hub.

        Args:
            page_size: Entries on one page of a tree.
            lfs_threshold: Size from which files are stored in LFS whatever their name.
            hosts: Addresses of the Hub and of the CDN.
            xet: Announce Xet hashes, although nothing here speaks that protocol.
            xet_store: Keep the large files in this folder too, in hf_xet's own format, and announce where they are.
            resolve_cache: Redirect small files once within the Hub, as the real one does.
            gate_api: Gate model info and trees too; the real Hub leaves them public.
        """
        self.faults = Faults()
        self.accepted_tokens: set[str] = set()
        self.known_tokens: set[str] = set()
        self.stopping = threading.Event()
        self._page_size, self._lfs_threshold, self._hosts = page_size, lfs_threshold, hosts
        self._xet, self._resolve_cache = xet or xet_store is not None, resolve_cache
        self._xet_store = xet_store
        self._gate_api = gate_api
        self._repos: dict[str, Repo] = {}
        self._renamed: dict[str, str] = {}
        self._blobs: dict[str, Blob] = {}
        self._records: list[Record] = []
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._servers: list[_Server] = []

    def __enter__(self) -> FakeHub:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> FakeHub:
        """Listen on ports chosen by the kernel."""
        self.stopping.clear()
        self._servers = [_Server(self, "hub", self._hosts[0]), _Server(self, "cdn", self._hosts[1])]
        return self

    def stop(self) -> None:
        """Break all connections and join all threads."""
        self.stopping.set()
        while self._servers:
            self._servers.pop().close()

    @property
    def endpoint(self) -> str:
        """The Hub's URL, without a slash at the end."""
        return self._servers[0].url

    @property
    def cdn_endpoint(self) -> str:
        """The CDN's URL, without a slash at the end."""
        return self._servers[1].url

    @property
    def requests(self) -> list[Record]:
        """Copies of the records so far, in order of arrival."""
        with self._lock:
            return [replace(record) for record in self._records]

    def bytes_sent(self, path_suffix: str = "", listener: str | None = None) -> int:
        """Add up the body bytes sent for paths with this ending."""
        found = [r for r in self.requests if r.path.endswith(path_suffix)]
        return sum(r.bytes_sent for r in found if listener in (None, r.listener))

    def clear_requests(self) -> None:
        """Forget the records so far."""
        with self._lock:
            self._records.clear()

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, Source],
        *,
        gated: bool | Literal["auto", "manual"] = False,
        private_token: str | None = None,
        disabled: bool = False,
        branch: str = "main",
        message: str = "Add files",
    ) -> str:
        """Commit a full set of files to a branch, creating both when missing.

        Settings of an existing repository stay unless new ones are given.

        Returns:
            The commit's 40 hex digits, which depend on nothing but contents and history.
        """
        blobs = {p: Blob.of(p, s, self._lfs_threshold) for p, s in sorted(files.items())}
        if self._xet_store:
            blobs = _in_xet(self._xet_store, blobs)
        with self._lock:
            repo = self._repos.setdefault(repo_id, Repo(repo_id))
            repo.gated = ("manual" if gated is True else gated) or repo.gated
            repo.private_token = private_token or repo.private_token
            repo.disabled = disabled or repo.disabled
            parent = repo.branches.get(branch)
            content = [(path, blob.oid) for path, blob in blobs.items()]
            oid = hashlib.sha1(repr((repo_id, parent, message, content)).encode()).hexdigest()
            repo.commits[oid] = Commit(oid, blobs)
            repo.branches[branch] = oid
            self._blobs.update({blob.sha256: blob for blob in blobs.values() if blob.sha256})
        return oid

    def rename_repo(self, old: str, new: str) -> None:
        """Move a repository; its old name answers with a redirect from now on."""
        with self._lock:
            self._repos[new] = replace(self._repos.pop(old), repo_id=new)
            self._renamed[old] = new

    def record(self, record: Record) -> None:
        """Keep the record of a request that has just arrived."""
        with self._lock:
            self._records.append(record)

    def answer(self, query: Query) -> Reply:
        """Decide on a reply; nothing is sent or received here."""
        try:
            if query.where == "cdn" and query.authorization is not None:
                raise _refusal(400, "Only one auth mechanism allowed")
            self._answer_with_fault(query)
            if query.where == "cdn":
                return self._answer_cdn(query)
            match = _CACHE_PATH.fullmatch(query.path)
            if match or (match := _RESOLVE_PATH.fullmatch(query.path)):
                return self._answer_resolve(query, match)
            if match := _REFS_PATH.fullmatch(query.path):
                return self._answer_refs(query, match)
            if match := _API_PATH.fullmatch(query.path):
                return self._answer_api(query, match)
            raise _refusal(404, "Sorry, we can't find the page you are looking for.")
        except RefusedError as refused:
            return refused.reply

    def _answer_with_fault(self, query: Query) -> None:
        if (seconds := self.faults.take("rate", query.where)) is not None:
            bucket = "resolvers" if query.where == "resolve" else query.where
            policy = f'"fixed window";"{bucket}";q=500;w=300'
            limit = {"RateLimit": f'"{bucket}";r=0;t={seconds:.0f}', "RateLimit_Policy": policy}
            raise _refusal(429, "You have been rate limited", "", **limit)
        if (status := self.faults.take("fail", query.where)) is not None:
            raise _refusal(int(status), "Injected failure")
        if self.faults.take("page", query.where) is not None:
            raise RefusedError(_text(200, self.faults.page_text, "text/html; charset=utf-8", {"ETag": '"5f1"'}))

    def _token(self, query: Query) -> str | None:
        """Return the token sent along; an unknown one is rejected even for public models."""
        token = (query.authorization or "").removeprefix("Bearer ") or None
        private = {repo.private_token for repo in list(self._repos.values())}
        if token and token not in self.known_tokens | self.accepted_tokens | private:
            raise _refusal(401, "Invalid credentials in Authorization header")
        return token

    def _repo(self, query: Query, asked: str, token: str | None) -> Repo:
        """Return a repository that the token may see, or redirect to its new name."""
        name = asked
        while name not in self._repos and name in self._renamed:
            name = self._renamed[name]
        repo = self._repos.get(name)
        if repo is None or repo.private_token not in (None, token):
            if token:
                raise _refusal(404, "Repository not found", "RepoNotFound")
            # The real Hub sends no code with this 401. The library makes up for that, but only
            # for https URLs, so that without the code its error here would be another one.
            raise _refusal(401, "Invalid username or password.", "RepoNotFound")
        if repo.disabled:
            raise _refusal(403, "Access to this resource is disabled.")
        if name != asked:
            location = query.path.replace(f"/{asked}", f"/{name}", 1)
            rest = f"?{query.query}" if query.query else ""
            raise RefusedError(_redirect(307, location + rest, {}))
        return repo

    def _find(self, query: Query, match: re.Match[str], gate: bool) -> tuple[Repo, Commit]:
        """Return repository and commit as far as the sender of the query may read them."""
        token = self._token(query)
        repo = self._repo(query, match["repo"], token)
        allowed = token is not None and token in {*self.accepted_tokens, repo.private_token}
        if gate and repo.gated and not allowed:
            why = f"Access to model {repo.repo_id} is restricted"
            if token:
                raise _refusal(403, f"{why} and you are not in the authorized list.", "GatedRepo")
            raise _refusal(401, f"{why}. You must be authenticated to access it.", "GatedRepo")
        rev = unquote(match["rev"] or "main")
        commit = repo.commits.get(repo.branches.get(rev, rev))
        if commit is None:
            raise _refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return repo, commit

    def _answer_api(self, query: Query, match: re.Match[str]) -> Reply:
        repo, commit = self._find(query, match, self._gate_api)
        params = dict(parse_qsl(query.query))
        if match["kind"] == "tree":
            return self._answer_tree(query.path, params, commit, unquote(match["path"] or ""))
        if match["kind"] == "xet-read-token":
            token = {"accessToken": "xet-token", "exp": int(time.time()) + 3600, "casUrl": f"local://{self._xet_store}"}
            return _json(200, token)
        return _json(200, _model_info(repo, commit, params.get("blobs") == "true"))

    def _answer_refs(self, query: Query, match: re.Match[str]) -> Reply:
        repo = self._repo(query, match["repo"], self._token(query))
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in repo.branches.items()
        ]
        return _json(200, {"branches": branches, "converts": [], "tags": []})

    def _answer_tree(self, path: str, params: dict[str, str], commit: Commit, folder: str) -> Reply:
        entries = _entries(commit, folder, params.get("recursive") == "true", self._xet)
        if folder and not entries:
            raise _refusal(404, f"{folder} does not exist", "EntryNotFound")
        try:
            after = base64.urlsafe_b64decode(params.get("cursor", "")).decode()
            size = min(self._page_size, int(params.get("limit", self._page_size)))
        except ValueError:
            raise _refusal(400, "Invalid cursor or limit") from None
        rest = [entry for entry in entries if entry["path"] > after]
        page, headers = rest[:size], {}
        if len(rest) > size:
            cursor = base64.urlsafe_b64encode(page[-1]["path"].encode()).decode()
            more = urlencode({**params, "limit": size, "cursor": cursor})
            headers["Link"] = f'<{self.endpoint}{path}?{more}>; rel="next"'
        return _json(200, page, headers)

    def _answer_resolve(self, query: Query, match: re.Match[str]) -> Reply:
        repo, commit = self._find(query, match, True)
        path = unquote(match["path"])
        blob = commit.files.get(path)
        if blob is None:
            raise _refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.sha256 is None:
            if self._resolve_cache and match.re is _RESOLVE_PATH:
                location = f"/api/resolve-cache/models/{repo.repo_id}/{commit.oid}/{quote(path)}"
                return _redirect(307, location, {**headers, "X-Linked-Etag": headers["ETag"]})
            return _content(blob, query.range, headers, self.faults.flips(path, "resolve"))
        headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        if self._xet:
            route = f"{self.endpoint}/api/models/{repo.repo_id}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": blob.xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
        return _redirect(302, self._signed(f"/{repo.repo_id}/{blob.sha256}/{path}"), headers)

    def _signature(self, path: str, expires: str) -> str:
        message = f"{path}?{expires}?{self.faults.link_generation}".encode()
        return hmac.new(self._secret, message, "sha256").hexdigest()

    def _signed(self, path: str) -> str:
        expires = str(int(time.time() + self.faults.link_seconds))
        proof = urlencode({"Expires": expires, "Signature": self._signature(path, expires)})
        return f"{self.cdn_endpoint}{quote(path)}?{proof}"

    def _answer_cdn(self, query: Query) -> Reply:
        params = dict(parse_qsl(query.query))
        expires = params.get("Expires", "0")
        wanted = self._signature(unquote(query.path), expires)
        signed = hmac.compare_digest(wanted.encode(), params.get("Signature", "").encode())
        match = _CDN_PATH.fullmatch(unquote(query.path))
        # The expiry is only parsed once the signature vouches for it.
        if match is None or not signed or time.time() >= int(expires):
            raise _refusal(403, "Access denied")
        blob = self._blobs[match["oid"]]
        asked = None if self.faults.ranges_ignored else query.range
        etag = {"ETag": f'"{match["oid"]}"'}
        return _content(blob, asked, etag, self.faults.flips(match["path"], "cdn"))


def _model_info(repo: Repo, commit: Commit, blobs: bool) -> dict[str, object]:
    siblings: list[dict[str, object]] = [{"rfilename": path} for path in commit.files]
    for sibling, blob in zip(siblings, commit.files.values(), strict=True) if blobs else ():
        sibling |= {"blobId": blob.oid, "size": blob.size}
        if blob.sha256 is not None:
            sizes = {"size": blob.size, "pointerSize": blob.pointer_size}
            sibling["lfs"] = {"sha256": blob.sha256, **sizes}
    return {
        "_id": hashlib.sha1(repo.repo_id.encode()).hexdigest()[:24],
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.repo_id.partition("/")[0],
        "sha": commit.oid,
        "lastModified": DATE,
        "createdAt": DATE,
        "private": repo.private_token is not None,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "library_name": "transformers",
        "tags": ["transformers", "safetensors"],
        "siblings": siblings,
        "spaces": [],
        "usedStorage": sum(blob.size for blob in commit.files.values()),
    }


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body, sent apart, wait for a delayed ACK

    def do_GET(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        asked, proof = self.headers.get("Range"), self.headers.get("Authorization")
        query = Query(self._where(parts.path), self.command, parts.path, parts.query, asked, proof)
        listener, path = self.server.listener, unquote(parts.path)
        record = Record(listener, self.command, path, asked, proof is not None)
        hub.record(record)
        try:
            if (seconds := hub.faults.take("stall", query.where)) is not None:
                self._pause(seconds)
            reply = hub.answer(query)
            record.status = reply.status
            self._send(query, reply, record)
        except ConnectionError:
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: the records tell more."""

    def _where(self, path: str) -> Where:
        if self.server.listener == "cdn":
            return "cdn"
        resolves = _RESOLVE_PATH.fullmatch(path) or _CACHE_PATH.fullmatch(path)
        return "resolve" if resolves else "api"

    def _pause(self, seconds: float) -> None:
        if self.server.hub.stopping.wait(seconds):
            raise ConnectionAbortedError

    def _send(self, query: Query, reply: Reply, record: Record) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(reply.length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if query.method == "HEAD":
            return
        length = reply.length
        if reply.status in (200, 206):
            cut = self.server.hub.faults.take("cut", query.where)
            if cut is not None and cut < length:
                length, self.close_connection = int(cut), True
        opened = reply.body.open("rb") if isinstance(reply.body, Path) else None
        with opened or contextlib.nullcontext():
            for start, size in self._pieces(reply, length):
                self._send_piece(reply, opened, start, size, record)

    def _pieces(self, reply: Reply, length: int) -> Iterator[tuple[int, int]]:
        """Split a body so that each byte to corrupt makes a piece of its own."""
        position, stop = reply.start, reply.start + length
        while position < stop:
            throttle = self.server.hub.faults.throttle
            size = min(stop - position, max(1, int(throttle / 20)) if throttle else PIECE)
            ahead = [at - position for at in reply.flips if at >= position]
            size = min([size, *(distance or 1 for distance in ahead)])
            if throttle:
                self._pause(size / throttle)
            yield position, size
            position += size

    def _send_piece(self, reply: Reply, opened: BinaryIO | None, start: int, size: int, record: Record) -> None:
        # Counted before it is sent: a client that has the bytes must find them in the record.
        record.bytes_sent += size
        try:
            if opened is not None and start not in reply.flips:
                if self.connection.sendfile(opened, start, size) < size:
                    raise ConnectionAbortedError("the file has become shorter")
                return
            if opened is not None:
                opened.seek(start)
                data = opened.read(1)
            else:
                assert isinstance(reply.body, bytes)
                data = reply.body[start : start + size]
            self.connection.sendall(bytes([data[0] ^ 1]) if start in reply.flips else data)
        except OSError:
            record.bytes_sent -= size
            raise


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 refuses bursts of parallel downloads

    def __init__(self, hub: FakeHub, listener: Literal["hub", "cdn"], host: str) -> None:
        self.hub, self.listener = hub, listener
        self._live: dict[threading.Thread, socket.socket] = {}
        super().__init__((host, 0), _Handler)
        self.url = f"http://{host}:{self.server_address[1]}"
        # The poll interval bounds how long close() waits.
        self._loop = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._loop.start()

    def server_bind(self) -> None:
        # HTTPServer would ask the resolver for the host's name, which takes long without a network.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        arguments = (request, client_address)
        thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self._live[thread] = request
        thread.start()

    def _run(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            self._live.pop(threading.current_thread(), None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: clients that hang up are part of the tests."""

    def close(self) -> None:
        """Stop listening, break what is connected and join the threads."""
        self.shutdown()
        self.server_close()
        self._loop.join()
        for thread, connection in list(self._live.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


def main() -> None:
    """Serve a folder as one repository until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Serve a folder as a repository of a fake Hub.")
    parser.add_argument("repo_id")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with FakeHub() as hub:
        hub.add_repo(arguments.repo_id, files)
        print(hub.endpoint, flush=True)
        done.wait()


if __name__ == "__main__":
    main()
