"""Every error that coldstream raises on purpose.

    ColdstreamError                     exit 1    something failed; `retryable` says whether a retry can help
    ├── UsageError                      exit 2    the request is not valid
    │   └── ConfigError                 exit 2    a setting is missing or malformed
    ├── PartialError                    exit 3    some of several things failed
    ├── NotFoundError                   exit 10   (FileNotFoundError) no such model, object, revision or file
    ├── BucketNotFoundError             exit 10   (FileNotFoundError) the bucket does not exist
    ├── UploadNotFoundError             exit 10   (FileNotFoundError) a multipart upload was completed or aborted
    ├── CredentialsError                exit 12   (PermissionError) refused, expired, or without this permission
    ├── IntegrityError                  exit 13   bytes differ from what was expected
    │   ├── HeaderError                           a safetensors header is truncated or wrong
    │   └── ManifestError                         a manifest is not valid or has a newer format
    ├── ConflictError                   exit 1    another writer was first (a condition did not hold)
    ├── UnavailableError                exit 1    (ConnectionError) a server does not answer or is busy; retryable
    ├── UnsupportedError                exit 1    the server does not implement the operation
    ├── DiskError                       exit 1    (OSError) the local disk is full or denies access
    └── CancelledError                  exit 130  Ctrl-C

Errors of botocore and huggingface_hub are translated in `places`, with `from exc`, and are not caught elsewhere. A
message says what failed, on what and why; `hint` is a command that fixes it. Neither contains secrets.
"""

from __future__ import annotations

import os
import sys
from typing import ClassVar


class ColdstreamError(Exception):
    """Base of all errors raised on purpose. `operation` is a store's call that failed, `target` the URI of its object.

    `retryable` says whether the same call may succeed later, `retry_after_seconds` how long the server asked to wait.
    """

    exit_code: ClassVar[int] = 1
    _retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        target: str | None = None,
        retryable: bool | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.operation: str | None = None
        self.target = target
        self.retryable = self._retryable if retryable is None else retryable
        self.retry_after_seconds = retry_after_seconds
        if hint and sys.version_info >= (3, 11):
            # Tracebacks of library users show it.
            self.add_note(f"hint: {hint}")

    def __str__(self) -> str:
        return self.message

    @property
    def kind(self) -> str:
        """The name that `--json` shows, a contract: the class's name without "Error", in lower case with dashes."""
        stem = type(self).__name__.removesuffix("Error")
        return "".join("-" + c.lower() if c.isupper() else c for c in stem).lstrip("-")


class UsageError(ColdstreamError):
    """The request is not valid. Permanent."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is missing or malformed; the message says which, and where it was looked up. Permanent."""


class PartialError(ColdstreamError):
    """Some of several independent things failed. Permanent."""

    exit_code = 3


class NotFoundError(ColdstreamError, FileNotFoundError):
    """A model, an object, a repository, a revision or a file does not exist. Permanent."""

    exit_code = 10


class BucketNotFoundError(ColdstreamError, FileNotFoundError):
    """The bucket does not exist, or these credentials may not see it. Permanent."""

    # Not a NotFoundError: that one means a readable bucket without the object, and often has a remedy.
    exit_code = 10


class UploadNotFoundError(ColdstreamError, FileNotFoundError):
    """A multipart upload was completed, was aborted, or has expired. Permanent."""

    exit_code = 10


class CredentialsError(ColdstreamError, PermissionError):
    """The credentials were refused or do not permit the operation. Permanent."""

    exit_code = 12


class IntegrityError(ColdstreamError):
    """Bytes differ from what was expected. Permanent for these bytes."""

    exit_code = 13


class HeaderError(IntegrityError):
    """A safetensors header is truncated, malformed, or does not describe its file. Permanent."""


class ManifestError(IntegrityError):
    """A manifest is malformed, was altered, or has a newer format. Permanent."""


class ConflictError(ColdstreamError):
    """A condition (If-Match, If-None-Match) did not hold: another writer was first. Permanent for this call."""


class UnavailableError(ColdstreamError, ConnectionError):
    """No connection, an interrupted one, a timeout, a 429 or a 5xx. Retryable by default."""

    _retryable = True


class UnsupportedError(ColdstreamError):
    """The server does not implement the operation (rclone copies no parts). Permanent."""


class DiskError(ColdstreamError, OSError):
    """The local disk is full, read-only, or failing. Permanent until that is fixed."""


class CancelledError(ColdstreamError):
    """The user, or a failure elsewhere in the same command, stopped this work. Permanent."""

    exit_code = 130


def where_raised(exc: BaseException) -> str:
    """An unexpected error's class and the line that raised it, without its text, which may contain a secret."""
    last = exc.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f" at {os.path.basename(last.tb_frame.f_code.co_filename)}:{last.tb_lineno}" if last is not None else ""
    return f"{type(exc).__name__}{place}"


def during(operation: str, error: Exception) -> Exception:
    """The error, with its operation if it is one of ours."""
    if isinstance(error, ColdstreamError):
        error.operation = operation
    return error
