"""URIs that may hold a secret: a token in the query, a user and a password. Printed, they show neither. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# A password may hold slashes, as AWS's secret keys do; after a server's colon comes a port. Parsers look for an "@" and
# cut the URI there, so none has to follow.
_BEFORE_HOST = r"(?!\[)[^/?#@:]*:[^@]*(?:@|$)"
_USERS = {
    "s3": re.compile(rf"[^/?#@]*@|{_BEFORE_HOST}"),
    # What follows an "@" is a revision.
    "hf": re.compile(rf"hf_[^/@]*(?:@|$)|{_BEFORE_HOST}"),
}
_USER_OF_SERVER = re.compile(rf"[^/?#@]*@|(?![^/?#@:]*:\d*(?:[^\w%+=-]|$)){_BEFORE_HOST}")
# A path library makes one slash of two.
_WITH_SCHEME = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]+)(:/{1,2})([^\s'\"<>]*[^\s'\"<>:;,.)])")
_QUERY = re.compile(r"\?[\w.~%\[\]-]+=[^\s'\"<>]*")


@dataclass(frozen=True, slots=True)
class Uri:
    """Where a model is, as the user named it. Its `str` and `repr` hold no secret; `full` is for requests only."""

    full: str = field(repr=False)

    def __str__(self) -> str:
        scheme, mark, rest = self.full.partition("://")
        if self.full.startswith(("/", ".", "~")) or scheme.lower() == "file":
            return self.full
        rest, user = (rest, _user(scheme, rest)) if mark else (scheme, "")
        bare = re.split(r"[?#]", rest[len(user) :], maxsplit=1)[0]
        return f"{scheme}://{bare}" if mark else bare

    def __repr__(self) -> str:
        return f"Uri({str(self)!r})"

    @property
    def has_user(self) -> bool:
        scheme, mark, rest = self.full.partition("://")
        return bool(mark) and _user(scheme, rest).endswith("@")

    @classmethod
    def of(cls, uri: str | Uri) -> Uri:
        return uri if isinstance(uri, Uri) else cls(uri)


def without_secrets(text: str) -> str:
    """A foreign text (a usage error, a library's message) with each URI in it as it may be printed.

    >>> without_secrets("GET https://user:pass@host/model?token=abc failed")
    'GET https://host/model failed'
    """

    def shown(match: re.Match[str]) -> str:
        scheme, mark, rest = match.groups()
        return str(Uri(f"{scheme}://{rest}")).replace("://", mark, 1)

    return _QUERY.sub("", _WITH_SCHEME.sub(shown, text))


def _user(scheme: str, rest: str) -> str:
    match = _USERS.get(scheme.lower(), _USER_OF_SERVER).match(rest)
    return match[0] if match else ""
