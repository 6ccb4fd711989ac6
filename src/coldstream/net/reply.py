"""A few words about a reply that is not from the expected server: a captive portal, a proxy, a web site. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WORDS_MAX = 60
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
# A page that quotes the request would show a signed link.
_QUERY = re.compile(r"\?[^\s<>]*=[^\s<>]*|\b(?:X-Amz-|token=|Signature=)[^\s<>]*", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")


def is_page(content_type: str | None, body: bytes = b"") -> bool:
    """Whether an answer is a web page, by its type or by how it begins."""
    return "html" in (content_type or "").lower() or _PAGE.match(body[:2048]) is not None


def describe_reply(status: int, headers: Mapping[str, str], body: bytes = b"") -> str:
    """Such as `200 text/html "Sign in to Wi-Fi"`, without the query of a URL, which may be a secret.

    The names of headers are in lower case, or do not depend on it; `body` is the beginning. Of a redirect's target only
    the host is shown.
    """
    if location := headers.get("location"):
        host = re.match(r"[a-z]+://(?:[^/@?#]*@)?([^/?#]+)", location, re.IGNORECASE)
        return f"{status}, a redirect to {_printable(host[1]) if host else 'another path'}"
    kind = headers.get("content-type", "").partition(";")[0].strip()
    words = first_words(body)
    parts = [str(status), *([_printable(kind)[:40]] if kind else []), f'"{words}"' if words else "without content"]
    return " ".join(parts)


def first_words(body: bytes) -> str:
    """The start of a text on one line, without its tags; of a page the title."""
    import html

    text = body[:4096].decode("utf-8", "replace").lstrip("\ufeff")
    title = _TITLE.search(text)
    marked = title[1] if title and title[1].strip() else text
    words = html.unescape(_TAG.sub(" ", marked)).strip() or marked
    words = " ".join(_printable(_QUERY.sub("…", words)).split())
    return words if len(words) <= _WORDS_MAX else words[: _WORDS_MAX - 1].rstrip() + "…"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
