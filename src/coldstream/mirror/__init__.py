"""The mirror: a model goes from the Hub or a folder into the store, is listed, verified, read back and removed.

One module per verb; `digest` and `pump` move and hash the bytes for upload, verify and download alike, `records` reads
and writes the manifest. What an upload will do is decided in `planning`; it stores files in one piece (`whole`), or
weights in segments that models share (`segments`), and `pool` says which of those may go. `naming` groups a listing by
model, and suggests the nearest name.
"""

from __future__ import annotations

from coldstream.mirror.download import DownloadReport, download
from coldstream.mirror.listing import ModelInfo, list_models
from coldstream.mirror.remove import Removal, plan_removal, remove
from coldstream.mirror.stored_files import stored_bytes
from coldstream.mirror.upload import UploadReport, upload
from coldstream.mirror.upload_plan import UploadPlan, plan_upload
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
