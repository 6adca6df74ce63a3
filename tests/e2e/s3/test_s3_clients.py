"""obstore, pyarrow's S3 file system, and boto3's own renewal of keys by a token, against a running system."""

import os
import uuid
from datetime import timedelta

import httpx
import pytest

MIB = 1 << 20


@pytest.fixture
def top():
    return f"s3c/{uuid.uuid4().hex}"


def test_obstore_does_all_it_can(key, shared, top):
    import obstore
    from obstore.store import S3Store

    pair = key()
    store = S3Store(
        "site",
        endpoint=shared.run["url"],
        region="us-east-1",
        access_key_id=pair.access,
        secret_access_key=pair.secret,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        prefix=top,
    )
    data = os.urandom(12 * MIB)
    obstore.put(store, "d/small", b"small", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "d/small", b"other", mode="create")
    obstore.put(store, "d/big", data, chunk_size=5 * MIB)
    assert bytes(obstore.get(store, "d/big").bytes()) == data
    assert bytes(obstore.get_range(store, "d/big", start=7, end=6 * MIB)) == data[7 : 6 * MIB]
    assert [bytes(b) for b in obstore.get_ranges(store, "d/big", starts=[0, 100], ends=[3, 104])] == [
        data[:3],
        data[100:104],
    ]
    tag = obstore.head(store, "d/small")["e_tag"]
    obstore.put(store, "d/small", b"newer", mode={"e_tag": tag})
    obstore.copy(store, "d/small", "d/e/copy")
    obstore.rename(store, "d/e/copy", "d/e/moved")
    found = [item["path"] for page in obstore.list(store) for item in page]
    assert sorted(found) == ["d/big", "d/e/moved", "d/small"]
    here = obstore.list_with_delimiter(store, "d")
    assert list(here["common_prefixes"]) == ["d/e"]
    url = obstore.sign(store, "GET", "d/small", timedelta(minutes=1))
    assert httpx.get(url).content == b"newer"
    obstore.delete(store, ["d/big", "d/small", "d/e/moved"])
    assert [item for page in obstore.list(store) for item in page] == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_pyarrows_file_system_works(key, shared, top, scheme):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import fs

    pair, place = key(), shared.run["url" if scheme == "http" else "https"]
    remote = fs.S3FileSystem(
        access_key=pair.access,
        secret_key=pair.secret,
        endpoint_override=place.partition("://")[2],
        scheme=scheme,
        region="us-east-1",
        tls_ca_file_path=shared.run["ca_file"] if scheme == "https" else None,
    )
    base = f"site/{top}"
    remote.create_dir(f"{base}/new/deep")
    assert remote.get_file_info(f"{base}/new/deep").type == fs.FileType.Directory
    table = pa.table({"x": list(range(1000)), "y": ["é"] * 1000})
    pq.write_table(table, f"{base}/new/t a.parquet", filesystem=remote)
    assert pq.read_table(f"{base}/new/t a.parquet", filesystem=remote).equals(table)
    data = os.urandom(11 * MIB)
    with remote.open_output_stream(f"{base}/new/big") as out:
        out.write(data)
    with remote.open_input_file(f"{base}/new/big") as file:
        assert file.size() == len(data)
        file.seek(10 * MIB)
        assert file.read(100) == data[10 * MIB : 10 * MIB + 100]
    found = remote.get_file_info(fs.FileSelector(f"{base}/new", recursive=True))
    assert sorted(info.base_name for info in found) == ["big", "deep", "t a.parquet"]
    remote.copy_file(f"{base}/new/big", f"{base}/new/copy")
    remote.move(f"{base}/new/copy", f"{base}/new/moved")
    assert remote.get_file_info(f"{base}/new/copy").type == fs.FileType.NotFound
    remote.delete_file(f"{base}/new/moved")
    remote.delete_dir(f"{base}/new")
    assert remote.get_file_info(f"{base}/new").type == fs.FileType.NotFound


def test_boto3_gets_its_keys_by_a_token_file(shared, top, tmp_path, monkeypatch):
    import boto3
    from botocore.config import Config

    (tmp_path / "token").write_text(shared.token("storage.read:/s3c storage.modify:/s3c"))
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::000000000000:role/site/s3c")
    monkeypatch.setenv("AWS_ENDPOINT_URL", shared.run["https"])
    monkeypatch.setenv("AWS_CA_BUNDLE", shared.run["ca_file"])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))
    client.put_object(Bucket="site", Key=f"{top}/x", Body=b"mine")
    assert client.get_object(Bucket="site", Key=f"{top}/x")["Body"].read() == b"mine"
    with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
        client.put_object(Bucket="site", Key="elsewhere", Body=b"")
