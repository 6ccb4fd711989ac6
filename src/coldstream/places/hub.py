"""Hugging Face as a source: a pinned commit, its files with their hashes, and their bytes by ranges.

huggingface_hub speaks the API; its errors are translated here and nowhere else. Bytes come from the storage host that
the Hub redirects to: one look-up per file instead of one per range, no temporary file, and the token goes only to the
Hub's own host.

The storage answers 400 for some files above 50 GB. They come through hf-xet (a dependency of huggingface_hub), by
ranges and into memory like the others.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import huggingface_hub
import urllib3
from huggingface_hub import HfApi, hf_hub_url
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
from coldstream.net.http_message import FetchError, parse_target
from coldstream.net.pool import CONNECT_SECONDS, READ_SECONDS
from coldstream.net.reply import describe_reply, is_page
from coldstream.net.retry import Backoff, Retry, is_retryable_status, retry_after
from coldstream.places.place import Link, Location, ObjectInfo, OnBytes, Piece, RangeReader, check_small, fill
from coldstream.places.small_reads import LinkReader, unanswered
from coldstream.settings import Settings, mask
from coldstream.units import format_bytes

# Signed links expire and are renewed; a link that is refused when it is new will not get better.
_FRESH_LINK_REFUSALS_MAX = 3
_HUB = "https://huggingface.co"
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
        """Pins the present commit of `revision` (a branch, tag or commit).

        Raises:
            UsageError: `repo` is not a repository's name.
            NotFoundError: No such repository or revision, or it is private and the token may not see it.
            CredentialsError: It is gated, or the token is invalid.
        """
        self.repo, self.revision = repo, revision or "main"
        self.retry = retry or Retry(Backoff(give_up_seconds=settings.retry_seconds))
        self._endpoint = (settings.get("HF_ENDPOINT") or _HUB).rstrip("/")
        self._token, self._token_origin = hub_token(settings)
        self._api = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="coldstream")
        self._metadata: dict[str, Any] = {}  # path to huggingface_hub's HfFileMetadata, with the newest link
        self._by_xet: set[str] = set()
        self._sizes: Mapping[str, int] | None = None
        self._xet = _Xet(self._headers)
        self._reader = LinkReader(
            self.retry,
            forbidden=f"check HF_TOKEN ({self._token_state()}), and that its owner may read the model",
            connections=connections,
        )
        info = self._ask(lambda: self._api.model_info(repo, revision=self.revision, timeout=READ_SECONDS))
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
        def has_weights(branch: str) -> bool:
            return any(is_weights(entry.path) for entry in self._api.list_repo_tree(self.repo, revision=branch))

        # It is only a hint to an error.
        try:
            branches = [branch.name for branch in self._ask(lambda: self._api.list_repo_refs(self.repo)).branches]
            others = [branch for branch in branches if branch != self.revision][:_BRANCHES_MAX]
            return [branch for branch in others if self._ask(partial(has_weights, branch))]
        except ColdstreamError:
            return ()

    def get(self, key: str, *, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        size = self._size(key)
        check_small(f"{self.repo}/{key}", size, bytes_max)
        buffer = bytearray(size)
        self.read_into(key, 0, memoryview(buffer))
        return bytes(buffer), ObjectInfo(key=key, size=size)

    def read_into(
        self, key: str, start: int, buffer: memoryview, *, if_match: str | None = None, on_read: OnBytes | None = None
    ) -> None:
        where, stop, refusals = f"{self.repo}/{key}", start + len(buffer), 0
        refused: str | None = None

        def count(received: int) -> None:
            nonlocal refusals
            refusals = 0
            if on_read:
                on_read(received)

        @contextmanager
        def open_range(done: int) -> Iterator[RangeReader]:
            nonlocal refusals, refused
            first, response = start + done, None
            with ExitStack() as stack:
                if key not in self._by_xet:
                    link, headers = self.location(key, refused=refused)
                    stack.enter_context(self._reader.translated(link, where))
                    try:
                        opened = self._reader.pool.open_range(link, first, stop, headers=headers, exact=True)
                        response = stack.enter_context(opened).response
                    except FetchError as exc:
                        exhausted = refusals == _FRESH_LINK_REFUSALS_MAX
                        if self._wants_xet(key, exc.status or 0, links_exhausted=exhausted):
                            self._by_xet.add(key)
                        elif exc.status not in {401, 403} or exhausted:
                            raise
                        else:
                            refusals, refused = refusals + 1, link
                            raise UnavailableError(
                                f"{where}: the signed link has expired", retry_after_seconds=0.0
                            ) from exc
                yield _Pieces(self._xet_pieces(key, first, stop)) if response is None else response

        fill(buffer, open_range, retry=self.retry, where=where, on_read=count)

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        link = self.location(key)
        try:
            return self._reader.read_piece(link, start, stop, etag=etag, where=where)
        except CredentialsError:
            # The link may have expired.
            fresh = self.location(key, refused=link[0])
            return self._reader.read_piece(fresh, start, stop, etag=etag, where=where)

    def locate(self, key: str) -> Location:
        return Location(*self.location(key))

    def renew(self, key: str, *, where: str) -> Link:
        link = self._fresh_link(key)
        return self._reader.follow((link, tuple(self._headers(link).items())), where=where)

    def session(self) -> AbstractContextManager[object]:
        return self._reader

    def _size(self, key: str) -> int:
        if self._sizes is None:
            self.list("")
        size = (self._sizes or {}).get(key)
        if size is None:
            raise NotFoundError(f"{self.repo} @ {self.commit[:7]} has no file {key}", target=f"{self.uri}/{key}")
        return size

    def _wants_xet(self, key: str, status: int, *, links_exhausted: bool) -> bool:
        """Whether to get a refused file through hf-xet; raises UnavailableError if that is the only way and is off."""
        too_large = status in _TOO_LARGE_STATUSES
        is_refused = too_large or (status in {401, 403} and links_exhausted)
        if not is_refused or self._metadata[key].xet_file_data is None:
            return False
        if too_large and not self._xet.usable:
            raise UnavailableError(
                f"{self.repo}/{key} ({format_bytes(self._size(key))}): the Hub serves it only through hf-xet",
                hint="run: pip install hf_xet, and leave HF_HUB_DISABLE_XET unset",
                retryable=False,
            )
        return self._xet.usable

    def _xet_pieces(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """The range's bytes in order, in pieces of any size; an error behind the last one, where more are needed."""
        size = self._size(key)
        try:
            yield from self._xet.pieces(self._metadata[key].xet_file_data, size, start, stop)
        except (OSError, RuntimeError, ValueError) as exc:
            # Its message may hold a signed link: its type has to do.
            raise UnavailableError(
                f"{self.repo}/{key}: hf-xet failed ({type(exc).__name__})",
                hint="run it again; HF_XET_LOG_LEVEL=debug makes hf-xet say more in its logs",
            ) from None
        raise UnavailableError(f"{self.repo}/{key}: hf-xet gave fewer than {stop - start} bytes")

    def location(self, key: str, *, refused: str | None = None) -> Link:
        """The link to a file's bytes, and the headers to send there; not the `refused` one, which has expired.

        It is requested from the Hub once per file, and again when it has expired.
        """
        known = self._metadata.get(key)
        link = self._fresh_link(key) if known is None or known.location == refused else known.location
        return link, tuple(self._headers(link).items())

    def _fresh_link(self, key: str) -> str:
        url = hf_hub_url(self.repo, key, revision=self.commit, endpoint=self._endpoint)

        def located() -> Any:
            metadata = self._api.get_hf_file_metadata(url=url, timeout=READ_SECONDS)
            if metadata.commit_hash is None:
                raise ValueError("no commit: the Hub names it with each file")
            return metadata

        metadata = self._ask(located)
        if metadata.size is not None and metadata.size != self._size(key):
            raise IntegrityError(f"{self.repo}/{key}: {metadata.size} bytes, the listing says {self._size(key)}")
        try:
            target = parse_target(metadata.location)
        except FetchError as exc:
            raise IntegrityError(f"{self.repo}: the Hub redirects to an invalid URL") from exc
        if target.scheme not in {"https", urlsplit(self._endpoint).scheme}:
            raise IntegrityError(f"{self.repo}: the Hub redirects to {target.scheme}://{target.host}, which is refused")
        self._metadata[key] = metadata
        return str(metadata.location)

    def _headers(self, link: str) -> dict[str, str]:
        """The token, for the Hub's own host only."""
        at_hub = self._token and urlsplit(link)[:2] == urlsplit(self._endpoint)[:2]
        return {"Authorization": f"Bearer {self._token}"} if at_hub else {}

    def _ask(self, question: Callable[[], Any]) -> Any:
        def attempt() -> Any:
            with self._translated():
                answer = question()
            self._reader.reached = True
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
        if status in {401, 403}:
            return CredentialsError(
                f"{self.repo}: the Hub {'refuses the token' if self._token else 'requires a token'}",
                hint=f"set HF_TOKEN to a valid one ({self._token_state()})",
            )
        if status == 404:
            return NotFoundError(f"{self.repo} is not on the Hub any more")
        if status == 429:
            return UnavailableError(
                f"{self.repo}: the Hub limits the rate of requests (429)",
                hint="wait some minutes; a token (HF_TOKEN) has higher limits",
                retry_after_seconds=retry_after(headers),
            )
        return UnavailableError(
            f"{self.repo}: the Hub answered {status}",
            hint="see status.huggingface.co" if self._endpoint == _HUB else "check HF_ENDPOINT",
            retryable=is_retryable_status(status),
        )

    def _unanswered(self, exc: Exception) -> ColdstreamError | None:
        """The error for an exception of another library; None for one that the server did not cause."""
        # Its HTTP client is httpx in 1.x and httpx2 in 2.x.
        httpx: Any = importlib.import_module(type(huggingface_hub.get_session()).__module__.partition(".")[0])
        # An answer that is not JSON, or not the Hub's, fails somewhere in huggingface_hub; so does a redirect loop.
        if isinstance(exc, (ValueError, KeyError, TypeError, AttributeError, httpx.TooManyRedirects)):
            return self._stranger()
        if not isinstance(exc, (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)):
            return None
        host = urlsplit(self._endpoint).hostname or ""
        return unanswered(exc, self.repo, host, reached=self._reader.reached, hint="check the network and HF_ENDPOINT")

    def _stranger(self) -> UnavailableError:
        """The error for another server at the endpoint; it is queried again, as huggingface_hub hides its reply."""
        url = f"{self._endpoint}/api/models/{quote(self.repo)}"
        shown = "an answer that cannot be read"
        with (
            suppress(urllib3.exceptions.HTTPError),
            closing(self._reader.pool.request("GET", url, headers=self._headers(url))) as response,
        ):
            shown = describe_reply(response.status, response.headers, response.read(_PAGE_BYTES))
        return UnavailableError(
            f"{urlsplit(self._endpoint).netloc.rpartition('@')[2]} does not answer as a Hub: {shown}",
            hint="check HF_ENDPOINT and HTTPS_PROXY; a captive portal, a proxy or a web site may answer there",
            retryable=self._reader.reached,
        )

    def _token_state(self) -> str:
        return f"now: {self._token_origin}, ends in {mask(self._token)}" if self._token else "now: not set"


