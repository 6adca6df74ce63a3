"""The S3 engine against our own s3 door, and a bucket of another service as an endpoint."""

import asyncio
import os
import time
import uuid
from urllib.parse import urlsplit

import pytest

from doma.core.errors import Forbidden, NotFound
from doma.store.s3 import S3Store
from doma.store.s3_signature import Credentials, presigned
from doma.store.s3_upload import PART

MIB = 1 << 20


@pytest.fixture
def own(shared, key):
    """Makes stores over the door; they end with the test."""

    def one(top, secure=True, **how):
        pair = key()
        url = shared.run["https" if secure else "url"]
        return S3Store(
            f"s3://site/{top}?endpoint={url}",
            credentials=Credentials(pair.access, pair.secret, pair.token),
            ca_file=shared.run["ca_file"],
            **how,
        )

    return one


@pytest.mark.parametrize("secure", [True, False])
async def test_the_engine_works_on_the_door(own, shared, secure):
    top = f"s3e/{uuid.uuid4().hex}"
    store, data = own(top, secure), os.urandom(2 * PART + 3)
    upload = await store.create("/d/a b+%.root", if_absent=True)
    for at in range(0, len(data), MIB):
        await upload.write(data[at : at + MIB])
    done = await upload.commit()
    assert shared.ask("GET", f"/site/{top}/d/a%20b+%25.root").content == data
    assert [e.path async for e in store.list("/d")] == ["/d/a b+%.root"]
    reader = await store.open("/d/a b+%.root")
    assert bytes(await reader.read(PART, PART + 9)) == data[PART : PART + 9]
    assert reader.stat.version == done.version
    await store.rename("/d/a b+%.root", "/d/b")
    await store.rename("/d", "/e")
    await store.delete("/e/b", version=(await store.stat("/e/b")).version)
    with pytest.raises(NotFound):
        await store.stat("/e/b")
    await store.close()


async def test_uploads_that_were_left_behind_are_ended_when_they_are_old(own, s3):
    top = f"s3e/{uuid.uuid4().hex}"
    store = own(top)
    upload = await store.create("/left")
    await upload.write(bytes(PART + 1))
    await upload._arrived()

    def under_way():
        found = s3.list_multipart_uploads(Bucket="site", Prefix=top)
        return len(found.get("Uploads", []))

    assert await store._bucket.sweep(time.time() - 3600) == 0
    assert await asyncio.to_thread(under_way) == 1
    assert await store._bucket.sweep(time.time() + 3600) == 1
    assert await asyncio.to_thread(under_way) == 0
    await store.close()


async def test_a_wrong_secret_is_said_without_saying_it(own, shared, key):
    pair = key()
    url = f"s3://site/x?endpoint={shared.run['https']}"
    wrong = S3Store(
        url, credentials=Credentials(pair.access, "not-the-secret"), ca_file=shared.run["ca_file"]
    )
    with pytest.raises(Forbidden, match="SignatureDoesNotMatch") as error:
        await wrong.stat("/y")
    assert "not-the-secret" not in str(error.value)
    await wrong.close()


def test_a_url_that_we_sign_opens_one_object(shared, key, s3):
    import httpx

    name = f"s3e/{uuid.uuid4().hex} +%ü.root"
    s3.put_object(Bucket="site", Key=name, Body=b"signed by us")
    pair = key("/s3e", ["read"])
    where = httpx.URL(shared.run["url"]).copy_with(path=f"/site/{name}")
    who = Credentials(pair.access, pair.secret, pair.token)
    url = presigned("GET", str(where), who, now=time.time(), life=60)
    assert httpx.get(url).content == b"signed by us"
    assert httpx.head(url).status_code == 403
    late = presigned("GET", str(where), who, now=time.time() - 100, life=60)
    assert (httpx.get(late).status_code, "expired" in httpx.get(late).text) == (403, True)


def test_a_bucket_of_another_service_is_an_endpoint(start, tmp_path, s3_server):
    (tmp_path / "doma.toml").write_text(
        f"""
        [endpoints.site]
        store = "file://{tmp_path}/site"
        [endpoints.cloud]
        store = "s3://doma-test/{uuid.uuid4().hex}?endpoint={s3_server}"
        [s3.buckets.doma-test]
        access_key = "id"
        secret_key = "never-shown"
        """
    )
    system = start("home", "--config", tmp_path / "doma.toml", "--role", "storage", "--role", "issuer")
    data = os.urandom(3 * MIB)
    system.put("/cloud/d/a b.root", data)
    assert system.ask("GET", "/cloud/d/a%20b.root").content == data
    part = system.ask("GET", "/cloud/d/a%20b.root", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, data[5:10])
    listed = system.ask("PROPFIND", "/cloud/d/", headers={"Depth": "1"})
    assert listed.text.count("<D:response>") == 2
    moved = system.ask("MOVE", "/cloud/d/a%20b.root", headers={"Destination": "/cloud/d/b.root"})
    assert moved.status_code == 201
    copied = system.ask("COPY", "/cloud/d/b.root", headers={"Destination": "/site/b.root"})
    assert copied.status_code == 201
    assert system.ask("GET", "/site/b.root").content == data
    assert system.ask("DELETE", "/cloud/d/").status_code == 204
    assert system.ask("HEAD", "/cloud/d/b.root").status_code == 404
    assert "never-shown" not in system.log
    assert urlsplit(s3_server).port
