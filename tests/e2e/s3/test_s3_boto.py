"""boto3 against a running system, over https and over plain http on loopback."""

import hashlib
import io
import os
import urllib.request
import uuid

import pytest
from botocore.exceptions import ClientError

BUCKET = "site"
MIB = 1 << 20


def fresh(name="x"):
    return f"s3/{uuid.uuid4().hex}/{name}"


def code(error):
    return error.value.response["Error"]["Code"]


def status(error):
    return error.value.response["ResponseMetadata"]["HTTPStatusCode"]


def read(s3, key, bucket=BUCKET, **how):
    return s3.get_object(Bucket=bucket, Key=key, **how)["Body"].read()


@pytest.fixture(scope="module", params=["https", "http"])
def client(request, boto, shared):
    return boto(url=shared.run["https" if request.param == "https" else "url"])


@pytest.mark.parametrize("algorithm", [None, "CRC32", "SHA256", "SHA1"])
def test_an_object_comes_back_as_it_went(client, shared, algorithm):
    key, data = fresh(), os.urandom(300_000)
    more = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    put = client.put_object(Bucket=BUCKET, Key=key, Body=io.BytesIO(data), **more)
    head = client.head_object(Bucket=BUCKET, Key=key)
    assert (head["ContentLength"], head["ETag"]) == (len(data), put["ETag"])
    assert read(client, key) == data
    assert shared.ask("GET", f"/site/{key}").content == data


def test_one_range_is_exact_and_none_beyond_the_end(s3):
    key = fresh()
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"0123456789")
    part = s3.get_object(Bucket=BUCKET, Key=key, Range="bytes=2-4")
    assert part["Body"].read() == b"234"
    assert part["ContentRange"] == "bytes 2-4/10"
    assert read(s3, key, Range="bytes=-3") == b"789"
    with pytest.raises(ClientError) as error:
        read(s3, key, Range="bytes=10-")
    assert (code(error), status(error)) == ("InvalidRange", 416)


def test_conditions_hold(s3):
    key = fresh()
    first = s3.put_object(Bucket=BUCKET, Key=key, Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"2", IfNoneMatch="*")
    assert (code(error), status(error)) == ("PreconditionFailed", 412)
    second = s3.put_object(Bucket=BUCKET, Key=key, Body=b"2", IfMatch=first)["ETag"]
    with pytest.raises(ClientError) as error:
        read(s3, key, IfMatch=first)
    assert status(error) == 412
    with pytest.raises(ClientError) as error:
        read(s3, key, IfNoneMatch=second)
    assert status(error) == 304
    with pytest.raises(ClientError) as error:
        s3.delete_object(Bucket=BUCKET, Key=key, IfMatch=first)
    assert status(error) == 412
    assert read(s3, key) == b"2"
    s3.delete_object(Bucket=BUCKET, Key=key, IfMatch=second)
    with pytest.raises(ClientError) as error:
        read(s3, key)
    assert code(error) == "NoSuchKey"


@pytest.mark.parametrize(
    "name",
    ["a b", "ünï/Σ.root", "a+b", "100%", "a%2Fb", "q?x=1&y#z", "(1)*'!;:@&=$,~", "root:::a.org::b:1.root"],
)
def test_names_survive_as_they_are(client, name):
    key = fresh(name)
    client.put_object(Bucket=BUCKET, Key=key, Body=name.encode())
    assert read(client, key) == name.encode()
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=key[:40])
    assert [entry["Key"] for entry in listed["Contents"]] == [key]
    client.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(ClientError):
        read(client, key)


