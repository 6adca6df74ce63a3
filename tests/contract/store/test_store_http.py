"""What only the HTTP engine has: probes, hostile servers, tokens that stay where they belong."""

import asyncio
import contextlib

import pytest

from doma.auth.model import bearer
from doma.core.errors import (
    ConfigError,
    DomaError,
    Forbidden,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    StorageUnavailable,
    TooManyRequests,
    Unauthenticated,
)
from doma.store.http import HttpStore


@contextlib.asynccontextmanager
async def origin(answer):
    """A server that answers ``answer(method, target, fields) -> (status, fields, body)``."""
    tasks, asked = set(), []

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split(" ")
                fields = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if line)}
                asked.append((method, target, fields))
                status, out, body = answer(method, target, fields)
                out = {"Content-Length": str(len(body)), **out}
                head = "".join(f"{k}: {v}\r\n" for k, v in out.items() if v is not None)
                writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode("latin-1"))
                if method != "HEAD":
                    writer.write(body)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", asked
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def over(answer, prefix="/se", **how):
    async with origin(answer) as (url, asked):
        store = HttpStore(url + prefix, **how)
        try:
            yield store, asked
        finally:
            await store.close()


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


async def test_a_probe_tells_freshness_and_whether_it_changed():
    def answer(method, target, fields):
        more = {
            "ETag": '"v1"',
            "Cache-Control": "max-age=60",
            "Age": "5",
            "Date": DATE,
            "Content-Length": "3",
        }
        return (304 if fields.get("if-none-match") == '"v1"' else 200), more, b""

    async with over(answer) as (store, asked):
        first = await store.probe("/f")
        assert first.stat is not None
        assert (first.stat.version, first.stat.size) == ("v1", 3)
        assert (first.cache_control, first.age, first.date) == ("max-age=60", 5.0, 784111777.0)
        assert (await store.probe("/f", if_none_match="v1")).stat is None
        assert (await store.probe("/f", if_none_match="v0")).stat is not None
        assert {method for method, _, _ in asked} == {"HEAD"}


async def test_a_server_without_etags_is_compared_by_date_and_size():
    size = 3

    def answer(method, target, fields):
        assert "if-match" not in fields
        assert "if-none-match" not in fields
        more = {"Last-Modified": DATE, "ETag": 'W/"weak"', "Content-Length": str(size)}
        if "range" in fields:
            return 206, {**more, "Content-Length": "1", "Content-Range": f"bytes 0-0/{size}"}, b"x"
        return 200, more, b""

    async with over(answer) as (store, _):
        reader = await store.open("/f")
        assert bytes(await reader.read(0, 1)) == b"x"
        assert (await store.probe("/f", if_none_match=reader.stat.version)).stat == reader.stat
        size = 4
        assert (
            await store.probe("/f", if_none_match=reader.stat.version)
        ).stat.version != reader.stat.version
        with pytest.raises(PreconditionFailed, match="changed"):
            await reader.read(0, 1)


async def test_without_etags_a_version_is_compared_before_deleting():
    def answer(method, target, fields):
        assert "if-match" not in fields
        return (204 if method == "DELETE" else 200), {"Last-Modified": DATE, "Content-Length": "3"}, b""

    async with over(answer) as (store, asked):
        version = (await store.stat("/f")).version
        with pytest.raises(PreconditionFailed):
            await store.delete("/f", version="weak.other.3")
        assert "DELETE" not in {method for method, _, _ in asked}
        await store.delete("/f", version=version)
        assert asked[-1][0] == "DELETE"


async def test_a_changed_file_is_noticed_even_if_the_server_ignores_conditions():
    etag = '"one"'

    def answer(method, target, fields):
        if "range" in fields:
            return 206, {"ETag": etag, "Content-Range": "bytes 0-0/3"}, b"x"
        return 200, {"ETag": etag, "Content-Length": "3"}, b""

    async with over(answer) as (store, _):
        reader = await store.open("/f")
        assert bytes(await reader.read(0, 1)) == b"x"
        etag = '"two"'
        with pytest.raises(PreconditionFailed, match=r"/f: .*changed"):
            await reader.read(0, 1)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, Unauthenticated),
        (403, Forbidden),
        (404, NotFound),
        (410, NotFound),
        (429, TooManyRequests),
        (500, OriginFailed),
        (502, OriginFailed),
        (503, StorageUnavailable),
        (302, OriginFailed),
    ],
)
async def test_every_status_becomes_one_error_that_names_path_and_server(status, error):
    async with over(lambda *_: (status, {"Retry-After": "7"}, b"<b>because</b>\r\nmore")) as (store, _):
        with pytest.raises(error, match=r"/f: http://127\.0\.0\.1:\d+ answered") as caught:
            await store.stat("/f")
        assert caught.value.retry_after == 7


