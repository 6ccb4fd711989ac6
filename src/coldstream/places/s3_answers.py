"""Whether an answer is from an S3 server, checked before botocore reads it.

botocore takes a web page for an empty listing, an error 500, or a redirect that it follows without end. A real answer
has the root of its XML, or an ETag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coldstream.net.reply import describe_reply, is_page

_ROOT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:\w+:)?(\w+)")
_TELLING = ("List", "CreateMultipartUpload", "CompleteMultipartUpload", "DeleteObjects")
_STORES = {"PutObject", "UploadPart"}
_READS = {"GetObject", "HeadObject"}
# Proxies send them for a server that is busy or refuses: the status is trusted in any case.
_RELAYED_STATUS = {401, 403, 408, 429}
_SIGNS = {"x-amz-request-id", "x-amz-id-2", "x-amz-bucket-region", "x-amzn-requestid"}
_PAGE_BYTES = 4096
_PAGE_ENDS = (".html", ".htm")

# Under this key a parsed answer describes the server, where that is not an S3 server.
STRANGER = "ColdstreamStranger"


class StrangerError(Exception):
    """Another server answered; the message describes the answer. Translated like botocore's own errors."""


def recognize_answers(client: Any) -> None:
    """Makes a client raise `StrangerError` for answers that are not from an S3 server."""
    # Handlers of a wildcard come first: botocore's own turns a page with status 200 into an error 500.
    client.meta.events.register("before-parse.*.*", _check_answer)


def check_object(answer: Mapping[str, Any], key: str) -> None:
    """Raises StrangerError for a web page with an ETag of its own: often a proxy's, for a passing fault."""
    kind = answer.get("ContentType")
    if answer.get("ContentRange") or not is_page(kind) or key.endswith(_PAGE_ENDS):
        return
    body = b""
    if "Body" in answer:
        body = answer["Body"].read(_PAGE_BYTES)
        answer["Body"].close()
    raise StrangerError(_shown(200, {"content-type": kind or ""}, body, has_body="Body" in answer))


def _shown(status: int, headers: Mapping[str, str], body: bytes, *, has_body: bool) -> str:
    shown = describe_reply(status, headers, body)
    return shown if has_body else shown.removesuffix(" without content")


def _check_answer(
    *, operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_rest: object
) -> None:
    status, headers, body = response_dict["status_code"], response_dict["headers"], response_dict["body"]
    if _is_sound(operation_model.name, status, headers, body if isinstance(body, bytes) else None):
        return
    if not isinstance(body, bytes):
        stream, body = body, body.read(_PAGE_BYTES)
        stream.close()
    shown = _shown(status, headers, body, has_body=not operation_model.name.startswith("Head"))
    if status >= 500 or status in _RELAYED_STATUS:
        customized_response_dict[STRANGER] = shown
    else:
        raise StrangerError(shown)


def _is_sound(operation: str, status: int, headers: Mapping[str, str], body: bytes | None) -> bool:
    """Whether an answer has the marks of its kind; `body` is None where it is still to be received."""
    speaks = _is_telling(operation, body or b"")
    if status >= 400:
        return speaks or not is_page(headers.get("content-type") if body else None, body or b"")
    if status >= 300:
        # AWS says where the bucket is; without that, botocore asks again and is redirected again.
        return "x-amz-bucket-region" in headers or (speaks and b"<Region>" in (body or b""))
    if operation in _READS:
        return "etag" in headers or "last-modified" in headers
    if operation.startswith(_TELLING):
        return speaks
    if operation in _STORES:
        return "etag" in headers and (speaks or not body)
    if operation == "HeadBucket":
        # Frameworks call an empty answer a page; a server of the API numbers its answers, or says where the bucket is.
        return not is_page(headers.get("content-type")) or not _SIGNS.isdisjoint(headers)
    return speaks or not body


def _is_telling(operation: str, body: bytes) -> bool:
    """Whether a body is XML that such a server may send."""
    root = _ROOT.match(body)
    # One that ends early would be an error 500 to botocore.
    if root is None or not body.rstrip().endswith((root[1] + b">", b"/>")):
        return False
    # Servers differ in the names of their roots, but for those of listings, where another one would pass for empty.
    return root[1].startswith((b"List", b"Error")) if operation.startswith("List") else root[1].lower() != b"html"
