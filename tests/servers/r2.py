"""R2's rules about who may do what, in front of a server that has none; and the part of Cloudflare's API beside it.

    with moto_server() as upstream, r2(upstream) as double, cloudflare(double) as api: ...

The rules are written from Cloudflare's documents (r2/api/s3/temporary-credentials, r2/api/error-codes) and share no
code with what signs: signatures are computed again by botocore, tokens are taken apart here. R2 is known by its host's
name, so the double is an HTTP proxy that answers for `<account>.r2.cloudflarestorage.com` and for no other host: boto3,
urllib3 and the engine find it through HTTP_PROXY, in every process, and sign and send what they would send to R2.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.servers.stores import S3Server

ACCOUNT = "0123456789abcdef0123456789abcdef"
ACCESS_KEY = "5b1f5c0e8b8f4c0b9a1d2e3f4a5b6c7d"
SECRET_KEY = hashlib.sha256(b"the value of an R2 token").hexdigest()
API_TOKEN = "cf-token-Sn3lZJTBX6kkg7OdcBUAxOO963GEIyGQqnFTOFYY"
WEEK_SECONDS = 604800
SKEW_SECONDS = 900
# R2's own credentials under their upstream names; upstream does not check signatures.
_UPSTREAM = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
_HOP_BY_HOP = {"connection", "host", "authorization", "x-amz-security-token", "proxy-connection", "transfer-encoding"}


class DeniedError(Exception):
    """A refusal, as R2 words it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Query:
    """A request to the S3 API."""

    method: str
    host: str
    target: str  # path and query as they were sent
    headers: Mapping[str, str]  # lower-case names
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def parameters(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))