def hub_token(settings: Settings) -> tuple[str | None, str]:
    """The token for the Hub, or None; and where it came from."""
    token = settings.get("HF_TOKEN") or huggingface_hub.get_token()
    return token, settings.origin("HF_TOKEN") or "the token of `hf auth login`"


class _Xet:
    """Streams ranges of files through hf_xet, into memory. Thread-safe.

    hf_xet has threads of its own, and buffers of gigabytes unless they are bounded.
    """

    # A piece may have 64 MiB, so this bounds memory.
    _STREAMS_MAX = 2
    _CONFIG: ClassVar[Mapping[str, object]] = {
        "reconstruction.download_buffer_size": 64_000_000,
        "reconstruction.download_buffer_perfile_size": 32_000_000,
        "reconstruction.download_buffer_limit": 64_000_000,
        "reconstruction.min_prefetch_buffer": 16_000_000,
        # Our own policy retries what it gives up on.
        "client.connect_timeout": f"{CONNECT_SECONDS:.0f}s",
        "client.read_timeout": f"{READ_SECONDS:.0f}s",
        "client.retry_max_attempts": 2,
        "client.retry_max_duration": f"{READ_SECONDS:.0f}s",
    }

    def __init__(self, headers: Callable[[str], dict[str, str]]) -> None:
        """Touches nothing; `headers` gives the headers for a URL."""
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
        """The connections for files whose tokens the Hub issues at `route`; hf_xet renews these tokens itself."""
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
