"""The boto3 client of a bucket, the request bodies that it sends, and presigned links in its place.

boto3 is imported with the client: it takes 0.1 s, and a load with keys of its own does without.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from coldstream.errors import ConfigError
from coldstream.net.retry import Retry
from coldstream.net.tls import tls_settings
from coldstream.places.place import Body
from coldstream.places.s3_answers import recognize_answers
from coldstream.settings import Settings

CONNECT_SECONDS = 15
# Between two reads, not for the whole answer. Completing a large upload can stay silent for long.
READ_SECONDS = 60
# One system call sends this much within its time limit: little enough for eight connections on a slow uplink.
_SEND_BYTES = 256 * 1024


def open_client(settings: Settings, connections: int) -> Any:
    """A boto3 client, which all threads may share; raises ConfigError."""
    import boto3
    import botocore.exceptions
    from botocore.config import Config
    from botocore.handlers import add_expect_header

    # The certificates that all other connections trust, as far as boto3 can: it takes one file.
    files = tls_settings(ca_bundle=settings.get("AWS_CA_BUNDLE")).ca_files
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
            verify=files[0] if files else None,
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
            f"the S3 client refuses the settings: {first_line(exc)}", hint="run: coldstream setup --write-env"
        ) from exc
    # R2 never answers "Expect: 100-continue"; waiting for it costs a second per PUT.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    client.meta.events.register("before-send.s3", _begin_sending)
    recognize_answers(client)
    return client


def _begin_sending(request: Any, **_rest: Any) -> None:
    if isinstance(request.body, RequestBody):
        request.body.begin()


def link_maker(link: str, key: str, secret_key: str) -> Callable[[str], str] | None:
    """A function from other keys to their links, which are secrets, out of the presigned link to `key`.

    boto3 takes two milliseconds for a link, and one hash chain is enough. None unless the function reproduces `link`:
    another algorithm, encoding or set of signed headers is left to boto3.
    """
    split = urlsplit(link)
    fields = dict(parse_qsl(split.query))
    fields.pop("X-Amz-Signature", None)
    folder = split._replace(path=split.path.removesuffix(quote(key, safe="/~")), query="").geturl()
    make = _signing(folder, fields, secret_key)
    return make if make(key) == link else None


def own_link_maker(settings: Settings, bucket: str) -> Callable[[str, int], str] | None:
    """A function from a key and a number of seconds to its link, a secret, as boto3 makes it; None: leave it to boto3.

    For keys of the settings and an endpoint, where nothing else decides how a link is signed.
    """
    keys, endpoint, region = settings.keys(), settings.endpoint(), settings.region
    split = urlsplit(endpoint or "")
    # A usual port would not be part of what is signed.
    if keys is None or endpoint is None or split.port in {80, 443}:
        return None
    identity, secret_key, token = keys
    folder = f"{endpoint}/{quote(bucket, safe='~')}/"

    def make(key: str, seconds: int) -> str:
        date = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        fields = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{identity}/{date[:8]}/{region}/s3/aws4_request",
            "X-Amz-Date": date,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
        } | ({"X-Amz-Security-Token": token} if token else {})
        return _signing(folder, fields, secret_key)(key)

    return make


def _signing(folder: str, fields: Mapping[str, str], secret_key: str) -> Callable[[str], str]:
    """A function from the key of an object below the URL `folder` to its link, with these `fields` of the query."""
    split = urlsplit(folder)
    _, _, scope = fields.get("X-Amz-Credential", "").partition("/")
    signing = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    pairs = [f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in fields.items()]
    signed = f"{'&'.join(sorted(pairs))}\nhost:{split.netloc}\n\nhost\nUNSIGNED-PAYLOAD"

    def make(key: str) -> str:
        path = split.path + quote(key, safe="/~")
        request = hashlib.sha256(f"GET\n{path}\n{signed}".encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{fields.get('X-Amz-Date', '')}\n{scope}\n{request}"
        signature = hmac.new(signing, text.encode(), hashlib.sha256).hexdigest()
        return f"{split.scheme}://{split.netloc}{path}?{'&'.join(pairs)}&X-Amz-Signature={signature}"

    return make


class RequestBody:
    """A request body that is read in bounded pieces, so that time limits, progress and Ctrl-C work inside a part.

    It has the methods of a file that botocore and urllib3 use.
    """

    def __init__(self, body: Body, retry: Retry, on_sent: Callable[[int], None] | None) -> None:
        self._view = memoryview(body)
        self._retry, self._on_sent = retry, on_sent
        self._position = 0
        # botocore reads the body once to sign it and once to send it; only the second is progress.
        self._sending = False
        self._sent = 0

    def rewound(self) -> RequestBody:
        self._position, self._sending = 0, False
        return self

    def begin(self) -> None:
        """The bytes that are read from now on are sent. Subtracts those of an earlier attempt from the progress."""
        if self._on_sent and self._sent:
            self._on_sent(-self._sent)
        self._sending, self._sent = True, 0

    def __len__(self) -> int:
        return len(self._view)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position

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


def first_line(exc: Exception) -> str:
    """The first line of a foreign message, without the query of a URL, which may hold a signature."""
    return re.sub(r"\?\S*", "", str(exc).splitlines()[0] if str(exc) else type(exc).__name__)[:200]
