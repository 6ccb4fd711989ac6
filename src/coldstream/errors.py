"""Every error that coldstream raises on purpose.

    ColdstreamError                     exit 1    something failed; `retryable` says whether trying again can help
    ├── UsageError                      exit 2    what was asked makes no sense
    │   └── ConfigError                 exit 2    a setting is missing or malformed
    ├── PartialError                    exit 3    some of several things failed
    ├── NotFoundError                   exit 10   (FileNotFoundError) no such model, object, revision or file
    ├── BucketNotFoundError             exit 10   (FileNotFoundError) the bucket does not exist
    ├── UploadNotFoundError             exit 10   (FileNotFoundError) a multipart upload is gone: completed or aborted
    ├── CredentialsError                exit 12   (PermissionError) refused, expired, or not allowed to do this
    ├── IntegrityError                  exit 13   bytes are not what they should be
    │   ├── HeaderError                           a safetensors header that is truncated or lies
    │   └── ManifestError                         a manifest that cannot be trusted or is of a newer format
    ├── ConflictError                   exit 1    somebody else changed it first (a condition did not hold)
    ├── UnavailableError                exit 1    (ConnectionError) the other side no answer, or busy; retryable
    ├── DiskError                       exit 1    (OSError) the local disk is full or refuses
    └── CancelledError                  exit 130  Ctrl-C

Foreign exceptions are translated where they arise, in `store` and `hub`, with `from exc`; no other module catches
botocore's or huggingface_hub's. A message says what, where and the two values that differ; `hint` is the command
that mends it. Neither ever holds a secret.
"""

from __future__ import annotations

import os
import sys
from typing import ClassVar


class ColdstreamError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        hint: What the user can do about it, or None.
        operation: What was being done ("GetObject", "read header"), or None.
        target: The URI that it was done to, or None.
        retryable: Whether the same call may succeed later, unchanged.
        retry_after_seconds: How long the other side asked us to wait, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        operation: str | None = None,
        target: str | None = None,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.operation = operation
        self.target = target
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        if hint and sys.version_info >= (3, 11):
            # For users of the library, who see a traceback.
            self.add_note(f"hint: {hint}")

    def __str__(self) -> str:
        return self.message

    @property
    def kind(self) -> str:
        """The name that `--json` shows, a contract: the class's name without "Error", in lower case with dashes."""
        stem = type(self).__name__.removesuffix("Error")
        return "".join("-" + c.lower() if c.isupper() else c for c in stem).lstrip("-")


class UsageError(ColdstreamError):
    """The request makes no sense as given. Permanent."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is missing or malformed; the message says which, and where it was looked for. Permanent."""


class PartialError(ColdstreamError):
    """Some of several independent things failed, and some did not. Permanent."""

    exit_code = 3


class NotFoundError(ColdstreamError, FileNotFoundError):
    """A model, an object, a repository, a revision or a file does not exist. Permanent."""

    exit_code = 10


# Not a NotFoundError: whoever asks whether an object exists must not take a misspelt bucket for a "no".
class BucketNotFoundError(ColdstreamError, FileNotFoundError):
    """The bucket does not exist, or these credentials may not see it. Permanent."""

    exit_code = 10


class UploadNotFoundError(ColdstreamError, FileNotFoundError):
    """A multipart upload is gone: it was completed, aborted, or has expired. Permanent."""

    exit_code = 10


class CredentialsError(ColdstreamError, PermissionError):
    """The credentials were refused or do not allow the operation. Permanent."""

    exit_code = 12


class IntegrityError(ColdstreamError):
    """Bytes differ from what they were promised to be. Permanent for these bytes."""

    exit_code = 13


class HeaderError(IntegrityError):
    """A safetensors header is truncated, malformed, or does not describe its file. Permanent."""


class ManifestError(IntegrityError):
    """A manifest is malformed, was altered, or is of a newer format. Permanent."""


class ConflictError(ColdstreamError):
    """A condition (If-Match, If-None-Match) did not hold: somebody else wrote first. Permanent for this call."""


class UnavailableError(ColdstreamError, ConnectionError):
    """No connection, a cut one, a timeout, a 429 or a 5xx. Retryable unless stated otherwise."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        operation: str | None = None,
        target: str | None = None,
        retryable: bool = True,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(
            message,
            hint=hint,
            operation=operation,
            target=target,
            retryable=retryable,
            retry_after_seconds=retry_after_seconds,
        )


class DiskError(ColdstreamError, OSError):
    """The local disk is full, read-only, or failing. Permanent until somebody mends it."""


class CancelledError(ColdstreamError):
    """The user, or a failure elsewhere in the same command, stopped this work. Permanent."""

    exit_code = 130


def where_raised(exc: BaseException) -> str:
    """An unexpected error's kind and the line that it comes from, without its text, which may hold a secret."""
    last = exc.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f" at {os.path.basename(last.tb_frame.f_code.co_filename)}:{last.tb_lineno}" if last is not None else ""
    return f"{type(exc).__name__}{place}"
