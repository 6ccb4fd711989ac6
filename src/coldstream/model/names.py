"""Names of models, of files inside them, and URIs: what may be printed, and what may become a key or a path. Pure.

They come from users, from the Hub, from buckets and from manifests, which others may have written. A URI may hold a
secret: a token in the query, a user and a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coldstream.errors import IntegrityError, UsageError

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

    def below(self, folder: str) -> Uri:
        """A folder inside the model, such as a component of a pipeline. Raises UsageError for an invalid path."""
        if not folder:
            return self
        if fault := path_fault(folder):
            raise UsageError(f"subfolder is {folder!r}: {fault}")
        scheme, mark, _ = self.full.partition("://")
        # A query follows the path, and so does a revision.
        end = "@" if scheme == "hf" or not (mark or is_path(self.full)) else "?" if scheme in {"http", "https"} else ""
        path, separator, rest = self.full.partition(end) if end else (self.full, "", "")
        return Uri(f"{path.rstrip('/')}/{folder}{separator}{rest}")

    @classmethod
    def of(cls, uri: str | Uri) -> Uri:
        return uri if isinstance(uri, Uri) else cls(uri)


def without_secrets(text: str) -> str:
    """A foreign text (a usage error, a library's message) with each URI in it as it may be printed."""

    def shown(match: re.Match[str]) -> str:
        scheme, mark, rest = match.groups()
        return str(Uri(f"{scheme}://{rest}")).replace("://", mark, 1)

    return _QUERY.sub("", _WITH_SCHEME.sub(shown, text))


def _user(scheme: str, rest: str) -> str:
    match = _USERS.get(scheme.lower(), _USER_OF_SERVER).match(rest)
    return match[0] if match else ""


# S3 and R2: a key has at most 1,024 bytes of UTF-8. File systems: a name has at most 255.
KEY_BYTES_MAX = 1024
SEGMENT_BYTES_MAX = 255
# The one object of a model's folder that is ours; room for the chunks of 5 TB of weights, all held in memory at once.
MANIFEST_NAME = "coldstream.json"
MANIFEST_BYTES_MAX = 32 << 20

# C0 and C1, line and paragraph separators, marks of the writing direction.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# `checked_name` allows half a key in all.
_FOLDER_CHARACTERS_MAX = 100
_MODEL_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def expanded(text: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, with `~` for the home folder; as it is where the user has none."""
    return Path(os.path.expanduser(text))


def is_path(uri: str) -> bool:
    """Whether what names a model is a path on this machine, and neither a name nor a URI with a scheme."""
    return uri.startswith(("/", ".", "~"))


def model_name(uri: str | Uri) -> str:
    """What a model is called: `org/model` of a name or a URI, a folder's own name. Without bucket, host or secret."""
    uri = str(Uri.of(uri)).rstrip("/")
    if is_path(uri) or uri.startswith("file:"):
        return os.path.basename(os.path.abspath(uri))
    scheme, _, rest = uri.rpartition("://")
    if scheme in {"", "hf"}:
        return rest.partition("@")[0]
    return "/".join(rest.split("/")[1:][-2:]) or rest


def is_hidden(path: str) -> bool:
    """Whether a file or a folder around it, relative to a model, begins with a dot: settings and records, no models."""
    return any(segment.startswith(".") for segment in path.split("/"))


def path_fault(path: str) -> str | None:
    """Why `path` may not be used inside a model's folder, as a part of a key and of a file's path; None when it may."""
    if not path:
        return "it is empty"
    if _CONTROL.search(path):
        return "it holds a control character"
    if "\\" in path:
        return "it holds a backslash"
    if path.startswith("/"):
        return "it is absolute"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if len(encoded) > KEY_BYTES_MAX:
        return f"it is longer than {KEY_BYTES_MAX} bytes"
    for segment in path.split("/"):
        if segment in {"", ".", ".."}:
            return f"it has the segment {segment!r}"
        if len(segment.encode()) > SEGMENT_BYTES_MAX:
            return f"it has a segment longer than {SEGMENT_BYTES_MAX} bytes"
    return None


def checked_path(path: str, *, where: str) -> str:
    """`path`, unless it would leave its folder; `where` says who named it ("org/model on the Hub")."""
    if fault := path_fault(path):
        raise IntegrityError(
            f"{where} names a file {path[:80]!r} that is refused: {fault}", hint="report it to the model's author"
        )
    return path


def split_revision(name: str) -> tuple[str, str | None]:
    """A model's name and the revision of the Hub that follows it, or None."""
    bare, mark, revision = name.partition("@")
    return (bare, revision) if mark and revision else (name, None)


def checked_name(name: str) -> str:
    """A model's name in the bucket, `org/model` or any depth of such segments, if it can be a prefix of keys."""
    segments = name.split("/")
    if not all(_MODEL_SEGMENT.fullmatch(segment) for segment in segments) or path_fault(name):
        bare, revision = split_revision(name)
        hint = "letters, digits, '.', '_' and '-' between slashes, like meta-llama/Llama-3.1-8B-Instruct"
        if revision and all(_MODEL_SEGMENT.fullmatch(segment) for segment in bare.split("/")):
            hint = f"a name in the bucket holds one revision; write {bare}"
        raise UsageError(f"{str(Uri(name))!r} is not a model's name", hint=hint)
    # Room for the longest file names below it.
    if len(name) > KEY_BYTES_MAX // 2:
        raise UsageError(f"the name {name[:60]!r}… is longer than {KEY_BYTES_MAX // 2} characters")
    return name


def folder_name(segments: Sequence[str], otherwise: str) -> str:
    """Segments of a path as a model's name: characters that `checked_name` does not allow become a dash."""
    clean = [re.sub(r"[^A-Za-z0-9._-]+", "-", segment).lstrip(".-")[:_FOLDER_CHARACTERS_MAX] for segment in segments]
    return "/".join(segment for segment in clean if segment) or folder_name([otherwise], "model")
