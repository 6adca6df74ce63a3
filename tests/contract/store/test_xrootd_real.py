"""The root:// engine against the real server and beside the real client: TLS, restarts, other hands."""

import asyncio
import os
import shutil
import subprocess
import time
import zlib

import pytest

from doma.core.errors import (
    ConfigError,
    Forbidden,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    StorageUnavailable,
)
from doma.store.xrootd import XrootdStore

pytestmark = pytest.mark.engine

DATA = os.urandom(3 << 20) + b"odd"


async def put(store, path, data, **how):
    upload = await store.create(path, **how)
    for i in range(0, len(data), 700_001):
        await upload.write(data[i : i + 700_001])
    return await upload.commit()


async def get(store, path):
    reader = await store.open(path)
    try:
        stops = [*range(1 << 20, reader.stat.size, 1 << 20), reader.stat.size]
        return b"".join([bytes(await reader.read(max(0, stop - 1) >> 20 << 20, stop)) for stop in stops])
    finally:
        await reader.close()


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def store_at(server, path, scheme="root", **options):
    return XrootdStore(f"{scheme}://localhost:{server.port}/{path}", ca_file=server.ca, **options)


@pytest.mark.parametrize("scheme", ["root", "roots"])
async def test_what_we_write_xrdcp_reads_and_the_other_way_round(xrootd_server, tmp_path, scheme):
    if shutil.which("xrdcp") is None:
        pytest.skip("xrdcp is not installed; the Debian package xrootd-client has it")
    folder, path = xrootd_server.place()
    store = store_at(xrootd_server, path, scheme)
    stat = await put(store, "/ours", DATA)
    base = f"root://localhost:{xrootd_server.port}/{path}"
    await asyncio.to_thread(run, "xrdcp", "--cksum", "adler32:source", f"{base}/ours", tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == DATA
    await asyncio.to_thread(run, "xrdcp", tmp_path / "ours", f"{base}/theirs")
    assert await get(store, "/theirs") == DATA
    said = await asyncio.to_thread(
        run, "xrdfs", f"localhost:{xrootd_server.port}", "query", "checksum", f"{path}/ours"
    )
    assert said.split()[1].decode() == stat.checksums["adler32"] == f"{zlib.adler32(DATA):08x}"
    assert await store.checksum("/theirs", "adler32") == stat.checksums["adler32"]
    assert sorted(p.name for p in folder.iterdir()) == ["ours", "theirs"]
    await store.close()


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1])
async def test_every_length_arrives_whole(xrootd_server, size):
    folder, path = xrootd_server.place()
    store = store_at(xrootd_server, path)
    await put(store, "/f", DATA[:size], size=size)
    assert (folder / "f").read_bytes() == DATA[:size]
    assert await get(store, "/f") == DATA[:size]
    await store.close()


async def test_many_ranges_at_once_over_one_connection(xrootd_server):
    folder, path = xrootd_server.place()
    (folder / "f").write_bytes(DATA)
    store = store_at(xrootd_server, path, "roots")
    reader = await store.open("/f")
    spans = [(i * 37_019 % 3_000_000, i * 37_019 % 3_000_000 + 1 + i * 911) for i in range(100)]
    parts = await asyncio.gather(*(reader.read(start, stop) for start, stop in spans))
    assert [bytes(part) for part in parts] == [DATA[start:stop] for start, stop in spans]
    await reader.close()
    await store.close()


async def test_roots_refuses_a_certificate_that_it_does_not_trust(xrootd_server):
    store = XrootdStore(f"roots://localhost:{xrootd_server.port}//")
    with pytest.raises(StorageUnavailable, match="certificate"):
        await store.stat("/")
    await store.close()


async def test_a_reader_goes_on_after_the_server_was_killed_and_came_back(own_xrootd_server):
    folder, path = own_xrootd_server.place()
    (folder / "f").write_bytes(DATA)
    store = store_at(own_xrootd_server, path)
    reader = await store.open("/f")
    assert bytes(await reader.read(0, 100)) == DATA[:100]
    own_xrootd_server.kill()
    with pytest.raises(StorageUnavailable):
        await reader.read(100, 200)
    await asyncio.to_thread(own_xrootd_server.start)
    assert bytes(await reader.read(5000, 1_000_000)) == DATA[5000:1_000_000]
    own_xrootd_server.kill()
    (folder / "f").unlink()
    (folder / "f").write_bytes(DATA[::-1])
    os.utime(folder / "f", (1, 1))  # Else its inode, size and second may be those of the old one.
    await asyncio.to_thread(own_xrootd_server.start)
    with pytest.raises(PreconditionFailed):
        await reader.read(0, 100)
    await reader.close()
    await store.close()


