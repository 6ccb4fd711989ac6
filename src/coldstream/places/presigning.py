"""Many presigned links out of one: boto3 takes two milliseconds for each, and one hash chain is enough. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, urlsplit


def link_maker(link: str, key: str, secret_key: str) -> Callable[[str], str] | None:
    """A function from other keys to their links, which are secrets, out of the presigned link to `key`.

    It is None unless it reproduces `link`: another algorithm, encoding or set of signed headers is left to boto3.
    """
    split = urlsplit(link)
    query, mark, signature = split.query.partition("&X-Amz-Signature=")
    fields = dict(parse_qsl(query))
    path = split.path.removesuffix(quote(key, safe="/~"))
    if not mark or path == split.path or fields.get("X-Amz-SignedHeaders") != "host":
        return None
    _, _, scope = fields.get("X-Amz-Credential", "").partition("/")
    signing = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    pairs = sorted(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in fields.items())
    signed = f"{'&'.join(pairs)}\nhost:{split.netloc}\n\nhost\nUNSIGNED-PAYLOAD"

    def make(other: str) -> str:
        encoded = quote(other, safe="/~")
        request = hashlib.sha256(f"GET\n{path}{encoded}\n{signed}".encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{fields.get('X-Amz-Date', '')}\n{scope}\n{request}"
        proof = hmac.new(signing, text.encode(), hashlib.sha256).hexdigest()
        return f"{split.scheme}://{split.netloc}{path}{encoded}?{query}&X-Amz-Signature={proof}"

    return make if signature and make(key) == link else None
