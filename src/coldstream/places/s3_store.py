"""Objects in R2, AWS S3, MinIO and other servers of the S3 API, through boto3.

One client per store, shared by all threads (boto3's clients are thread-safe). Retries are ours, not botocore's: they
are counted, shown, bounded by time without progress, and end at once on Ctrl-C.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import timezone
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
from botocore.config import Config
from botocore.handlers import add_expect_header

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
)
from coldstream.model.names import path_fault
from coldstream.net.http_message import ETAG
from coldstream.net.retry import Backoff, Retry, is_retryable_status, retry_after
from coldstream.places.place import (
    LONG_AGO,
    Body,
    Link,
    Location,
    ObjectInfo,
    PendingUpload,
    Piece,
    RangeReader,
    UploadPart,
    fill,
)
from coldstream.places.presigning import Template, template_of
from coldstream.places.s3_answers import STRANGER, StrangerError, check_object, recognize_answers
from coldstream.places.small_reads import LinkReader
from coldstream.settings import Settings

CONNECT_SECONDS = 15
# Between two reads, not for the whole answer. Completing a large upload can stay silent for long.
READ_SECONDS = 60
# What is sent in one system call's time limit: small enough for eight connections on a slow uplink.
_SEND_BYTES = 256 * 1024
_DELETE_KEYS_MAX = 1000
# Longer than any load. Temporary credentials may end sooner, and their links with them: then a link is renewed.
LINK_SECONDS = 12 * 3600
# Links that are made out of another are at most such a share of its life older than they say.
_LINK_AGE_SHARE = 0.01

_GZIP = b"\x1f\x8b"

_EXPIRED_CODES = ("ExpiredToken", "ExpiredRequest", "TokenRefreshRequired")
_BUCKET_TAKEN_CODES = ("BucketAlreadyExists", "BucketAlreadyOwnedByYou")
# Codes of S3, R2 and MinIO, or the status as text where an answer has no body. Sources: S3 "Error responses", docs
# r2/api/error-codes.
_KINDS: dict[str, type[ColdstreamError]] = {
    "NoSuchBucket": BucketNotFoundError,
    "NoSuchUpload": UploadNotFoundError,
    **dict.fromkeys(("NoSuchKey", "404"), NotFoundError),
    **dict.fromkeys(("PreconditionFailed", "ConditionalRequestConflict", "412", "409"), ConflictError),
    **dict.fromkeys(("InvalidPart", "InvalidPartOrder"), ConflictError),
    **dict.fromkeys(_BUCKET_TAKEN_CODES, ConflictError),
    "RequestTimeTooSkewed": ColdstreamError,
    "NotImplemented": UnsupportedError,
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"), ConfigError
    ),
    "InvalidRange": IntegrityError,
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "Unauthorized"), CredentialsError),
    **dict.fromkeys((*_EXPIRED_CODES, "InvalidToken", "InvalidSecurity", "401", "403"), CredentialsError),
    **dict.fromkeys(("InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout"), UnavailableError),
    **dict.fromkeys(("ClientDisconnect", "TooManyRequests", "Throttling", "RequestLimitExceeded"), UnavailableError),
    **dict.fromkeys(("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"), UnavailableError),
}
_STATUS_KINDS: dict[int, type[ColdstreamError]] = {
    416: IntegrityError,
    401: CredentialsError,
    403: CredentialsError,
}


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
        self._reached = False
        # The last link that boto3 made: its seconds, the credentials, when, and what others are made of.
        self._links: tuple[int, Any, float, Template] | None = None
        self._endpoint_setting = settings.endpoint_setting
        keys = settings.keys()
        self._temporary = keys is not None and keys[2] is not None
        self._client = _client(settings, connections)
        self._reader = LinkReader(
            self.retry,
            forbidden="the key may lack the permission to read this object, or the credentials have expired",
            ca_bundle=settings.get("AWS_CA_BUNDLE"),
        )

    def __repr__(self) -> str:
        return f"S3Store({self.uri} at {self._client.meta.endpoint_url})"

    def head(self, key: str) -> ObjectInfo:
        response = self._call("HeadObject", key, self._client.head_object)
        return _info(key, response, size=self._length(key) if response.get("ContentLength") is None else None)

    def get(self, key: str, *, if_match: str | None = None, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        def attempt() -> tuple[bytes, ObjectInfo]:
            response = self._request("GetObject", key, self._client.get_object, **_conditions(if_match))
            with closing(response["Body"]), self._translated("GetObject", key):
                self._check_match(key, _etag(response), if_match)
                data = self._content(key, response, bytes_max)
            return data, _info(key, response, size=len(data))

        return self.retry.run(attempt)

    def read_into(
        self,
        key: str,
        start: int,
        buffer: memoryview,
        *,
        if_match: str | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        @contextmanager
        def open_range(done: int) -> Iterator[RangeReader]:
            first, last = start + done, start + len(buffer) - 1
            response = self._request(
                "GetObject", key, self._client.get_object, Range=f"bytes={first}-{last}", **_conditions(if_match)
            )
            with closing(response["Body"]) as body, self._translated("GetObject", key):
                if response.get("ContentLength") == 0:
                    raise StrangerError("an empty answer")
                self._check_match(key, _etag(response), if_match)
                self._check_range(key, response, first, last)
                yield body

        fill(buffer, open_range, retry=self.retry, where=self._at(key), on_read=on_read)

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        # The link leads to the server that may have answered already.
        self._reader.reached |= self._reached
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
        on_sent: Callable[[int], None] | None = None,
    ) -> str:
        conditions = _conditions(if_match) | ({"IfNoneMatch": "*"} if if_absent else {})
        sending = _Sending(body, self.retry, on_sent)
        attempts = 0

        def attempt() -> str:
            nonlocal attempts
            attempts += 1
            try:
                return _etag(
                    self._request(
                        "PutObject",
                        key,
                        self._client.put_object,
                        Body=sending.rewound(),
                        Metadata=dict(metadata or {}),
                        **conditions,
                    )
                )
            except ConflictError:
                # An earlier attempt may have been stored although its answer was lost: then the condition fails on us.
                if attempts > 1 and (present := self.get(key))[0] == body:
                    return present[1].etag
                raise

        return self.retry.run(attempt)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        more: dict[str, str] = {}
        while True:
            page = self._call("ListObjectsV2", None, self._client.list_objects_v2, Prefix=self._prefix + prefix, **more)
            with self._translated("ListObjectsV2", None):
                infos = [
                    _info(entry["Key"].removeprefix(self._prefix), entry, size=entry["Size"])
                    for entry in page.get("Contents", ())
                ]
            yield from infos
            if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _DELETE_KEYS_MAX):
            batch = [{"Key": self._prefix + key} for key in keys[first : first + _DELETE_KEYS_MAX]]
            answer = self._call(
                "DeleteObjects", None, self._client.delete_objects, Delete={"Objects": batch, "Quiet": True}
            )
            for fault in answer.get("Errors", ()):
                if fault.get("Code") not in {"NoSuchKey", "404"}:
                    raise self._error(fault.get("Code", ""), 0, fault.get("Message", ""), "DeleteObjects", fault["Key"])

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        created = self._call(
            "CreateMultipartUpload", key, self._client.create_multipart_upload, Metadata=dict(metadata or {})
        )
        return str(created["UploadId"])

    def put_part(
        self, key: str, upload_id: str, number: int, body: Body, *, on_sent: Callable[[int], None] | None = None
    ) -> str:
        sending = _Sending(body, self.retry, on_sent)

        def attempt() -> str:
            stored = self._request(
                "UploadPart",
                key,
                self._client.upload_part,
                UploadId=upload_id,
                PartNumber=number,
                Body=sending.rewound(),
            )
            return _etag(stored)

        return self.retry.run(attempt)

    def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, stop: int, *, if_match: str
    ) -> str | None:
        try:
            copied = self._call(
                "UploadPartCopy",
                key,
                self._client.upload_part_copy,
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
        more: dict[str, int] = {}
        while True:
            page = self._call("ListParts", key, self._client.list_parts, UploadId=upload_id, **more)
            for part in page.get("Parts", ()):
                stored[part["PartNumber"]] = UploadPart(part["PartNumber"], part["Size"], _etag(part))
            if not page.get("IsTruncated") or not page.get("NextPartNumberMarker"):
                return [stored[number] for number in sorted(stored)]
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[UploadPart]) -> None:
        listed = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        self._call(
            "CompleteMultipartUpload",
            key,
            self._client.complete_multipart_upload,
            UploadId=upload_id,
            MultipartUpload={"Parts": listed},
        )

    def abort_upload(self, key: str, upload_id: str) -> None:
        with suppress(UploadNotFoundError):
            self._call("AbortMultipartUpload", key, self._client.abort_multipart_upload, UploadId=upload_id)

    def uploads(self, prefix: str) -> Iterator[PendingUpload]:
        more: dict[str, str] = {}
        while True:
            try:
                page = self._call(
                    "ListMultipartUploads",
                    None,
                    self._client.list_multipart_uploads,
                    Prefix=self._prefix + prefix,
                    **more,
                )
            except UploadNotFoundError:  # rclone's way to say that there are none
                return
            for upload in page.get("Uploads", ()):
                # Some servers ignore Prefix.
                if upload["Key"].startswith(self._prefix + prefix):
                    yield PendingUpload(upload["Key"].removeprefix(self._prefix), upload["UploadId"])
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}

    def presign(self, key: str, *, seconds: int = LINK_SECONDS) -> str:
        """A URL that reads this object for so long, without credentials: a secret itself, not to be logged."""
        path = self._prefix + key
        with self._translated("presign", key):
            credentials = self._client._request_signer._credentials
            frozen = credentials.get_frozen_credentials() if credentials is not None else None
            made, now = self._links, time.monotonic()
            # A model in segments has hundreds of objects, and boto3 takes two milliseconds for a link.
            if made is not None and made[:2] == (seconds, frozen) and now - made[2] < _LINK_AGE_SHARE * seconds:
                return made[3].link(path)
            params = {"Bucket": self.bucket, "Key": path}
            link = str(self._client.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds))
            template = template_of(link, path, frozen.secret_key) if frozen is not None else None
            self._links = (seconds, frozen, now, template) if template is not None else None
            return link

    def bucket_exists(self) -> bool:
        """Whether the bucket exists.

        Raises:
            CredentialsError: Refused, which also hides whether it does.
        """
        try:
            self._call("HeadBucket", None, self._client.head_bucket)
        except BucketNotFoundError:
            return False
        return True

    def create_bucket(self, location: str | None = None) -> None:
        """Creates the bucket; one that is ours already is fine.

        Args:
            location: R2: a hint (wnam, enam, weur, eeur, apac, oc). AWS: a region. None: the server's choice.

        Raises:
            ConflictError: The name is taken.
        """
        extra = {"CreateBucketConfiguration": {"LocationConstraint": location}} if location else {}
        try:
            self._call("CreateBucket", None, self._client.create_bucket, **extra)
        except ConflictError:
            if not self.bucket_exists():
                raise

    def _call(self, operation: str, key: str | None, method: Callable[..., Any], **params: Any) -> Any:
        return self.retry.run(lambda: self._request(operation, key, method, **params))

    def _request(self, operation: str, key: str | None, method: Callable[..., Any], **params: Any) -> Any:
        """One attempt, with errors translated."""
        if key is not None:
            params["Key"] = self._prefix + key
        try:
            with self._translated(operation, key):
                answer = method(Bucket=self.bucket, **params)
                if key is not None and operation in {"GetObject", "HeadObject"}:
                    check_object(answer, key)
        except CredentialsError as exc:
            if operation.startswith("Head"):
                self._explain_refusal(exc)
            raise
        # Any web site answers a HEAD.
        self._reached = self._reached or operation != "HeadBucket"
        return answer

    def _explain_refusal(self, refusal: CredentialsError) -> None:
        """Raises a more precise error than a HEAD can have, whose answer has no body to say why."""
        try:
            self._request("ListObjectsV2", None, self._client.list_objects_v2, Prefix=self._prefix, MaxKeys=1)
        except ColdstreamError as exc:
            if not exc.retryable and exc.hint != refusal.hint:
                raise exc from refusal

    def _at(self, key: str | None) -> str:
        return f"s3://{self.bucket}/{self._prefix}{key}" if key is not None else f"s3://{self.bucket}"

    def _check_match(self, key: str, etag: str, if_match: str | None) -> None:
        # A server may ignore If-Match (rclone does), but not hide what it sent instead.
        if if_match is not None and etag != if_match:
            raise ConflictError(
                f"{self._at(key)} was replaced: its ETag is {etag}, expected {if_match}",
                hint="the model was written to; run: coldstream verify",
                operation="GetObject",
                target=self._at(key),
            )

    def _check_range(self, key: str, response: Mapping[str, Any], first: int, last: int) -> None:
        """Servers differ: 206 as it should be, 200 with a Content-Range (rclone), or the whole object."""
        content_range = response.get("ContentRange")
        match = re.match(r"bytes (\d+)-(\d+)/", content_range or "")
        if content_range and not (match and int(match[1]) == first and int(match[2]) == last):
            raise IntegrityError(f"{self._at(key)}: asked for bytes {first}-{last}, the server sent {content_range!r}")
        if not content_range and (first != 0 or response.get("ContentLength") not in {None, last + 1}):
            raise IntegrityError(
                f"{self._at(key)}: the server ignores ranges",
                hint="a proxy in between may strip the Range header; use the store's own endpoint",
            )

    def _content(self, key: str, answer: Mapping[str, Any], bytes_max: int | None) -> bytes:
        """The whole body of an answer; what was compressed before it was stored is decompressed.

        A server may not say how long it is.
        """
        length, limit = answer.get("ContentLength"), -1 if bytes_max is None else bytes_max
        if length is not None and 0 <= limit < length:
            raise IntegrityError(f"{self._at(key)} has {length} bytes; at most {limit} are read")
        data = bytes(answer["Body"].read(None if length is not None or limit < 0 else limit + 1))
        if "gzip" in answer.get("ContentEncoding", "") and data.startswith(_GZIP):
            data = self._decompressed(key, data, limit + 1)
        if 0 <= limit < len(data):
            raise IntegrityError(f"{self._at(key)} has more than the {limit} bytes that are read")
        return data

    def _decompressed(self, key: str, data: bytes, bytes_max: int) -> bytes:
        """At most so many bytes of what was compressed; 0: all of it."""
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            plain = stream.decompress(data, bytes_max)
        except zlib.error as exc:
            raise IntegrityError(f"{self._at(key)} has the Content-Encoding gzip, and cannot be decompressed") from exc
        if not stream.eof and len(plain) != bytes_max:
            raise IntegrityError(f"{self._at(key)} has the Content-Encoding gzip, and is truncated")
        return plain

    def _length(self, key: str) -> int:
        """Of an object whose HEAD does not say it."""
        try:
            answer = self._call("GetObject", key, self._client.get_object, Range="bytes=0-0")
        except IntegrityError:  # no byte of an empty object can be had
            return 0
        answer["Body"].close()
        total = re.fullmatch(r"bytes 0-0/(\d+)", answer.get("ContentRange") or "")
        if not total:
            raise IntegrityError(
                f"{self._at(key)}: the server does not say how long it is",
                hint="a proxy in between may strip Content-Length; use the store's own endpoint",
            )
        return int(total[1])

    def _error(self, code: str, status: int, message: str, operation: str, key: str | None) -> ColdstreamError:
        """The error for what the server answered."""
        at = self._at(key)
        answer = f"{status or ''} {code}".strip() if code != str(status) else code
        is_head = operation.startswith("Head")
        if key is None and code == "404":
            code = "NoSuchBucket"
        kind = _KINDS.get(code) or _STATUS_KINDS.get(status)
        if kind is None and is_retryable_status(status):
            kind = UnavailableError
        # The answer to a HEAD has no body to say ExpiredToken in.
        if kind is None and self._temporary and code == "400" and is_head:
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
        return (kind or ColdstreamError)(text, hint=hint, operation=operation, target=at)

    @contextmanager
    def _translated(self, operation: str, key: str | None) -> Iterator[None]:
        """Turns botocore's and urllib3's exceptions into ours."""
        try:
            yield
        except ColdstreamError:
            raise
        except Exception as exc:
            # Not kept in a variable: the cycle with its own frame would keep the response's socket open.
            raise self._translate(exc, operation, key) from exc

    def _translate(self, exc: Exception, operation: str, key: str | None) -> Exception:
        at, endpoint = self._at(key), self._client.meta.endpoint_url
        if self.retry.cancel.is_set():
            return CancelledError("cancelled")
        # botocore fails so over times, sizes and counts that are none, and over what is missing.
        if isinstance(exc, (StrangerError, ValueError, OverflowError, KeyError)):
            what = f"an entry without {exc}" if isinstance(exc, KeyError) else exc
            return UnavailableError(
                f"{at}: {endpoint} does not answer as an S3 server: {operation} gets {what}",
                hint=f"check {self._endpoint_setting}; a captive portal, a proxy or a web site may answer there",
                operation=operation,
                target=at,
                retryable=self._reached,
            )
        if isinstance(exc, botocore.exceptions.ClientError):
            stranger = exc.response.get(STRANGER)
            self._reached = self._reached or not stranger
            fault = exc.response.get("Error", {})
            meta = exc.response.get("ResponseMetadata", {})
            error = self._error(
                str(fault.get("Code", "")),
                meta.get("HTTPStatusCode", 0),
                str(fault.get("Message", "")),
                operation,
                key,
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
                f"{endpoint}: TLS failed: {_short(exc)}",
                hint="check the endpoint's name and this machine's certificates (AWS_CA_BUNDLE names others)",
                retryable=False,
            )
        by_proxy = isinstance(exc, botocore.exceptions.ProxyConnectionError)
        unreached = (botocore.exceptions.EndpointConnectionError, botocore.exceptions.ConnectTimeoutError)
        if by_proxy or isinstance(exc, unreached):
            # Before anything ever answered, the address is the likelier fault: say so now, not in three minutes.
            return UnavailableError(
                f"cannot reach {endpoint}" + (f": {_short(exc)}" if by_proxy else ""),
                hint=f"check {'HTTPS_PROXY, HTTP_PROXY' if by_proxy else self._endpoint_setting} and the network",
                operation=operation,
                target=at,
                retryable=self._reached,
            )
        if isinstance(exc, (botocore.exceptions.HTTPClientError, botocore.exceptions.IncompleteReadError, OSError)):
            return UnavailableError(f"{at}: the connection broke: {_short(exc)}", operation=operation, target=at)
        if isinstance(exc, botocore.exceptions.BotoCoreError):
            return ConfigError(f"{at}: {_short(exc)}", hint="check the endpoint, the region and the profile")
        return exc


class _Sending(io.RawIOBase):
    """A request body that is read in bounded pieces, so that time limits, progress and Ctrl-C work inside a part."""

    def __init__(self, body: Body, retry: Retry, on_sent: Callable[[int], None] | None) -> None:
        super().__init__()
        self._view = memoryview(body)
        self._retry, self._on_sent = retry, on_sent
        self._position = 0
        # botocore reads the body once to sign it and once to send it; only the second is progress.
        self._sending = False
        self._sent = 0

    def rewound(self) -> _Sending:
        """Itself, ready for another attempt."""
        self._position, self._sending = 0, False
        return self

    def begin(self) -> None:
        """What is read from now on is sent. Subtracts the bytes of an earlier attempt from the progress."""
        if self._on_sent and self._sent:
            self._on_sent(-self._sent)
        self._sending, self._sent = True, 0

    def __len__(self) -> int:
        return len(self._view)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        self._retry.check()
        # urllib3 asks for 16 KiB at a time; larger pieces save system calls, and it sends whatever it gets.
        stop = len(self._view) if size < 0 else self._position + max(size, _SEND_BYTES)
        piece = self._view[self._position : stop]
        self._position += len(piece)
        if self._sending and self._on_sent and len(piece):
            self._sent += len(piece)
            self._on_sent(len(piece))
        return piece if len(piece) else b""  # type: ignore[return-value]  # a view: sent and hashed without a copy


def _client(settings: Settings, connections: int) -> Any:
    keys = settings.keys()
    chosen = (
        {"aws_access_key_id": keys[0], "aws_secret_access_key": keys[1], "aws_session_token": keys[2]} if keys else {}
    )
    try:
        session = boto3.session.Session(
            profile_name=settings.get("AWS_PROFILE") if not keys else None, region_name=settings.region, **chosen
        )
        client = session.client(
            "s3",
            endpoint_url=settings.endpoint(),
            verify=_trusted(settings),
            config=Config(
                signature_version="s3v4",
                # R2 answers aws-chunked bodies with trailers badly; boto3 1.36 made them the default.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"} if settings.endpoint() else {},
                max_pool_connections=connections + 2,
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"total_max_attempts": 1, "mode": "standard"},
                tcp_keepalive=True,
            ),
        )
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise ConfigError(
            f"the S3 client refuses the settings: {_short(exc)}", hint="run: coldstream setup --write-env"
        ) from exc
    # R2 never answers "Expect: 100-continue"; waiting for it costs a second per PUT.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    client.meta.events.register("before-send.s3", _begin_sending)
    recognize_answers(client)
    return client


def _trusted(settings: Settings) -> str | None:
    """The certificates for boto3, which knows only AWS_CA_BUNDLE of what the engine looks at."""
    bundle = settings.get("AWS_CA_BUNDLE")
    if bundle and not os.path.exists(bundle):
        raise ConfigError(
            f"{settings.origin('AWS_CA_BUNDLE')}: there are no certificates at {bundle!r}",
            hint="name a PEM file that exists",
        )
    return bundle or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or None


def _begin_sending(request: Any, **_rest: Any) -> None:
    if isinstance(request.body, _Sending):
        request.body.begin()


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


def _short(exc: Exception) -> str:
    """The first line of a foreign message, without the query of a URL, which may hold a signature."""
    return re.sub(r"\?\S*", "", str(exc).splitlines()[0] if str(exc) else type(exc).__name__)[:200]


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


def open_store(uri: str, settings: Settings, *, retry: Retry | None, connections: int) -> S3Store:
    """The bucket, or the prefix in one, that an `s3:` URI names; see `opening.open_store`."""
    split = urlsplit(uri)
    prefix = split.path.strip("/")
    if not split.netloc or (prefix and path_fault(prefix)):
        raise ConfigError(f"{uri!r} is not a store", hint="write s3://bucket, s3://bucket/prefix or file:///folder")
    return S3Store(split.netloc, prefix=prefix, settings=settings, retry=retry, connections=connections)
