"""Many presigned links out of one: boto3 takes two milliseconds for each, and one hash chain is enough. Pure.

A link is taken apart and signed again for its own key. It is the template of others only if that gives the same
signature, so that another algorithm, encoding or set of signed headers is left to boto3.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The common part of the links of one moment.

    Attributes:
        base: Scheme, host and the path in front of the key.
        head: Of the canonical request: method, and path in front of the key.
        tail: Of the canonical request, behind the path.
        query: Of the link, without the signature.
        scope: Date and scope, as they are signed.
        key: The signing key. A secret.
    """

    base: str
    head: str
    tail: str
    query: str
    scope: str
    key: bytes = field(repr=False)

    def link(self, key: str) -> str:
        """The link to a key. A secret."""
        return f"{self.base}{_encoded(key)}?{self.query}&X-Amz-Signature={self._signature(key)}"

    def _signature(self, key: str) -> str:
        canonical = hashlib.sha256(f"{self.head}{_encoded(key)}\n{self.tail}".encode()).hexdigest()
        return hmac.new(self.key, f"AWS4-HMAC-SHA256\n{self.scope}\n{canonical}".encode(), hashlib.sha256).hexdigest()


def template_of(link: str, key: str, secret_key: str) -> Template | None:
    """The template of a presigned link, if it can be reproduced."""
    split = urlsplit(link)
    query, mark, signature = split.query.partition("&X-Amz-Signature=")
    fields = dict(parse_qsl(query))
    path = split.path.removesuffix(_encoded(key))
    if not mark or path == split.path or fields.get("X-Amz-SignedHeaders") != "host":
        return None
    _, _, scope = fields.get("X-Amz-Credential", "").partition("/")
    signing = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    pairs = sorted(f"{_quoted(name)}={_quoted(value)}" for name, value in fields.items())
    template = Template(
        base=f"{split.scheme}://{split.netloc}{path}",
        head=f"GET\n{path}",
        tail=f"{'&'.join(pairs)}\nhost:{split.netloc}\n\nhost\nUNSIGNED-PAYLOAD",
        query=query,
        scope=f"{fields.get('X-Amz-Date', '')}\n{scope}",
        key=signing,
    )
    return template if template.link(key) == link and signature else None


def _encoded(key: str) -> str:
    return quote(key, safe="/~")


def _quoted(text: str) -> str:
    return quote(text, safe="~")
