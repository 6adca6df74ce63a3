"""``kill -9`` in the middle of a multipart upload, and what is left behind for ever."""

import os
import time

import boto3
import pytest
from botocore.config import Config

from doma.auth.model import Verb
from doma.doors.s3_keys import Keys, Right

pytestmark = pytest.mark.fault


def test_a_multipart_upload_outlives_a_kill(start):
    system = start("home", "--role", "storage", "--role", "issuer")

    def client():
        keys = Keys(system.home.secret("keys/s3.key"), [system._issuer.url])
        expires = time.time() + 600
        verbs = (Verb.READ, Verb.MODIFY)
        key = keys.issue(Right("site", "/", verbs, system._issuer.url, "ada", expires))

        return boto3.session.Session().client(
            "s3",
            endpoint_url=system.run["url"],
            region_name="us-east-1",
            aws_access_key_id=key.access_key,
            aws_secret_access_key=key.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    s3 = client()
    named = {"Bucket": "site", "Key": "a/b"}
    upload = s3.create_multipart_upload(**named)["UploadId"]
    data = [os.urandom(100_000) for _ in range(3)]
    tags = [s3.upload_part(**named, UploadId=upload, PartNumber=n, Body=data[n - 1])["ETag"] for n in (1, 2)]
    system.crash()
    system.up()
    s3 = client()
    assert "Contents" not in s3.list_objects_v2(Bucket="site")
    assert [p["PartNumber"] for p in s3.list_parts(**named, UploadId=upload)["Parts"]] == [1, 2]
    tags.append(s3.upload_part(**named, UploadId=upload, PartNumber=3, Body=data[2])["ETag"])
    parts = {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]}
    done = s3.complete_multipart_upload(**named, UploadId=upload, MultipartUpload=parts)["ETag"]
    assert s3.get_object(**named)["Body"].read() == b"".join(data)
    system.crash()
    system.up()
    s3 = client()
    again = s3.complete_multipart_upload(**named, UploadId=upload, MultipartUpload=parts)
    assert again["ETag"] == done == s3.head_object(**named)["ETag"]
    assert not (system.home / "s3" / upload / "parts").exists()
    # a day later it is swept at the next start, together with one that was never completed
    left = s3.create_multipart_upload(**named)["UploadId"]
    s3.upload_part(**named, UploadId=left, PartNumber=1, Body=b"left")
    young = s3.create_multipart_upload(**named)["UploadId"]
    system.down()
    before = time.time() - 25 * 3600
    for name in (upload, left):
        for path in [system.home / "s3" / name, *(system.home / "s3" / name).rglob("*")]:
            os.utime(path, (before, before))
    system.up()
    s3 = client()
    until = time.monotonic() + 20
    while (system.home / "s3" / left).exists() and time.monotonic() < until:
        time.sleep(0.05)
    found = {u["UploadId"] for u in s3.list_multipart_uploads(Bucket="site").get("Uploads", [])}
    assert found == {young}
    assert not (system.home / "s3" / upload).exists()