def test_listings_are_in_order_by_pages_and_by_delimiter(s3):
    top = fresh("")
    names = ["a", "a-b", "a.b/1", "a/1", "a/2/3", "b", "b0", "c/d/e/f"]
    for name in names:
        if name != "a":
            s3.put_object(Bucket=BUCKET, Key=top + name, Body=b"12")
    names = names[1:]
    whole = s3.list_objects_v2(Bucket=BUCKET, Prefix=top)
    assert [entry["Key"] for entry in whole["Contents"]] == [top + name for name in names]
    assert whole["KeyCount"] == len(names)
    assert {entry["Size"] for entry in whole["Contents"]} == {2}
    for call in ("list_objects_v2", "list_objects"):
        for size in (1, 2, 3):
            pages = s3.get_paginator(call).paginate(
                Bucket=BUCKET, Prefix=top, PaginationConfig={"PageSize": size}
            )
            assert [e["Key"] for page in pages for e in page.get("Contents", [])] == [top + n for n in names]
            pages = s3.get_paginator(call).paginate(
                Bucket=BUCKET, Prefix=top, Delimiter="/", PaginationConfig={"PageSize": size}
            )
            pages = list(pages)
            shared = [p["Prefix"] for page in pages for p in page.get("CommonPrefixes", [])]
            assert shared == [top + "a.b/", top + "a/", top + "c/"]
            assert [e["Key"] for page in pages for e in page.get("Contents", [])] == [
                top + n for n in ("a-b", "b", "b0")
            ]
    after = s3.list_objects_v2(Bucket=BUCKET, Prefix=top, StartAfter=top + "a/1")
    assert [entry["Key"] for entry in after["Contents"]] == [top + n for n in names[3:]]
    odd = s3.list_objects_v2(Bucket=BUCKET, Prefix=top, Delimiter="b")
    assert [p["Prefix"] for p in odd["CommonPrefixes"]] == [top + "a-b", top + "a.b", top + "b"]
    part = s3.list_objects_v2(Bucket=BUCKET, Prefix=top + "a")
    assert [entry["Key"] for entry in part["Contents"]] == [top + n for n in names[:4]]
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET, Prefix=top + "none/")


def test_large_files_go_up_and_down_in_parts(client, tmp_path):
    from boto3.s3.transfer import TransferConfig

    key, data = fresh("big.root"), os.urandom(21 * MIB + 17)
    how = TransferConfig(multipart_threshold=6 * MIB, multipart_chunksize=6 * MIB, max_concurrency=3)
    client.upload_fileobj(io.BytesIO(data), BUCKET, key, Config=how)
    got = io.BytesIO()
    client.download_fileobj(BUCKET, key, got, Config=how)
    assert got.getvalue() == data
    copied = fresh("copy.root")
    client.copy({"Bucket": BUCKET, "Key": key}, BUCKET, copied, Config=how)
    assert hashlib.sha256(read(client, copied)).digest() == hashlib.sha256(data).digest()


def test_nothing_of_a_multipart_upload_shows_before_it_is_complete(s3):
    key = fresh("m")
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    named = {"Bucket": BUCKET, "Key": key, "UploadId": upload}
    tags = {n: s3.upload_part(**named, PartNumber=n, Body=bytes([n]) * 1000)["ETag"] for n in (3, 1, 7)}
    tags[3] = s3.upload_part(**named, PartNumber=3, Body=b"again")["ETag"]
    with pytest.raises(ClientError):
        s3.head_object(Bucket=BUCKET, Key=key)
    listed = s3.list_parts(**named)["Parts"]
    assert [(part["PartNumber"], part["Size"]) for part in listed] == [(1, 1000), (3, 5), (7, 1000)]
    assert upload in {u["UploadId"] for u in s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]}
    parts = [{"PartNumber": n, "ETag": tags[n]} for n in (1, 3, 7)]

    def complete(parts):
        return s3.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})

    for wrong, why in (
        (parts[::-1], "InvalidPartOrder"),
        ([{"PartNumber": 2, "ETag": tags[1]}], "InvalidPart"),
        ([{"PartNumber": 1, "ETag": tags[3]}], "InvalidPart"),
    ):
        with pytest.raises(ClientError) as error:
            complete(wrong)
        assert code(error) == why
    done = complete(parts)
    assert complete(parts)["ETag"] == done["ETag"] == s3.head_object(Bucket=BUCKET, Key=key)["ETag"]
    assert read(s3, key) == b"\1" * 1000 + b"again" + b"\7" * 1000
    assert upload not in {u["UploadId"] for u in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])}