async def test_nobody_there_is_unavailable():
    async with origin(lambda *_: (200, {}, b"")) as (url, _):
        pass
    store = HttpStore(url)
    with pytest.raises(StorageUnavailable):
        await store.stat("/f")
    await store.close()


async def test_the_callers_token_goes_to_this_server_and_is_never_repeated():
    def answer(method, target, fields):
        return 403, {}, f"you sent {fields['authorization']}".encode()

    async with over(answer) as (store, asked):
        held = bearer.set("sesame")
        try:
            with pytest.raises(Forbidden) as caught:
                async for _ in store.list("/d"):
                    pass
        finally:
            bearer.reset(held)
        assert asked[0][2]["authorization"] == "Bearer sesame"
        assert "sesame" not in caught.value.message


async def test_a_token_never_leaves_the_machine_in_the_clear():
    async def token():
        raise AssertionError("asked for a token")

    store = HttpStore("http://192.0.2.1/", token=token)
    assert await store._bearer() is None
    await store.close()


def multistatus(*entries: tuple[str, str], extra: str = "") -> bytes:
    items = "".join(
        f"<D:response><D:href>{href}</D:href><D:propstat><D:prop>{prop}</D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
        for href, prop in entries
    )
    return f'<?xml version="1.0"?>{extra}<D:multistatus xmlns:D="DAV:">{items}</D:multistatus>'.encode()


FOLDER = "<D:resourcetype><D:collection/></D:resourcetype>"


async def listed(body, status=207):
    async with over(lambda *_: (status, {}, body)) as (store, _):
        return [(s.path, s.size, s.is_dir) async for s in store.list("/d")]


async def test_a_listing_keeps_to_its_directory_whatever_the_server_says():
    size = "<D:getcontentlength>5</D:getcontentlength>"
    body = multistatus(
        ("/se/d/", FOLDER),
        ("/se/d/b%20b", size),
        ("http://elsewhere:1/se/d/a", size),
        ("/se/d/sub/", FOLDER),
        ("/se/d/../../etc/passwd", size),
        ("/se/d/%2e%2e/x", size),
        ("/se/d/a%2fb", size),
        ("/se/d/.doma", FOLDER),
        ("/se/d/deep/er", size),
        ("/other/x", size),
        ("/sed/x", size),
        ("relative", size),
        ("", size),
    )
    assert await listed(body) == [("/d/a", 5, False), ("/d/b b", 5, False), ("/d/sub", 0, True)]


async def test_properties_under_another_status_do_not_count():
    body = (
        b'<m xmlns="DAV:"><response><href>/se/d</href><propstat><prop><resourcetype><collection/>'
        b"</resourcetype></prop><status>HTTP/1.1 200 OK</status></propstat></response>"
        b"<response><href>/se/d/f</href><propstat><prop><getcontentlength>7</getcontentlength></prop>"
        b"<status>HTTP/1.1 200 OK</status></propstat><propstat><prop><getcontentlength>9</getcontentlength>"
        b"</prop><status>HTTP/1.1 404 Not Found</status></propstat></response></m>"
    )
    assert await listed(body) == [("/d/f", 7, False)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no xml",
        multistatus(("/se/d", FOLDER))[:-5],
        multistatus(("/se/other", FOLDER)),
        multistatus(("/se/d", FOLDER), extra='<!DOCTYPE x [<!ENTITY a "aaaa">]>'),
        multistatus(("/se/d", "&a;"), extra='<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'),
        b"<a>" * 100,
        multistatus(("/se/d" + "x" * 100_000, FOLDER)),
    ],
)
async def test_a_hostile_listing_is_one_clear_error(body):
    with pytest.raises(OriginFailed, match="/d"):
        await listed(body)


async def test_redirects_into_private_networks_are_refused():
    place = "http://169.254.169.254/latest/meta-data"
    async with over(lambda *_: (302, {"Location": place}, b"")) as (store, _):
        with pytest.raises(Forbidden, match="not allowed"):
            await store.stat("/f")
    async with over(lambda *_: (200, {}, b""), allow_private=False) as (store, asked):
        with pytest.raises(Forbidden, match="not allowed"):
            await store.stat("/f")
        assert not asked


async def test_a_refused_upload_says_why_at_once():
    async with over(lambda *_: (507, {"Connection": "close"}, b"quota /vo 1 TB")) as (store, _):
        with pytest.raises(DomaError, match="quota"):
            await store.create("/f", size=10)


@pytest.mark.parametrize("url", ["ftp://a/b", "https://", "http://u:p@h/", "https://h/../x", "root://h//x"])
def test_an_address_that_is_none_is_a_configuration_error(url):
    with pytest.raises(ConfigError):
        HttpStore(url)
