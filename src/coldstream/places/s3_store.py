"""Objects in R2, AWS S3, MinIO and other servers of the S3 API, through boto3.

Retries are ours, not botocore's: they are counted, shown, bounded by time without progress, and end at once on Ctrl-C.
"""

from __future__ import annotations

import hashlib
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from datetime import timezone
from functools import cached_property
from typing import Any

from coldstream.errors import (
    BucketNotFoundError,
    CancelledError,
    ColdstreamError,
    ConfigError,
    ConflictError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UploadNotFoundError,
    during,
)
from coldstream.net.http_message import ETAG, FetchError, parse_content_range
from coldstream.net.reply import is_page
from coldstream.net.retry import Backoff, Retry, is_retryable_status, retry_after
from coldstream.places.place import (
    LONG_AGO,
    Body,
    Link,
    Location,
    ObjectInfo,
    OnBytes,
    PendingUpload,
    Piece,
    RangeReader,
    UploadPart,
    check_small,
    fill,
    stale,
)
from coldstream.places.s3_answers import STRANGER, StrangerError, check_object
from coldstream.places.s3_client import RequestBody, first_line, link_maker, open_client, own_link_maker
from coldstream.places.small_reads import LinkReader
from coldstream.settings import Settings

_DELETE_KEYS_MAX = 1000
# Longer than any load. Temporary credentials may end sooner, and their links with them: then a link is renewed.
LINK_SECONDS = 12 * 3600
# Links that are derived from another one are at most such a share of its life older than they say.
_LINK_AGE_SHARE = 0.01
_GZIP = b"\x1f\x8b"