@dataclass
class FakeR2:
    """The double.

    Attributes:
        upstream: Where the objects are.
        host: The name that it answers for.
        proxy: URL of its proxy.
        ahead_seconds: How far the clock that tokens are judged by is ahead.
        expired: Status and code for a token whose time is over. S3 says ExpiredToken; R2's documents know of
            Unauthorized.
        log: "METHOD /path status code" of each request; the code is "ok" when it was let through.
    """

    upstream: S3Server
    host: str = f"{ACCOUNT}.r2.cloudflarestorage.com"
    proxy: str = ""
    ahead_seconds: float = 0.0
    expired: tuple[int, str] = (400, "ExpiredToken")
    log: list[str] = field(default_factory=list)

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY

    def environ(self, bucket: str) -> dict[str, str]:
        """What coldstream needs to use a bucket with the parent's keys."""
        return {
            "R2_ENDPOINT": f"http://{self.host}",
            "R2_BUCKET": bucket,
            "R2_ACCESS_KEY": ACCESS_KEY,
            "R2_SECRET_KEY": SECRET_KEY,
            # In lower case too: those would win.
            **dict.fromkeys(("HTTP_PROXY", "http_proxy"), self.proxy),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        }

    def token(
        self, bucket: str, prefixes: list[str], *, header: object = None, key: str = SECRET_KEY, **claims: Any
    ) -> str:
        """A JWT, as Cloudflare's API would put into a session token; `claims` replaces some of it."""
        now = int(time.time())
        payload = {
            "bucket": bucket,
            "scope": "object-read-only",
            "paths": {"prefixPaths": prefixes, "objectPaths": []},
            "sub": ACCOUNT,
            "iss": ACCESS_KEY,
            "aud": self.host,
            "iat": now,
            "exp": now + 900,
        } | claims
        head = json.dumps(header or {"alg": "HS256", "typ": "JWT"}).encode()
        text = f"{_encode(head)}.{_encode(json.dumps(payload).encode())}"
        return f"{text}.{_encode(hmac.digest(key.encode(), text.encode(), 'sha256'))}"

    def check(self, query: Query) -> None:
        """Raises DeniedError for what R2 would refuse."""
        if query.host != self.host:
            raise DeniedError(502, "BadGateway", f"this is {self.host}, not {query.host}")
        parameters = query.parameters
        presigned = "X-Amz-Signature" in parameters
        if presigned:
            given = {
                "Credential": parameters.get("X-Amz-Credential", ""),
                "SignedHeaders": parameters.get("X-Amz-SignedHeaders", ""),
                "Signature": parameters["X-Amz-Signature"],
            }
            stamp, token = parameters.get("X-Amz-Date", ""), parameters.get("X-Amz-Security-Token")
        else:
            scheme, _, rest = query.headers.get("authorization", "").partition(" ")
            if scheme != "AWS4-HMAC-SHA256":
                raise DeniedError(401, "Unauthorized", "no signature")
            given = dict(re.findall(r"(\w+)=([^,\s]+)", rest))
            stamp, token = query.headers.get("x-amz-date", ""), query.headers.get("x-amz-security-token")
            if token is not None and "x-amz-security-token" not in given["SignedHeaders"].split(";"):
                raise DeniedError(403, "SignatureDoesNotMatch", "the token is not signed")
        access_key, day, region, service, end = (given["Credential"].split("/") + [""] * 5)[:5]
        if access_key != ACCESS_KEY:
            raise DeniedError(401, "Unauthorized", "no such key")
        if (service, end, day) != ("s3", "aws4_request", stamp[:8]) or region not in {"auto", "us-east-1", ""}:
            raise DeniedError(403, "SignatureDoesNotMatch", "the scope of the signature")
        self._check_time(stamp, int(parameters.get("X-Amz-Expires", 0)) if presigned else None)
        claims, secret = (None, SECRET_KEY) if token is None else self._claims(token)
        if not hmac.compare_digest(_signature(query, given, stamp, region, secret, presigned), given["Signature"]):
            raise DeniedError(403, "SignatureDoesNotMatch", "the signature")
        stated = query.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        if stated != "UNSIGNED-PAYLOAD" and stated != hashlib.sha256(query.body).hexdigest():
            raise DeniedError(400, "XAmzContentSHA256Mismatch", "the body")
        if claims is not None:
            _check_scope(query, claims)

    def _check_time(self, stamp: str, lasts_seconds: int | None) -> None:
        signed = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
        now = time.time()
        if lasts_seconds is None and abs(now - signed) > SKEW_SECONDS:
            raise DeniedError(403, "RequestTimeTooSkewed", "the clock")
        if lasts_seconds is not None and not (1 <= lasts_seconds <= WEEK_SECONDS and now < signed + lasts_seconds):
            raise DeniedError(400, "ExpiredRequest", "the link has expired")

    def _claims(self, token: str) -> tuple[dict[str, Any], str]:
        """What a session token allows, and the secret that goes with it."""
        try:
            text = base64.b64decode(token, validate=True).decode()
            kind, _, jwt = text.partition("/")
            head, body, signature = jwt.split(".")
            header, claims = json.loads(_decode(head)), json.loads(_decode(body))
            expected = hmac.digest(SECRET_KEY.encode(), f"{head}.{body}".encode(), "sha256")
            sound = (
                kind == "jwt"
                and header == {"alg": "HS256", "typ": "JWT"}
                and hmac.compare_digest(expected, _decode(signature))
                and claims["sub"] == ACCOUNT
                and claims["iss"] == ACCESS_KEY
                and claims["aud"] == self.host
                and type(claims["iat"]) is int
                and type(claims["exp"]) is int
                and 0 < claims["exp"] - claims["iat"] <= WEEK_SECONDS
                and claims["iat"] <= time.time() + SKEW_SECONDS
                and isinstance(claims["bucket"], str)
                and claims["scope"] in {"object-read-only", "object-read-write", "admin-read-only", "admin-read-write"}
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise DeniedError(401, "Unauthorized", f"the session token is none ({type(exc).__name__})") from exc
        if not sound:
            raise DeniedError(401, "Unauthorized", "the session token is not valid")
        if claims["exp"] <= time.time() + self.ahead_seconds:
            raise DeniedError(*self.expired, "The provided token has expired.")
        return claims, hashlib.sha256(jwt.encode()).hexdigest()


def _check_scope(query: Query, claims: dict[str, Any]) -> None:
    bucket, _, key = (unquote(part) for part in query.path.removeprefix("/").partition("/"))
    paths = claims.get("paths")
    prefixes, objects = (paths or {}).get("prefixPaths", []), (paths or {}).get("objectPaths", [])
    everything = paths is None or not (prefixes or objects)
    parameters = query.parameters
    if bucket != claims["bucket"]:
        raise DeniedError(403, "AccessDenied", "another bucket")
    if claims["scope"].endswith("read-only") and query.method not in {"GET", "HEAD"}:
        raise DeniedError(403, "AccessDenied", "read-only")
    if everything:
        return
    if key:
        allowed = key in objects or any(key.startswith(prefix) for prefix in prefixes)
    else:
        listing = query.method == "GET" and parameters.get("list-type") == "2"
        allowed = listing and any(parameters.get("prefix", "").startswith(prefix) for prefix in prefixes)
    if not allowed:
        raise DeniedError(403, "AccessDenied", "outside of the credential's paths")


def _signature(query: Query, given: dict[str, str], stamp: str, region: str, secret: str, presigned: bool) -> str:
    """What the signature ought to be, by botocore."""
    target = query.target
    if presigned:
        target = re.sub(r"&?X-Amz-Signature=[0-9a-f]+", "", target)
    names = given["SignedHeaders"].split(";")
    request = AWSRequest(
        method=query.method,
        url=f"http://{query.host}{target}",
        headers={name: query.headers.get(name, "") for name in names},
        data=query.body,
    )
    request.context["timestamp"] = stamp
    signer = (S3SigV4QueryAuth if presigned else S3SigV4Auth)(Credentials(ACCESS_KEY, secret), "s3", region)
    return str(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away


@contextmanager
def _served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def r2(upstream: S3Server, *, host: str | None = None) -> Iterator[FakeR2]:
    """The double, in front of a server, until the context ends."""
    double = FakeR2(upstream, **({"host": host} if host else {}))
    address = urlsplit(upstream.endpoint).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _serve(self) -> None:
            split = urlsplit(self.path)
            target = (split.path or "/") + (f"?{split.query}" if split.query else "")
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length") or 0))
            query = Query(self.command, split.netloc or headers.get("host", ""), target, headers, body)
            try:
                double.check(query)
            except DeniedError as exc:
                double.log.append(f"{self.command} {query.path} {exc.status} {exc.code}")
                text = f"<?xml version='1.0'?><Error><Code>{exc.code}</Code><Message>{exc.message}</Message></Error>"
                self._answer(exc.status, {"Content-Type": "application/xml"}, text.encode())
                return
            status, answered, content = self._ask(query)
            double.log.append(f"{self.command} {query.path} {status} ok")
            self._answer(status, answered, content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

        def _ask(self, query: Query) -> tuple[int, dict[str, str], bytes]:
            """Upstream's answer; upstream does not check the keys."""
            pairs = [pair for pair in query.target.partition("?")[2].split("&") if not pair.startswith("X-Amz-")]
            target = query.path + (f"?{'&'.join(pairs)}" if any(pairs) else "")
            headers = {name: value for name, value in query.headers.items() if name not in _HOP_BY_HOP}
            connection = http.client.HTTPConnection(address, timeout=60)
            try:
                connection.request(query.method, target, query.body, {**headers, "Authorization": _UPSTREAM})
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"transfer-encoding", "connection", "content-length", "server", "date"}:
                    self.send_header(name, value)
            stated = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", stated)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    with _served(Handler) as url:
        double.proxy = url
        yield double


@dataclass(frozen=True)
class Answer:
    """What the API says next, whatever is asked.

    Attributes:
        status: Its status; 0 hangs up instead.
        body: A document, or bytes as they are.
        headers: More headers.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class FakeApi:
    """Cloudflare's API.

    Attributes:
        url: For CLOUDFLARE_BASE_URL.
        token: For CLOUDFLARE_API_TOKEN.
        answers: Taken from the front before anything is looked at.
        requests: "METHOD /path" and the body of each.
        graphql: Answers the documents of GraphQL; None: there is no such thing.
    """

    url: str = ""
    token: str = API_TOKEN
    answers: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    graphql: Callable[[Any], Answer] | None = None

    def environ(self) -> dict[str, str]:
        """What coldstream needs to use it."""
        return {"CLOUDFLARE_API_TOKEN": self.token, "CLOUDFLARE_BASE_URL": self.url}


def fault(status: int, code: int, message: str, **headers: str) -> Answer:
    """An error in Cloudflare's envelope."""
    body = {"success": False, "errors": [{"code": code, "message": message}], "messages": [], "result": None}
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@contextmanager
def cloudflare(double: FakeR2 | None = None) -> Iterator[FakeApi]:
    """The API on loopback; with a double of R2 it issues credentials for that."""
    api = FakeApi()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.removeprefix("/client/v4")
            document = json.loads(data) if data else None
            api.requests.append((f"{self.command} {path}", document))
            answer = api.answers.pop(0) if api.answers else self._decide(path, document)
            if answer.status == 0:
                self.close_connection = True
                return
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def _decide(self, path: str, document: Any) -> Answer:
            if self.headers.get("Authorization") != f"Bearer {api.token}":
                return fault(403, 10000, "Authentication error")
            if api.graphql is not None and path == "/graphql" and self.command == "POST":
                return api.graphql(document)
            if double is None or path != f"/accounts/{ACCOUNT}/r2/temp-access-credentials" or self.command != "POST":
                return fault(404, 7003, "Could not route to that, perhaps your object identifier is invalid?")
            if self.headers.get("Content-Type") != "application/json" or not _is_request(document):
                return fault(400, 10021, "The JSON you provided was not well formed")
            now = int(time.time())
            jwt = double.token(
                document["bucket"],
                document.get("prefixes", []),
                scope=document["permission"],
                iat=now,
                exp=now + document["ttlSeconds"],
                paths={"prefixPaths": document.get("prefixes", []), "objectPaths": document.get("objects", [])},
            )
            result = keys_of(jwt)
            return Answer(200, {"success": True, "errors": [], "messages": [], "result": result})

    with _served(Handler) as url:
        api.url = f"{url}/client/v4"
        yield api


def keys_of(jwt: str) -> dict[str, str]:
    """The three values that belong to a JWT, as the API names them."""
    return {
        "accessKeyId": ACCESS_KEY,
        "secretAccessKey": hashlib.sha256(jwt.encode()).hexdigest(),
        "sessionToken": base64.b64encode(f"jwt/{jwt}".encode()).decode(),
    }


def _is_request(document: Any) -> bool:
    """Whether this is a body that the API's schema allows."""
    lists = [document.get(name, []) for name in ("prefixes", "objects")] if isinstance(document, dict) else [None]
    return (
        isinstance(document, dict)
        and document.keys() <= {"bucket", "parentAccessKeyId", "permission", "ttlSeconds", "prefixes", "objects"}
        and isinstance(document.get("bucket"), str)
        and document.get("parentAccessKeyId") == ACCESS_KEY
        and document.get("permission") in {"object-read-only", "object-read-write"}
        and type(document.get("ttlSeconds")) is int
        and 0 < document["ttlSeconds"] <= WEEK_SECONDS
        and all(isinstance(entry, list) and all(type(path) is str and path for path in entry) for entry in lists)
    )
