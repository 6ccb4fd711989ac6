"""The mirror: a model goes from the Hub or a folder into the store, is listed, verified, read back and removed.

One module per verb; `digest` and `pump` move and hash the bytes for upload, verify and download alike, `records` reads
and writes the manifest, `segments` stores weights in pieces that models share, `pool` says what of those may go.
"""

from __future__ import annotations

from coldstream.mirror.download import DownloadReport, download
from coldstream.mirror.listing import ModelInfo, list_models
from coldstream.mirror.reading import stored_bytes
from coldstream.mirror.remove import Removal, plan_removal, remove
from coldstream.mirror.upload import UploadPlan, UploadReport, plan_upload, upload
from coldstream.mirror.verify import VerifyReport, verify

__all__ = [
    "DownloadReport",
    "ModelInfo",
    "Removal",
    "UploadPlan",
    "UploadReport",
    "VerifyReport",
    "download",
    "list_models",
    "plan_removal",
    "plan_upload",
    "remove",
    "stored_bytes",
    "upload",
    "verify",
]
