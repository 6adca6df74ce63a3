"""What outlives a kill, what is swept, who hears of it, and whose keys open the results of a request."""

import sqlite3
import time
import uuid
from contextlib import closing

import pytest
from botocore.exceptions import ClientError

from doma.auth.model import Verb
from doma.doors.s3_keys import Keys, Right


def keys_of(system):
    """The keys of a home, as its services hold them."""
    return Keys(system.home.secret("keys/s3.key"), [system._issuer.url])


def test_the_keys_of_a_request_open_its_results_and_nothing_else(shared, boto):
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    for name in (mine, other):
        folder = shared.home / "results" / name
        folder.mkdir(mode=0o700, parents=True)
        (folder / "root:::a.org::b:1.root.parquet").write_bytes(name.encode())
    expires = time.time() + 3600
    right = Right("results", f"/{mine}", (Verb.READ,), shared._issuer.url, "ada", expires)
    key = keys_of(shared).issue(right, session=False)

    class Pair:
        access, secret, token, url = key.access_key, key.secret_key, "", shared.run["https"]

    client = boto(Pair)
    listed = client.list_objects_v2(Bucket=mine)["Contents"]
    assert [entry["Key"] for entry in listed] == ["root:::a.org::b:1.root.parquet"]
    got = client.get_object(Bucket=mine, Key=listed[0]["Key"])
    assert got["Body"].read() == mine.encode()
    old = boto(Pair, signature="s3", url=shared.run["url"])
    url = old.generate_presigned_url(
        "get_object", {"Bucket": mine, "Key": listed[0]["Key"]}, ExpiresIn=365 * 24 * 3600
    )
    assert shared.ask("GET", url.replace(shared.run["url"], ""), None).content == mine.encode()
    for call in (
        lambda: client.list_objects_v2(Bucket=other),
        lambda: client.list_objects_v2(Bucket="results"),
        lambda: client.get_object(Bucket=other, Key=listed[0]["Key"]),
        lambda: client.put_object(Bucket=mine, Key="more", Body=b""),
        lambda: client.delete_object(Bucket=mine, Key=listed[0]["Key"]),
    ):
        with pytest.raises(ClientError) as error:
            call()
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] in {403, 405}


def test_a_key_ends_with_its_life(shared, boto):
    right = Right("site", "/", (Verb.READ,), shared._issuer.url, "ada", time.time() - 1)
    key = keys_of(shared).issue(right)

    class Pair:
        access, secret, token, url = key.access_key, key.secret_key, key.session_token, shared.run["https"]

    with pytest.raises(ClientError) as error:
        boto(Pair).list_buckets()
    assert error.value.response["Error"]["Code"] == "ExpiredToken"


def test_everybody_who_listens_hears_of_it(shared, s3):
    name = f"s3l/{uuid.uuid4().hex}"
    s3.put_object(Bucket="site", Key=name, Body=b"heard")
    upload = s3.create_multipart_upload(Bucket="site", Key=name + "2")["UploadId"]
    named = {"Bucket": "site", "Key": name + "2", "UploadId": upload}
    tag = s3.upload_part(**named, PartNumber=1, Body=b"parts")["ETag"]
    s3.complete_multipart_upload(**named, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})
    s3.copy_object(Bucket="site", Key=name + "3", CopySource=f"site/{name}")
    s3.delete_object(Bucket="site", Key=name)
    wanted = [
        ("file.landed", f"/site/{name}"),
        ("file.landed", f"/site/{name}2"),
        ("file.landed", f"/site/{name}3"),
        ("file.deleted", f"/site/{name}"),
    ]
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with closing(sqlite3.connect(shared.home / "doma.db")) as db:
            told = db.execute("SELECT kind, subject FROM events ORDER BY id").fetchall()
        told = [pair for pair in told if name in pair[1]]
        if len(told) >= len(wanted):
            break
        time.sleep(0.05)
    assert told == wanted
