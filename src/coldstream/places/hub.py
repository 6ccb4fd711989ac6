"""Hugging Face as a source: a pinned commit, its files with their hashes, and their bytes by ranges.

The API is spoken by huggingface_hub, whose errors become ours here and nowhere else. Bytes are fetched with urllib3
from the storage host that the Hub redirects to: one look-up per file instead of one per range, no temporary file, and
no token on any host but the Hub's own.

Some files above 50 GB are not served over plain HTTP; the storage answers 400. They come through hf-xet (a dependency
of huggingface_hub), by ranges and into memory like the others.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, ClassVar
from urllib.parse import quote, urljoin, urlsplit

import huggingface_hub
import urllib3
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from coldstream.errors import (
    ColdstreamError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from coldstream.model.manifest import Provenance
from coldstream.model.names import path_fault
from coldstream.model.selection import is_weights
from coldstream.net import trust as https
from coldstream.net.reply import describe_reply, is_page
from coldstream.net.retry import Backoff, Retry, is_retryable_status, retry_after
from coldstream.package import __version__
from coldstream.places.place import Link, Location, ObjectInfo, Piece, RangeReader, fill
from coldstream.places.small_reads import LinkReader
from coldstream.settings import Settings, mask
from coldstream.units import format_bytes

# Signed links expire and are renewed; a link that is refused when it is new will not get better.
_FRESH_LINK_REFUSALS_MAX = 3
_HUB = "https://huggingface.co"
_REDIRECTS_MAX = 5
# What the storage answers for a file that only hf-xet gives (huggingface/xet-core#592).
_TOO_LARGE_STATUSES = {400, 413}
# Each is one request.
_BRANCHES_MAX = 16
_PAGE_BYTES = 4096


class HubSnapshot:
    """One commit of a repository on the Hub. Implements `Snapshot`; thread-safe."""

    pins_by_etag = False

    def __init__(
        self,
        repo: str,
        *,
        revision: str | None = None,
        settings: Settings,
        retry: Retry | None = None,
        connections: int = 10,
    ) -> None:
        """Pins the commit: asks the Hub what `revision` (a branch, tag or commit; "main") is now.

        Raises:
            UsageError: `repo` is not a repository's name.
            NotFoundError: No such repository or revision, or it is private and the token may not see it.
            CredentialsError: It is gated, or the token is invalid.
            UnavailableError: The Hub does not answer.
        """
        self.repo, self.revision = repo, revision or "main"
        self.retry = retry or Retry(Backoff(give_up_seconds=settings.retry_seconds))
        self._endpoint = (settings.get("HF_ENDPOINT") or _HUB).rstrip("/")
        self._token, self._token_origin = hub_token(settings)
        self._api = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="coldstream")
        self._reached = False
        self._links: dict[str, str] = {}
        self._xet_data: dict[str, Any] = {}  # path to huggingface_hub's XetFileData
        self._by_xet: set[str] = set()
        self._sizes: Mapping[str, int] | None = None
        self._links_lock = threading.Lock()
        self._xet = _Xet(self._headers)
        self._pools = https.connections(connections)
        self._reader = LinkReader(self.retry, forbidden="check HF_TOKEN, and that its owner may read the model")
        info = self._ask(lambda: self._api.model_info(repo, revision=self.revision, timeout=https.READ_SECONDS))
        if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise IntegrityError(f"{self._endpoint} gives {repo} no commit", hint="check HF_ENDPOINT")
        self.commit = info.sha
        self.uri = f"hf://{repo}"

    def __repr__(self) -> str:
        return f"HubSnapshot({self.repo}@{self.commit} at {self._endpoint})"

    @property
    def label(self) -> str:
        return f"{self.repo} @ {self.commit[:7]}"

    @property
    def provenance(self) -> Provenance:
        return Provenance(kind="hub", repo=self.repo, commit=self.commit, revision=self.revision)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        def listed() -> list[ObjectInfo]:
            tree = self._api.list_repo_tree(self.repo, recursive=True, revision=self.commit)
            return [_object_info(entry, f"{self.repo} on the Hub") for entry in tree if hasattr(entry, "size")]

        infos = sorted(self._ask(listed), key=lambda info: info.key)
        self._sizes = {info.key: info.size for info in infos}
        return iter([info for info in infos if info.key.startswith(prefix)])

    def branches_with_weights(self) -> Sequence[str]:
        def branches() -> list[str]:
            return [branch.name for branch in self._api.list_repo_refs(self.repo).branches]

        def has_weights(branch: str) -> bool:
            tree = self._api.list_repo_tree(self.repo, revision=branch)
            return any(is_weights(entry.path) for entry in tree)

        # It is only a hint to an error.
        try:
            others = [branch for branch in self._ask(branches) if branch != self.revision]
            return [branch for branch in others[:_BRANCHES_MAX] if self._ask(partial(has_weights, branch))]
        except ColdstreamError:
            return ()

    def get(self, key: str, *, if_match: str | None = None, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        size = self._size(key)
        if bytes_max is not None and size > bytes_max:
            raise IntegrityError(f"{self.repo}/{key} has {size} bytes; at most {bytes_max} are read")
        buffer = bytearray(size)
        self.read_into(key, 0, memoryview(buffer))
        return bytes(buffer), ObjectInfo(key=key, size=size)

    def read_into(
        self,
        key: str,
        start: int,
        buffer: memoryview,
        *,
        if_match: str | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        refusals = 0

        def count(received: int) -> None:
            nonlocal refusals
            refusals = 0
            if on_read:
                on_read(received)

        @contextmanager
        def by_http(first: int, stop: int) -> Iterator[RangeReader | None]:
            """The range's response; None when this file comes only through hf-xet."""
            nonlocal refusals
            link = self._link(key)
            with self._opened(key, link, first, stop) as response:
                exhausted = refusals == _FRESH_LINK_REFUSALS_MAX
                if self._wants_xet(key, response.status, links_exhausted=exhausted):
                    self._by_xet.add(key)
                    yield None
                    return
                if response.status in {401, 403} and not exhausted:
                    refusals += 1
                    self._forget(key, link)
                    raise UnavailableError(f"{self.repo}/{key}: the signed link has expired", retry_after_seconds=0.0)
                self._check(key, response, first, stop)
                yield response

        @contextmanager
        def open_range(done: int) -> Iterator[RangeReader]:
            first, stop = start + done, start + len(buffer)
            if key not in self._by_xet:
                with by_http(first, stop) as response:
                    if response is not None:
                        yield response
                        return
            yield _Pieces(self._xet_pieces(key, first, stop))

        fill(buffer, open_range, retry=self.retry, where=f"{self.repo}/{key}", on_read=count)

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        try:
            return self._reader.read_piece(self.location(key), start, stop, etag=etag, where=where)
        except CredentialsError:
            # The link may have expired since the Hub gave it.
            return self._reader.read_piece(self.location(key, renew=True), start, stop, etag=etag, where=where)

    def locate(self, key: str) -> Location:
        return Location(*self.location(key))

    def renew(self, key: str, *, where: str) -> Link:
        return self._reader.follow(self.location(key, renew=True), where=where)

    def session(self) -> AbstractContextManager[object]:
        return self._reader

    def location(self, key: str, *, renew: bool = False) -> Link:
        """Where a file's bytes are, for readers of their own, and the headers to send there.

        Args:
            key: Of a file.
            renew: Ask the Hub again, because the last link was refused: signed links expire.
        """
        if renew:
            with self._links_lock:
                self._links.pop(key, None)
        link = self._link(key)
        return link, tuple((name, value) for name, value in self._headers(link).items() if name == "Authorization")

    def _size(self, key: str) -> int:
        if self._sizes is None:
            self.list("")
        size = (self._sizes or {}).get(key)
        if size is None:
            raise NotFoundError(f"{self.repo} @ {self.commit[:7]} has no file {key}", target=f"{self.uri}/{key}")
        return size

    def _wants_xet(self, key: str, status: int, *, links_exhausted: bool) -> bool:
        """Whether a refused file shall come through hf-xet.

        Raises:
            UnavailableError: It would have to, and that is switched off or not installed.
        """
        too_large = status in _TOO_LARGE_STATUSES
        if not (too_large or (status in {401, 403} and links_exhausted)) or key not in self._xet_data:
            return False
        if self._xet.usable:
            return True
        if too_large:
            raise UnavailableError(
                f"{self.repo}/{key} ({format_bytes(self._size(key))}): the Hub serves it only through hf-xet",
                hint="run: pip install hf_xet, and leave HF_HUB_DISABLE_XET unset",
                retryable=False,
            )
        return False

    def _xet_pieces(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """The range's bytes in order, in pieces of whatever size; never more or fewer than asked for."""
        where = f"{self.repo}/{key}"
        left = stop - start
        try:
            for piece in self._xet.pieces(self._xet_data[key], self._size(key), start, stop):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
        except (OSError, RuntimeError, ValueError) as exc:
            if isinstance(exc, ColdstreamError):
                raise
            # What it says may hold a signed link: its type says enough.
            raise UnavailableError(
                f"{where}: hf-xet failed ({type(exc).__name__})",
                hint="run it again; HF_XET_LOG_LEVEL=debug makes hf-xet say more in its logs",
            ) from None
        if left:
            raise UnavailableError(f"{where}: hf-xet gave {stop - start - left} bytes of {stop - start}")

    @contextmanager
    def _opened(self, key: str, link: str, start: int, stop: int) -> Iterator[urllib3.BaseHTTPResponse]:
        """A ranged GET, redirects followed. The connection is reused if all was read, and closed otherwise."""
        where = f"{self.repo}/{key}"
        try:
            for _ in range(_REDIRECTS_MAX):
                response = self._pools(link).request(
                    "GET",
                    link,
                    headers=self._headers(link) | {"Range": f"bytes={start}-{stop - 1}"},
                    preload_content=False,
                    redirect=False,
                    retries=False,
                )
                self._reached = True
                target = response.get_redirect_location()
                if not target:
                    break
                response.close()
                link = self._checked_link(target, base=link)
            else:
                raise UnavailableError(f"{where}: more than {_REDIRECTS_MAX} redirects", retryable=False)
            try:
                yield response
            finally:
                if response.length_remaining:
                    response.close()
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            if isinstance(exc, ColdstreamError):
                raise
            raise self._broken(where, urlsplit(link).hostname or "", exc) from exc

    def _check(self, key: str, response: urllib3.BaseHTTPResponse, start: int, stop: int) -> None:
        """Refuses an answer that is not exactly the range asked for."""
        where = f"{self.repo}/{key}"
        if response.status >= 400:
            raise self._refused(response.status, response.headers, where)
        match = re.match(r"bytes (\d+)-(\d+)/", response.headers.get("Content-Range", ""))
        whole = response.status == 200 and start == 0 and response.headers.get("Content-Length") == str(stop)
        if whole or (match and int(match[1]) == start and int(match[2]) == stop - 1):
            return
        host = urlsplit(response.url or "").hostname or "the server"
        kind, is_empty = response.headers.get("Content-Type"), response.headers.get("Content-Length") == "0"
        if not match and (response.status not in {200, 206} or is_page(kind) or is_empty):
            shown = describe_reply(response.status, kind, response.read(_PAGE_BYTES))
            raise UnavailableError(
                f"{where}: {host} answers {shown} in place of the file's bytes",
                hint="a captive portal or a proxy answers there; check HF_ENDPOINT and HTTPS_PROXY",
            )
        raise UnavailableError(
            f"{where}: {host} ignores ranges",
            hint="a mirror or proxy in between strips the Range header; check HF_ENDPOINT and HTTPS_PROXY",
            retryable=False,
        )

    def _link(self, key: str) -> str:
        """Where the bytes are; asked of the Hub once per file, and again when the answer has expired."""
        with self._links_lock:
            if link := self._links.get(key):
                return link
        url = hf_hub_url(self.repo, key, revision=self.commit, endpoint=self._endpoint)

        def located() -> Any:
            metadata = get_hf_file_metadata(
                url,
                token=self._token or False,
                timeout=https.READ_SECONDS,
                library_name="coldstream",
                endpoint=self._endpoint,
            )
            if metadata.commit_hash is None:
                raise ValueError("no commit: the Hub names it with each file")
            return metadata

        metadata = self._ask(located)
        if metadata.size is not None and metadata.size != self._size(key):
            raise IntegrityError(f"{self.repo}/{key}: {metadata.size} bytes, the listing says {self._size(key)}")
        link = self._checked_link(metadata.location)
        with self._links_lock:
            if metadata.xet_file_data:
                self._xet_data[key] = metadata.xet_file_data
            return self._links.setdefault(key, link)

    def _forget(self, key: str, link: str) -> None:
        with self._links_lock:
            if self._links.get(key) == link:
                del self._links[key]

    def _checked_link(self, link: str, *, base: str = "") -> str:
        try:
            link = urljoin(base, link)
            scheme, host = urlsplit(link).scheme, urlsplit(link).hostname
        except ValueError:
            raise IntegrityError(f"{self.repo}: the Hub redirects to an invalid URL") from None
        if not host or scheme not in {"https", urlsplit(self._endpoint).scheme}:
            raise IntegrityError(f"{self.repo}: the Hub redirects to {scheme}://{host}, which is refused")
        return link

    def _headers(self, link: str) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"coldstream/{__version__}"}
        if self._token and urlsplit(link)[:2] == urlsplit(self._endpoint)[:2]:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _ask(self, question: Callable[[], Any]) -> Any:
        def attempt() -> Any:
            with self._translated():
                answer = question()
            self._reached = True
            return answer

        return self.retry.run(attempt)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ColdstreamError:
            raise
        except HFValidationError as exc:
            raise UsageError(
                f"{self.repo!r} is not a model on the Hub: {str(exc).split(':')[0]}", hint="write it like Qwen/Qwen3-8B"
            ) from exc
        except GatedRepoError as exc:  # before its base, RepositoryNotFoundError
            raise CredentialsError(
                f"{self.repo} is gated and {'this token may not read it' if self._token else 'needs a token'}",
                hint=f"accept its licence on the model's page, then set HF_TOKEN ({self._token_state()})",
            ) from exc
        except DisabledRepoError as exc:
            raise NotFoundError(
                f"{self.repo} is disabled on the Hub, and no token may read it",
                hint=f"{self._endpoint}/{self.repo} may say why; take the model from another place",
            ) from exc
        except RevisionNotFoundError as exc:
            raise NotFoundError(f"{self.repo} has no revision {self.revision!r}", hint="look at --revision") from exc
        except EntryNotFoundError as exc:
            raise NotFoundError(f"{self.repo} @ {self.commit[:7]} lacks a file that it listed") from exc
        except RepositoryNotFoundError as exc:
            raise NotFoundError(
                f"{self.repo} is not on {urlsplit(self._endpoint).hostname}, or is private",
                hint=f"check the spelling; for a private model set HF_TOKEN ({self._token_state()})",
            ) from exc
        except OfflineModeIsEnabled as exc:
            raise UnavailableError("HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE", retryable=False) from exc
        except HfHubHTTPError as exc:
            raise self._answered(exc) from exc
        except Exception as exc:
            error = self._unanswered(exc)
            if error is None:
                raise
            raise error from exc

    def _answered(self, exc: HfHubHTTPError) -> ColdstreamError:
        status = exc.response.status_code if exc.response is not None else 0
        headers = exc.response.headers if exc.response is not None else {}
        kind = headers.get("content-type", "")
        # The Hub's own errors are JSON or plain text; XML is an S3 server's.
        if (is_page(kind) or "xml" in kind.lower()) and 400 <= status < 500 and status not in {401, 403, 429}:
            return self._stranger()
        return self._refused(status, headers, self.repo)

    def _unanswered(self, exc: Exception) -> ColdstreamError | None:
        """The error for an exception of another library; None for one that the server did not cause."""
        # An answer that is not JSON, or not the Hub's, fails somewhere in huggingface_hub; so does a redirect loop.
        if isinstance(exc, (ValueError, KeyError, TypeError, AttributeError)) or "Redirects" in type(exc).__name__:
            return self._stranger()
        # Its HTTP client is httpx in 1.x and httpx2 in 2.x: told apart by their names, not by an import.
        if type(exc).__module__.split(".")[0] in {"httpx", "httpx2", "httpcore", "httpcore2"}:
            return self._broken(self.repo, urlsplit(self._endpoint).hostname or "", exc)
        return None

    def _stranger(self) -> UnavailableError:
        """What answers at the endpoint in place of a Hub: asked once more, since huggingface_hub does not say."""
        url = f"{self._endpoint}/api/models/{quote(self.repo)}"
        try:
            response = self._pools(url).request(
                "GET", url, headers=self._headers(url), preload_content=False, redirect=False, retries=False
            )
            body, kind = response.read(_PAGE_BYTES), response.headers.get("Content-Type")
            response.close()
            shown = describe_reply(response.status, kind, body, location=response.headers.get("Location", ""))
        except urllib3.exceptions.HTTPError:
            shown = "an answer that cannot be read"
        return UnavailableError(
            f"{urlsplit(self._endpoint).netloc.rpartition('@')[2]} does not answer as a Hub: {shown}",
            hint="check HF_ENDPOINT and HTTPS_PROXY; a captive portal, a proxy or a web site may answer there",
            retryable=self._reached,
        )

    def _refused(self, status: int, headers: Mapping[str, str], where: str) -> ColdstreamError:
        if status in {401, 403}:
            return CredentialsError(
                f"{where}: the Hub refuses the token" if self._token else f"{where}: the Hub wants a token",
                hint=f"set HF_TOKEN to a valid one ({self._token_state()})",
            )
        if status == 404:
            return NotFoundError(f"{where} is not on the Hub any more")
        if status == 429:
            return UnavailableError(
                f"{where}: the Hub limits the rate of requests (429)",
                hint="wait some minutes; a token (HF_TOKEN) has higher limits",
                retry_after_seconds=retry_after(headers),
            )
        return UnavailableError(
            f"{where}: the Hub answered {status}",
            hint="see status.huggingface.co" if self._endpoint == _HUB else "check HF_ENDPOINT",
            retryable=is_retryable_status(status),
        )

    def _broken(self, where: str, host: str, exc: Exception) -> UnavailableError:
        # Before anything ever answered, the address or the network is the likelier fault: say so at once.
        if isinstance(exc, urllib3.exceptions.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(exc):
            return UnavailableError(f"{host}: TLS failed", hint="check SSL_CERT_FILE and HTTPS_PROXY", retryable=False)
        if not self._reached:
            return UnavailableError(f"cannot reach {host}", hint="check the network and HF_ENDPOINT", retryable=False)
        return UnavailableError(f"{where}: the connection to {host} broke ({type(exc).__name__})")

    def _token_state(self) -> str:
        return f"now: {self._token_origin}, ends in {mask(self._token)}" if self._token else "now: not set"


def hub_token(settings: Settings) -> tuple[str | None, str]:
    """The token that the Hub is asked with, or None; and where it came from."""
    token = settings.get("HF_TOKEN") or huggingface_hub.get_token()
    return token, settings.origin("HF_TOKEN") or "the token of `hf auth login`"


class _Xet:
    """Streams ranges of files through hf_xet, into memory. Thread-safe.

    It fetches in parallel by itself, in threads of its own. Its buffers, of gigabytes by default, are bounded here; its
    cache on the disk is off by default.
    """

    # A piece may have 64 MiB, so this bounds memory.
    _STREAMS_MAX = 2
    _CONFIG: ClassVar[Mapping[str, object]] = {
        "reconstruction.download_buffer_size": 64_000_000,
        "reconstruction.download_buffer_perfile_size": 32_000_000,
        "reconstruction.download_buffer_limit": 64_000_000,
        "reconstruction.min_prefetch_buffer": 16_000_000,
        # What it gives up on is tried again by our own policy.
        "client.connect_timeout": f"{https.CONNECT_SECONDS}s",
        "client.read_timeout": f"{https.READ_SECONDS}s",
        "client.retry_max_attempts": 2,
        "client.retry_max_duration": f"{https.READ_SECONDS}s",
    }

    def __init__(self, headers: Callable[[str], dict[str, str]]) -> None:
        """Touches nothing.

        Args:
            headers: From a URL to what is sent there; the token goes only to the Hub.
        """
        self._headers = headers
        self._session: Any = None
        self._groups: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._streams = threading.BoundedSemaphore(self._STREAMS_MAX)

    @property
    def usable(self) -> bool:
        """Whether hf_xet is installed and not switched off."""
        return self._module() is not None and not huggingface_hub.constants.HF_HUB_DISABLE_XET

    def pieces(self, data: Any, size: int, start: int, stop: int) -> Iterator[bytes]:
        """`[start, stop)` of the file that `data` (huggingface_hub's XetFileData) names. Raises what hf_xet raises."""
        with self._streams:
            info = self._module().XetFileInfo(data.file_hash, size)
            yield from self._group(data.refresh_route).download_stream(info, start=start, end=stop)

    def _group(self, route: str) -> Any:
        """The connections for what the Hub hands out tokens for at `route`; hf_xet renews these tokens itself."""
        with self._lock:
            if route not in self._groups:
                if self._session is None:
                    module = self._module()
                    self._session = module.XetSession(module.XetConfig().with_config(dict(self._CONFIG)))
                self._groups[route] = self._session.new_download_stream_group(
                    token_refresh_url=route, token_refresh_headers=self._headers(route)
                )
            return self._groups[route]

    @staticmethod
    def _module() -> Any:
        try:
            return importlib.import_module("hf_xet")
        except ImportError:
            return None


class _Pieces:
    """Pieces of bytes as the body of a response."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _object_info(entry: Any, where: str) -> ObjectInfo:
    """Checks one line of the Hub's listing."""
    path = entry.path
    sha256 = entry.lfs.sha256 if entry.lfs else None
    blob_id = None if entry.lfs else entry.blob_id
    sound = (sha256 is None or re.fullmatch(r"[0-9a-f]{64}", sha256)) and (
        blob_id is None or re.fullmatch(r"[0-9a-f]{40}", blob_id)
    )
    if type(entry.size) is not int or entry.size < 0 or not sound or not (sha256 or blob_id):
        raise IntegrityError(f"{where}: the listing of {path} has no size and hash", hint="check HF_ENDPOINT")
    return ObjectInfo(key=path, size=entry.size, sha256=sha256, git_blob_id=blob_id, fault=path_fault(path))