async def test_a_server_killed_in_mid_upload_leaves_no_file_under_the_name(own_xrootd_server):
    folder, path = own_xrootd_server.place()
    store = store_at(own_xrootd_server, path)
    upload = await store.create("/f")
    await upload.write(DATA)
    own_xrootd_server.kill()
    with pytest.raises(StorageUnavailable):
        await upload.commit()
    await asyncio.to_thread(own_xrootd_server.start)
    with pytest.raises(NotFound):
        await store.stat("/f")
    assert [entry async for entry in store.list("/")] == []
    assert not (folder / "f").exists()
    await put(store, "/f", DATA)
    assert await get(store, "/f") == DATA
    await store.close()


async def test_a_file_rewritten_in_place_is_noticed_while_it_is_read(xrootd_server):
    folder, path = xrootd_server.place()
    (folder / "f").write_bytes(DATA)
    store = store_at(xrootd_server, path)
    reader = await store.open("/f")
    await reader.read(0, 100)
    (folder / "f").write_bytes(DATA[:1000])  # The same inode.
    for start, stop in ((0, 10), (2000, 3000)):
        with pytest.raises(PreconditionFailed, match="changed"):
            await reader.read(start, stop)
    await reader.close()
    await store.close()


async def test_a_replaced_file_is_seen_though_others_have_the_old_one_open(xrootd_server):
    _, path = xrootd_server.place()
    one, two = store_at(xrootd_server, path), store_at(xrootd_server, path)
    await put(one, "/f", b"old")
    reader = await two.open("/f")
    new = await put(one, "/f", b"new")
    assert await get(two, "/f") == b"new"
    assert (await two.stat("/f")).version == new.version
    assert bytes(await reader.read(0, 3)) == b"old"
    await reader.close()
    await one.close()
    await two.close()


async def test_forgotten_temporaries_go_with_their_directory_and_young_ones_stay(xrootd_server):
    folder, path = xrootd_server.place()
    store = store_at(xrootd_server, path)
    for name, age in (("old", 100_000), ("young", 10)):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
        hidden = folder / name / ".doing-0123456789abcdef"
        hidden.write_bytes(b"part")
        os.utime(hidden, (time.time() - age,) * 2)
        await put(store, f"/{name}/f", b"1")
        await store.delete(f"/{name}", recursive=True)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == [
        "young",
        "young/.doing-0123456789abcdef",
    ]
    await store.close()


async def test_checksums_kept_by_a_stranger_or_for_other_bytes_are_not_believed(xrootd_server):
    folder, path = xrootd_server.place()
    store = store_at(xrootd_server, path)
    await put(store, "/f", DATA)
    for junk in (b"", b"{", b"[1]", b'{"of": 1, "sums": 2}', b'{"of": "x", "sums": {"adler32": "00000000"}}'):
        os.setxattr(folder / "f", "user.U.doma", junk)
        assert (await store.stat("/f")).checksums == {}
    os.removexattr(folder / "f", "user.U.doma")
    assert await store.checksum("/f", "adler32") == f"{zlib.adler32(DATA):08x}"
    await store.close()


async def test_a_private_address_is_not_connected_where_only_public_ones_may_be(xrootd_server):
    store = XrootdStore(f"root://localhost:{xrootd_server.port}//", allow_private=False)
    with pytest.raises(Forbidden, match="not allowed"):
        await store.stat("/")
    await store.close()


async def test_space_is_what_the_server_says(xrootd_server):
    _, path = xrootd_server.place()
    store = store_at(xrootd_server, path)
    space = await store.space()
    assert space.available > 0
    assert space.used > 0
    await store.close()


@pytest.mark.parametrize("url", ["https://a.org/", "root://", "root://a.org:x//", "root://u:p@a.org//", "a"])
def test_what_is_no_address_is_a_configuration_error(url):
    with pytest.raises(ConfigError):
        XrootdStore(url)


async def test_a_port_where_something_else_listens_is_no_server():
    async def other(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        store = XrootdStore(f"root://127.0.0.1:{port}//")
        with pytest.raises((OriginFailed, StorageUnavailable)):
            await store.stat("/")
        await store.close()