def test_an_aborted_upload_leaves_nothing(s3):
    key = fresh("m")
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    named = {"Bucket": BUCKET, "Key": key, "UploadId": upload}
    s3.upload_part(**named, PartNumber=1, Body=b"1")
    s3.abort_multipart_upload(**named)
    for call in (s3.abort_multipart_upload, s3.list_parts):
        with pytest.raises(ClientError) as error:
            call(**named)
        assert code(error) == "NoSuchUpload"
    with pytest.raises(ClientError):
        s3.head_object(Bucket=BUCKET, Key=key)


def test_deleting_is_idempotent_and_takes_emptied_directories_with_it(s3, shared):
    top = fresh("")
    for name in ("d/e/1", "d/e/2", "d/3"):
        s3.put_object(Bucket=BUCKET, Key=top + name, Body=b"")
    named = [{"Key": top + name} for name in ("d/e/1", "d/e/2", "never/was")]
    gone = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": named})
    assert [one["Key"] for one in gone["Deleted"]] == [one["Key"] for one in named]
    assert [e["Key"] for e in s3.list_objects_v2(Bucket=BUCKET, Prefix=top)["Contents"]] == [top + "d/3"]
    s3.delete_object(Bucket=BUCKET, Key=top + "d")
    assert read(s3, top + "d/3") == b""
    s3.delete_object(Bucket=BUCKET, Key=top + "d/3")
    s3.delete_object(Bucket=BUCKET, Key=top + "d/3")
    assert shared.ask("HEAD", f"/site/{top}").status_code == 404


def test_a_marker_object_is_a_directory(s3, shared):
    top = fresh("made/")
    s3.put_object(Bucket=BUCKET, Key=top, Body=b"")
    assert s3.head_object(Bucket=BUCKET, Key=top)["ContentLength"] == 0
    assert read(s3, top) == b""
    assert shared.ask("PROPFIND", f"/site/{top}", headers={"Depth": "0"}).status_code == 207
    assert [e["Key"] for e in s3.list_objects_v2(Bucket=BUCKET, Prefix=top)["Contents"]] == [top]
    for key in (top[:-1], top + "x"):
        with pytest.raises(ClientError) as error:
            s3.head_object(Bucket=BUCKET, Key=key)
        assert status(error) == 404
    with pytest.raises(ClientError):
        s3.put_object(Bucket=BUCKET, Key=top, Body=b"content")


def test_buckets_are_endpoints_and_top_directories(s3, boto, key, shared):
    name = uuid.uuid4().hex
    assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == ["site"]
    assert s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] is None
    with pytest.raises(ClientError) as error:
        s3.list_objects_v2(Bucket=name)
    assert code(error) == "NoSuchBucket"
    s3.create_bucket(Bucket=name)
    s3.head_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="result.parquet", Body=b"columns")
    assert shared.ask("GET", f"/site/{name}/result.parquet").content == b"columns"
    # the keys of one column-delivery request: this bucket, to read
    own = boto(key(f"/{name}", ["read"]))
    assert {b["Name"] for b in own.list_buckets()["Buckets"]} == {"site", name}
    assert [e["Key"] for e in own.list_objects_v2(Bucket=name)["Contents"]] == ["result.parquet"]
    assert read(own, "result.parquet", name) == b"columns"
    for bucket in ("site", "data"):
        with pytest.raises(ClientError) as error:
            own.list_objects_v2(Bucket=bucket)
        assert code(error) == "AccessDenied"
    with pytest.raises(ClientError) as error:
        own.put_object(Bucket=name, Key="more", Body=b"")
    assert code(error) == "AccessDenied"
    with pytest.raises(ClientError) as error:
        s3.delete_bucket(Bucket=name)
    assert code(error) == "BucketNotEmpty"
    s3.delete_object(Bucket=name, Key="result.parquet")
    s3.delete_bucket(Bucket=name)
    with pytest.raises(ClientError) as error:
        s3.head_bucket(Bucket=name)
    assert status(error) == 404


