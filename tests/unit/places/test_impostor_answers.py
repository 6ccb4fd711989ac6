"""Which answers are an S3 server's: what servers send was looked at in moto, rclone and R2's documentation."""

from __future__ import annotations

import pytest

from coldstream.places.s3_answers import _is_sound

HTML = {"content-type": "text/html; charset=utf-8"}
LISTING = b'<?xml version="1.0"?>\n<ListBucketResult xmlns="x"><Name>b</Name></ListBucketResult>\n'


@pytest.mark.parametrize(
    ("operation", "status", "headers", "body", "expected"),
    [
        ("ListObjectsV2", 200, {}, LISTING, True),
        ("ListObjectsV2", 200, {}, LISTING[:-22], False),
        ("ListObjectsV2", 200, {}, b"<html><body>hello</body></html>", False),
        ("ListObjectsV2", 200, {}, b"<rss><channel/></rss>", False),
        ("ListObjectsV2", 200, {}, b"", False),
        ("CreateMultipartUpload", 200, {}, b"<InitiateMultipartUpload><UploadId/></InitiateMultipartUpload>", True),
        ("DeleteObjects", 200, {}, b"\n<DeleteResult/>", True),
        ("CompleteMultipartUpload", 200, {}, b"\n\n<Error><Code>InternalError</Code></Error>", True),
        ("PutObject", 200, {"etag": '"1"', **HTML}, b"", True),
        ("PutObject", 200, HTML, b"", False),
        ("UploadPartCopy", 200, {"etag": '"1"'}, b"", True),
        ("AbortMultipartUpload", 204, {}, b"", True),
        ("HeadBucket", 200, {}, b"", True),
        ("HeadBucket", 200, HTML, b"", False),
        ("HeadBucket", 200, {"x-amz-bucket-region": "auto", **HTML}, b"", True),
        ("GetObject", 206, {"etag": '"1"'}, None, True),
        ("GetObject", 200, {"last-modified": "x"}, None, True),
        ("GetObject", 200, {}, None, False),
        ("GetObject", 404, {}, b"<Error><Code>NoSuchKey</Code></Error>", True),
        ("GetObject", 404, {}, b"not found", True),
        ("GetObject", 404, HTML, b"not found", False),
        ("HeadObject", 404, HTML, b"", True),
        ("GetObject", 502, HTML, b"<html>Bad gateway</html>", False),
        ("GetObject", 301, {"x-amz-bucket-region": "eu-west-1"}, b"", True),
        ("GetObject", 301, {}, b"<Error><Code>PermanentRedirect</Code><Region>x</Region></Error>", True),
        ("HeadBucket", 307, {"location": "http://x/"}, b"", False),
    ],
)  # fmt: skip
def test_whose_answer_it_is(
    operation: str, status: int, headers: dict[str, str], body: bytes | None, expected: bool
) -> None:
    assert _is_sound(operation, status, headers, body) is expected