_EXPIRED_CODES = {"ExpiredToken", "ExpiredRequest", "TokenRefreshRequired"}
_BUCKET_TAKEN_CODES = {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}
# Codes of S3, R2 and MinIO, or the status as text where an answer has no body. Sources: S3 "Error responses", docs
# r2/api/error-codes.
_CODES: dict[type[ColdstreamError], set[str]] = {
    BucketNotFoundError: {"NoSuchBucket"},
    UploadNotFoundError: {"NoSuchUpload"},
    NotFoundError: {"NoSuchKey", "404"},
    ConflictError: {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "InvalidPart", "InvalidPartOrder"}
    | _BUCKET_TAKEN_CODES,
    ColdstreamError: {"RequestTimeTooSkewed"},
    UnsupportedError: {"NotImplemented"},
    ConfigError: {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"},
    IntegrityError: {"InvalidRange"},
    CredentialsError: {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "Unauthorized", "401", "403"}
    | {"InvalidToken", "InvalidSecurity"}
    | _EXPIRED_CODES,
    UnavailableError: {"InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "ClientDisconnect"}
    | {"TooManyRequests", "Throttling", "RequestLimitExceeded"}
    | {"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"},
}
_KINDS = {code: kind for kind, codes in _CODES.items() for code in codes}
_STATUS_KINDS = {416: IntegrityError, 401: CredentialsError, 403: CredentialsError}


class S3Store:
    """A bucket, or a prefix in one. Implements `Store`."""

    pins_by_etag = True

    def __init__(
        self, bucket: str, *, prefix: str = "", settings: Settings, retry: Retry | None = None, connections: int = 10
    ) -> None:
        self.bucket = bucket
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self.retry = retry or Retry(Backoff(give_up_seconds=settings.retry_seconds))
        # R2 allows one write per second to one key and answers 429 beyond (docs r2/platform/limits).
        self.write_interval_seconds = 1.1 if settings.is_r2 else 0.0
        self._prefix = f"{prefix}/" if prefix else ""
        # The last link that boto3 made: its seconds, the credentials, when, and what makes others of it.
        self._links: tuple[int, Any, float, Callable[[str], str]] | None = None
        self._endpoint, self._endpoint_setting = settings.endpoint(), settings.endpoint_setting
        keys = settings.keys()
        self._temporary = keys is not None and keys[2] is not None
        self._client_options = settings, connections
        self._make_link = own_link_maker(settings, bucket)
        if self._make_link is None:
            self._client.meta  # noqa: B018  # refuses wrong settings at once
        self._reader = LinkReader(
            self.retry,
            forbidden="the key may lack the permission to read this object, or the credentials have expired",
            ca_bundle=settings.get("AWS_CA_BUNDLE"),
        )

    def __repr__(self) -> str:
        return f"S3Store({self.uri} at {self._endpoint or 'AWS'})"

    @cached_property
    def _client(self) -> Any:
        return open_client(*self._client_options)

    def head(self, key: str) -> ObjectInfo:
        response = self._call("HeadObject", key)
        return _info(key, response, size=self._length(key) if response.get("ContentLength") is None else None)

    def get(self, key: str, *, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        def attempt() -> tuple[bytes, ObjectInfo]:
            began = time.monotonic()
            response = self._request("GetObject", key)
            seconds = time.monotonic() - began
            with closing(response["Body"]), self._translated("GetObject", key):
                data = self._content(key, response, bytes_max)
            return data, replace(_info(key, response, size=len(data)), answer_seconds=seconds)

        small = self._get_by_link(key, bytes_max) if bytes_max is not None else None
        return small or self.retry.run(attempt)

    def _get_by_link(self, key: str, bytes_max: int) -> tuple[bytes, ObjectInfo] | None:
        """A small object without boto3, which takes longer than the rest of a small load. None: boto3 tells why not."""
        if self._make_link is None:
            return None
        with suppress(FetchError, ConfigError):
            body, reply = self._reader.get_whole(self.presign(key), bytes_max)
            if reply.etag and not is_page(None, body):
                self._reader.reached = True
                seconds = reply.first_byte_seconds
                return body, ObjectInfo(key=key, size=len(body), etag=reply.etag, answer_seconds=seconds)
        return None

    def read_into(
        self, key: str, start: int, buffer: memoryview, *, if_match: str | None = None, on_read: OnBytes | None = None
    ) -> None:
        @contextmanager
        def open_range(done: int) -> Iterator[RangeReader]:
            first, last = start + done, start + len(buffer) - 1
            response = self._request("GetObject", key, Range=f"bytes={first}-{last}", **_conditions(if_match))
            with closing(response["Body"]) as body, self._translated("GetObject", key):
                if response.get("ContentLength") == 0:
                    raise StrangerError("an empty answer")
                # A server may ignore If-Match (rclone does), and hide what it sent instead (with `--etag-hash ""`).
                if if_match is not None and (etag := _etag(response)) not in {"", if_match}:
                    raise stale(self._at(key), etag, if_match)
                self._check_range(key, response, first, last)
                yield body

        fill(buffer, open_range, retry=self.retry, where=self._at(key), on_read=on_read)

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        return self._reader.read_piece(self.renew(key, where=where), start, stop, etag=etag, where=where)

    def locate(self, key: str) -> Location:
        return Location(url=self.presign(key))

    def renew(self, key: str, *, where: str) -> Link:
        return self.presign(key), ()

    def session(self) -> AbstractContextManager[object]:
        return self._reader

    def put(
        self,
        key: str,
        body: Body,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        on_sent: OnBytes | None = None,
    ) -> str:
        conditions = _conditions(if_match) | ({"IfNoneMatch": "*"} if if_absent else {})
        sending = RequestBody(body, self.retry, on_sent)
        attempts = 0

        def attempt() -> str:
            nonlocal attempts
            attempts += 1
            try:
                body_and_metadata = {"Body": sending.rewound(), "Metadata": dict(metadata or {})}
                return _etag(self._request("PutObject", key, **body_and_metadata, **conditions))
            except ConflictError:
                # An earlier attempt may have been stored although its answer was lost: then the condition fails on us.
                if attempts > 1 and (present := self.get(key))[0] == body:
                    return present[1].etag
                raise

        return self.retry.run(attempt)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        following = {"ContinuationToken": "NextContinuationToken"}
        for page in self._pages("ListObjectsV2", None, following, Prefix=self._prefix + prefix):
            with self._translated("ListObjectsV2", None):
                infos = [
                    _info(entry["Key"].removeprefix(self._prefix), entry, size=entry["Size"])
                    for entry in page.get("Contents", ())
                ]
            yield from infos

    def delete(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _DELETE_KEYS_MAX):
            batch = [{"Key": self._prefix + key} for key in keys[first : first + _DELETE_KEYS_MAX]]
            answer = self._call("DeleteObjects", None, Delete={"Objects": batch, "Quiet": True})
            for fault in answer.get("Errors", ()):
                if fault.get("Code") not in {"NoSuchKey", "404"}:
                    raise self._error(fault.get("Code", ""), 0, fault.get("Message", ""), "DeleteObjects", fault["Key"])

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        return str(self._call("CreateMultipartUpload", key, Metadata=dict(metadata or {}))["UploadId"])

    def put_part(self, key: str, upload_id: str, number: int, body: Body, *, on_sent: OnBytes | None = None) -> str:
        sending = RequestBody(body, self.retry, on_sent)

        def attempt() -> str:
            part = {"UploadId": upload_id, "PartNumber": number, "Body": sending.rewound()}
            return _etag(self._request("UploadPart", key, **part))

        return self.retry.run(attempt)

    def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, stop: int, *, if_match: str
    ) -> str | None:
        try:
            copied = self._call(
                "UploadPartCopy",
                key,
                UploadId=upload_id,
                PartNumber=number,
                CopySource={"Bucket": self.bucket, "Key": self._prefix + source},
                CopySourceRange=f"bytes={start}-{stop - 1}",
                CopySourceIfMatch=f'"{if_match}"',
            )
        except UnsupportedError:
            return None
        # A server that does not know the header takes the request for an empty part, and its answer names no copy.
        return _etag(copied.get("CopyPartResult", {})) or None

    def part_etag(self, body: Body) -> str:
        return hashlib.md5(body, usedforsecurity=False).hexdigest()

    def parts(self, key: str, upload_id: str) -> Sequence[UploadPart]:
        stored: dict[int, UploadPart] = {}
        following = {"PartNumberMarker": "NextPartNumberMarker"}
        for page in self._pages("ListParts", key, following, UploadId=upload_id):
            for part in page.get("Parts", ()):
                stored[part["PartNumber"]] = UploadPart(part["PartNumber"], part["Size"], _etag(part))
        return [stored[number] for number in sorted(stored)]

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[UploadPart]) -> None:
        listed = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        self._call("CompleteMultipartUpload", key, UploadId=upload_id, MultipartUpload={"Parts": listed})

    def abort_upload(self, key: str, upload_id: str) -> None:
        with suppress(UploadNotFoundError):
            self._call("AbortMultipartUpload", key, UploadId=upload_id)

    def uploads(self, prefix: str) -> Iterator[PendingUpload]:
        following = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        with suppress(UploadNotFoundError):  # rclone's way to say that there are none
            for page in self._pages("ListMultipartUploads", None, following, Prefix=self._prefix + prefix):
                for upload in page.get("Uploads", ()):
                    # Some servers ignore Prefix.
                    if upload["Key"].startswith(self._prefix + prefix):
                        yield PendingUpload(upload["Key"].removeprefix(self._prefix), upload["UploadId"])

    def presign(self, key: str, *, seconds: int = LINK_SECONDS) -> str:
        """A URL that reads this object without credentials: a secret itself, not to be logged."""
        path = self._prefix + key
        if self._make_link is not None:
            return self._make_link(path, seconds)
        with self._translated("presign", key):
            credentials = self._client._request_signer._credentials
            frozen = credentials.get_frozen_credentials() if credentials is not None else None
            made, now = self._links, time.monotonic()
            # A model in segments has hundreds of objects, and boto3 takes two milliseconds for a link.
            if made is not None and made[:2] == (seconds, frozen) and now - made[2] < _LINK_AGE_SHARE * seconds:
                return made[3](path)
            params = {"Bucket": self.bucket, "Key": path}
            link = str(self._client.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds))
            make = link_maker(link, path, frozen.secret_key) if frozen is not None else None
            self._links = (seconds, frozen, now, make) if make is not None else None
            return link

    def bucket_exists(self) -> bool:
        """Whether the bucket exists; a CredentialsError hides that."""
        try:
            self._call("HeadBucket", None)
        except BucketNotFoundError:
            return False
        return True

    def create_bucket(self, location: str | None = None) -> None:
        """Creates the bucket; one that is ours already is fine. ConflictError: the name is taken.

        `location` is a hint on R2 (wnam, enam, weur, eeur, apac, oc) and a region on AWS.
        """
        extra = {"CreateBucketConfiguration": {"LocationConstraint": location}} if location else {}
        try:
            self._call("CreateBucket", None, **extra)
        except ConflictError:
            if not self.bucket_exists():
                raise

    def _pages(self, operation: str, key: str | None, markers: Mapping[str, str], **params: Any) -> Iterator[Any]:
        """The pages of a listing; `markers` maps the request's parameters to the fields of the page before."""
        more: dict[str, Any] = {}
        while True:
            page = self._call(operation, key, **params, **more)
            yield page
            more = {name: page.get(following, "") for name, following in markers.items()}
            if not page.get("IsTruncated") or not next(iter(more.values())):
                return

    def _call(self, operation: str, key: str | None, **params: Any) -> Any:
        return self.retry.run(lambda: self._request(operation, key, **params))

    def _request(self, operation: str, key: str | None, **params: Any) -> Any:
        """One attempt, with errors translated."""
        from botocore import xform_name

        if key is not None:
            params["Key"] = self._prefix + key
        try:
            with self._translated(operation, key):
                answer = getattr(self._client, xform_name(operation))(Bucket=self.bucket, **params)
                if key is not None and operation in {"GetObject", "HeadObject"}:
                    check_object(answer, key)
        except CredentialsError as exc:
            if operation.startswith("Head"):
                self._explain_refusal(exc)
            raise
        # Any web site answers a HEAD.
        self._reader.reached |= operation != "HeadBucket"
        return answer

    def _explain_refusal(self, refusal: CredentialsError) -> None:
        """Raises a more precise error than a HEAD can have, whose answer has no body to say why."""
        try:
            self._request("ListObjectsV2", None, Prefix=self._prefix, MaxKeys=1)
        except ColdstreamError as exc:
            if not exc.retryable and exc.hint != refusal.hint:
                raise exc from refusal

    def _at(self, key: str | None) -> str:
        return f"s3://{self.bucket}/{self._prefix}{key}" if key is not None else f"s3://{self.bucket}"

    def _check_range(self, key: str, response: Mapping[str, Any], first: int, last: int) -> None:
        """Servers answer 206 as they should, 200 with a Content-Range (rclone), or 200 with the whole object."""
        content_range = response.get("ContentRange")
        announced = parse_content_range(content_range or "")
        if content_range and (announced is None or announced[:2] != (first, last + 1)):
            raise IntegrityError(f"{self._at(key)}: asked for bytes {first}-{last}, the server sent {content_range!r}")
        if not content_range and (first != 0 or response.get("ContentLength") not in {None, last + 1}):
            raise IntegrityError(
                f"{self._at(key)}: the server ignores ranges",
                hint="a proxy in between may strip the Range header; use the store's own endpoint",
            )

    def _content(self, key: str, answer: Mapping[str, Any], bytes_max: int | None) -> bytes:
        """The whole body of an answer, of which the server may not say the length; decompressed if stored as gzip."""
        length, limit = answer.get("ContentLength"), -1 if bytes_max is None else bytes_max
        check_small(self._at(key), length or 0, bytes_max)
        data = bytes(answer["Body"].read(None if length is not None or limit < 0 else limit + 1))
        if "gzip" in answer.get("ContentEncoding", "") and data.startswith(_GZIP):
            data = self._decompressed(key, data, limit + 1)
        if 0 <= limit < len(data):
            raise IntegrityError(f"{self._at(key)} has more than the {limit} bytes that are read")
        return data

    def _decompressed(self, key: str, data: bytes, bytes_max: int) -> bytes:
        """At most `bytes_max` bytes; 0: all."""
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            plain = stream.decompress(data, bytes_max)
        except zlib.error as exc:
            raise IntegrityError(f"{self._at(key)} has the Content-Encoding gzip, and cannot be decompressed") from exc
        if not stream.eof and len(plain) != bytes_max:
            raise IntegrityError(f"{self._at(key)} has the Content-Encoding gzip, and is truncated")
        return plain

    def _length(self, key: str) -> int:
        """The size of an object whose HEAD does not have it."""
        try:
            answer = self._call("GetObject", key, Range="bytes=0-0")
        except IntegrityError:  # an empty object has no byte
            return 0
        answer["Body"].close()
        announced = parse_content_range(answer.get("ContentRange") or "")
        if announced is None or announced[2] is None:
            raise IntegrityError(
                f"{self._at(key)}: the server does not say how long it is",
                hint="a proxy in between may strip Content-Length; use the store's own endpoint",
            )
        return announced[2]

    def _error(self, code: str, status: int, message: str, operation: str, key: str | None) -> ColdstreamError:
        """The error for the code and status of an answer."""
        at = self._at(key)
        answer = f"{status or ''} {code}".strip() if code != str(status) else code
        if key is None and code == "404":
            code = "NoSuchBucket"
        kind = _KINDS.get(code) or _STATUS_KINDS.get(status)
        if kind is None and is_retryable_status(status):
            kind = UnavailableError
        # The answer to a HEAD has no body to say ExpiredToken in.
        if kind is None and self._temporary and code == "400" and operation.startswith("Head"):
            kind = CredentialsError
        text, hint = {
            BucketNotFoundError: (
                f"the bucket {self.bucket!r} does not exist at {self._client.meta.endpoint_url}",
                "run: coldstream setup   (it creates the bucket), or correct R2_BUCKET",
            ),
            UploadNotFoundError: (f"{at}: the multipart upload is gone", None),
            NotFoundError: (f"{at} does not exist", None),
            ConflictError: (f"{at}: {operation} was refused ({answer})", None),
            ConfigError: (f"{at}: the bucket is in another region: {message[:200]}", "set AWS_REGION to it"),
            IntegrityError: (f"{at} is shorter than expected", None),
            CredentialsError: (
                f"{at}: {operation} was refused ({answer})",
                _credential_hint(code, temporary=self._temporary),
            ),
            UnavailableError: (
                f"{at}: {operation} answered {answer}",
                "the bucket is overloaded or down; try again later, or with fewer --connections",
            ),
        }.get(kind or ColdstreamError, (f"{at}: {operation} failed: {answer} {message[:200]}".rstrip(), None))
        if code in _BUCKET_TAKEN_CODES:
            text, hint = f"a bucket named {self.bucket!r} exists already", "choose another R2_BUCKET"
        if code == "RequestTimeTooSkewed":
            text = f"{at}: this machine's clock is wrong: the server refuses requests signed more than 15 minutes off"
            hint = "set the clock, for example: timedatectl set-ntp true"
        return (kind or ColdstreamError)(text, hint=hint, target=at)

    @contextmanager
    def _translated(self, operation: str, key: str | None) -> Iterator[None]:
        """Turns botocore's and urllib3's exceptions into ours."""
        try:
            yield
        except ColdstreamError:
            raise
        except Exception as exc:
            # Not kept in a variable: the cycle with its own frame would keep the response's socket open.
            raise during(operation, self._translate(exc, operation, key)) from exc

    def _translate(self, exc: Exception, operation: str, key: str | None) -> Exception:
        import botocore.exceptions

        at, endpoint = self._at(key), self._client.meta.endpoint_url
        if self.retry.cancel.is_set():
            return CancelledError("cancelled")
        # botocore fails so over times, sizes and counts that are none, and over what is missing.
        if isinstance(exc, (StrangerError, ValueError, OverflowError, KeyError)):
            what = f"an entry without {exc}" if isinstance(exc, KeyError) else exc
            return UnavailableError(
                f"{at}: {endpoint} does not answer as an S3 server: {operation} gets {what}",
                hint=f"check {self._endpoint_setting}; a captive portal, a proxy or a web site may answer there",
                target=at,
                retryable=self._reader.reached,
            )
        if isinstance(exc, botocore.exceptions.ClientError):
            stranger = exc.response.get(STRANGER)
            self._reader.reached |= not stranger
            fault = exc.response.get("Error", {})
            meta = exc.response.get("ResponseMetadata", {})
            error = self._error(
                str(fault.get("Code", "")), meta.get("HTTPStatusCode", 0), str(fault.get("Message", "")), operation, key
            )
            if stranger:
                error.message += f": {endpoint} answers {stranger}"
            if error.retryable:
                error.retry_after_seconds = retry_after(meta.get("HTTPHeaders", {}))
            return error
        if isinstance(exc, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
            return ConfigError(
                "no credentials for the bucket: neither R2_ACCESS_KEY nor AWS_ACCESS_KEY_ID is set, "
                "and the AWS chain (profile, SSO, instance role) has none",
                hint="run: coldstream setup --write-env",
            )
        if isinstance(exc, botocore.exceptions.SSLError):
            return UnavailableError(
                f"{endpoint}: TLS failed: {first_line(exc)}",
                hint="check the endpoint's name and this machine's certificates (AWS_CA_BUNDLE names others)",
                retryable=False,
            )
        by_proxy = isinstance(exc, botocore.exceptions.ProxyConnectionError)
        unreached = (botocore.exceptions.EndpointConnectionError, botocore.exceptions.ConnectTimeoutError)
        if by_proxy or isinstance(exc, unreached):
            # Before anything ever answered, the address is the likelier fault: say so now, not in three minutes.
            return UnavailableError(
                f"cannot reach {endpoint}" + (f": {first_line(exc)}" if by_proxy else ""),
                hint=f"check {'HTTPS_PROXY, HTTP_PROXY' if by_proxy else self._endpoint_setting} and the network",
                target=at,
                retryable=self._reader.reached,
            )
        if isinstance(exc, (botocore.exceptions.HTTPClientError, botocore.exceptions.IncompleteReadError, OSError)):
            return UnavailableError(f"{at}: the connection broke: {first_line(exc)}", target=at)
        if isinstance(exc, botocore.exceptions.BotoCoreError):
            return ConfigError(f"{at}: {first_line(exc)}", hint="check the endpoint, the region and the profile")
        return exc


def _conditions(if_match: str | None) -> dict[str, str]:
    return {"IfMatch": f'"{if_match}"'} if if_match else {}


def _etag(response: Mapping[str, Any]) -> str:
    """Without quotes; "" where there is none that could be sent as a condition."""
    etag = str(response.get("ETag", "")).removeprefix("W/").strip('"')
    return etag if re.fullmatch(ETAG, etag) else ""


def _info(key: str, response: Mapping[str, Any], *, size: int | None = None) -> ObjectInfo:
    modified = response.get("LastModified", LONG_AGO)
    return ObjectInfo(
        key=key,
        size=response["ContentLength"] if size is None else size,
        etag=_etag(response),
        modified=modified if modified.tzinfo else modified.replace(tzinfo=timezone.utc),
        metadata={name.lower(): value for name, value in response.get("Metadata", {}).items()},
    )


def _credential_hint(code: str, *, temporary: bool) -> str:
    if code in _EXPIRED_CODES:
        return "the credentials have expired; make new ones"
    if temporary:
        # R2 answers 401 for whatever is wrong with a session token, its end among it (docs r2/api/error-codes).
        return (
            "these credentials are temporary (a session token is set): they have expired, do not cover this object, "
            "or may only read; make new ones"
        )
    if code == "SignatureDoesNotMatch":
        return "the secret key does not belong to the access key; check R2_SECRET_KEY"
    if code == "InvalidAccessKeyId":
        return "the access key is unknown there; check R2_ACCESS_KEY and R2_ENDPOINT"
    return "a wrong key, or one without this permission or bucket; a new R2 token can take a minute to work"