@pytest.mark.parametrize("signature", ["s3v4", "s3"])
def test_presigned_urls_work_for_their_method_and_key_only(boto, shared, signature):
    client = boto(url=shared.run["url"], signature=signature)
    key = fresh("a b+c%ü.root")
    client.put_object(Bucket=BUCKET, Key=key, Body=b"signed") if signature == "s3v4" else boto().put_object(
        Bucket=BUCKET, Key=key, Body=b"signed"
    )
    url = client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key}, ExpiresIn=60)
    assert ("X-Amz-Signature" if signature == "s3v4" else "AWSAccessKeyId") in url

    def ask(url, method="GET", data=None, **headers):
        request = urllib.request.Request(url, method=method, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read()

    assert ask(url) == (200, b"signed")
    assert ask(url, Range="bytes=0-0") == (206, b"s")
    for wrong in (
        ask(url, "DELETE"),
        ask(url, "PUT", b"x"),
        ask(url.replace(".root", ".toor")),
        ask(url.replace("Signature=", "Signature=0")),
        ask(url.replace("Expires=", "Expires=1")),
    ):
        assert wrong[0] == 403
        assert b"<Code>SignatureDoesNotMatch</Code>" in wrong[1]
    assert ask(url, **{"x-amz-copy-source": "/site/other"})[0] == 403
    put = client.generate_presigned_url("put_object", {"Bucket": BUCKET, "Key": key + "2"}, ExpiresIn=60)
    kind = {"Content-Type": ""} if signature == "s3" else {}
    assert ask(put, "PUT", b"through a URL", **kind)[0] == 200
    assert read(boto(), key + "2") == b"through a URL"


def test_metadata_come_back_and_nothing_runs_in_our_name(s3):
    from boto3.s3.transfer import TransferConfig

    key = fresh()
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"<script>", Metadata={"run": "1"}, ContentType="text/html")
    found = s3.get_object(Bucket=BUCKET, Key=key)
    assert (found["Metadata"], found["ContentType"]) == ({"run": "1"}, "text/html")
    headers = found["ResponseMetadata"]["HTTPHeaders"]
    assert (headers["content-security-policy"], headers["x-content-type-options"]) == ("sandbox", "nosniff")
    asked = s3.get_object(Bucket=BUCKET, Key=key, ResponseContentType="image/svg+xml")
    assert asked["ContentType"] == "image/svg+xml"
    assert asked["ResponseMetadata"]["HTTPHeaders"]["content-security-policy"] == "sandbox"
    s3.copy_object(Bucket=BUCKET, Key=key + "2", CopySource={"Bucket": BUCKET, "Key": key})
    assert s3.head_object(Bucket=BUCKET, Key=key + "2")["Metadata"] == {"run": "1"}
    s3.copy_object(
        Bucket=BUCKET, Key=key, CopySource={"Bucket": BUCKET, "Key": key}, MetadataDirective="REPLACE",
        Metadata={"run": "2"},
    )  # fmt: skip
    assert s3.head_object(Bucket=BUCKET, Key=key)["Metadata"] == {"run": "2"}
    assert s3.head_object(Bucket=BUCKET, Key=key)["ContentType"] != "text/html"
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"new")
    assert s3.head_object(Bucket=BUCKET, Key=key)["Metadata"] == {}
    how = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    more = {"Metadata": {"run": "362105"}}
    s3.upload_fileobj(io.BytesIO(bytes(6 * MIB)), BUCKET, key, Config=how, ExtraArgs=more)
    assert s3.head_object(Bucket=BUCKET, Key=key)["Metadata"] == {"run": "362105"}
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=BUCKET, Key=key + "3", Body=b"", Metadata={"a": "x" * 9000})
    assert code(error) == "MetadataTooLarge"
