"""The S3 engine against services that lie: listings without end, wrong lengths, redirects, broken answers."""

import asyncio
import contextlib
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from doma.core.errors import Conflict, DomaError, OriginFailed
from doma.store.s3 import S3Store
from doma.store.s3_signature import Credentials
from doma.store.s3_upload import PART

MANY = 40
"""Requests after which a lying service gives up its lie, so that a test of an endless loop ends."""


class Service:
    """Answers each request with what a function of method, key, query and headers gives."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    async def serve(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *fields = head.split("\r\n")
                method, target, _ = line.split(" ")
                headers = {k.lower(): v for k, _, v in (f.partition(": ") for f in fields if f)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                parts = urlsplit(target)
                query = parse_qs(parts.query, keep_blank_values=True)
                self.asked.append((method, parts.path, query, body))
                status, more, data = self.answer(method, parts.path, query)
                if len(self.asked) > MANY:
                    status, more, data = 503, {}, b""
                if "content-length" not in more:
                    more = {"content-length": str(len(data)), **more}
                told = "".join(f"{k}: {v}\r\n" for k, v in more.items() if v is not None)
                writer.write(f"HTTP/1.1 {status} X\r\n{told}\r\n".encode("latin-1"))
                writer.write(b"" if method == "HEAD" else data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def lying(answer):
    service = Service(answer)
    listener = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    store = S3Store(f"s3://b/p?endpoint=http://127.0.0.1:{port}", credentials=Credentials("a", "k"))
    service.url = f"http://127.0.0.1:{port}"
    try:
        yield store, service
    finally:
        await store.close()
        listener.close()


HEAD = {"etag": '"v1"', "last-modified": "Sun, 22 Nov 2026 17:00:00 GMT"}


def page(inner, token=""):
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    return 200, {}, f"<ListBucketResult>{inner}{more if token else ''}</ListBucketResult>".encode()


def item(key, size="3"):
    return f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>x</ETag></Contents>"


async def every(store, path="/"):
    return [stat.path async for stat in store.list(path)]


async def test_a_listing_that_goes_round_in_circles_is_broken_off():
    async with lying(lambda *_: page(item("p/a"), "again")) as (store, service):
        with pytest.raises(OriginFailed, match="again and again"):
            await every(store)
        assert len(service.asked) < MANY


@pytest.mark.parametrize("token", ["same", ""])
async def test_a_listing_that_stops_in_the_middle_is_not_taken_for_the_whole(token):
    """Else a directory would be believed empty, and a deletion done."""
    numbers = iter(range(100, 1000))
    more = "<IsTruncated>true</IsTruncated>"
    more += f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    async with lying(lambda *_: page(item(f"p/{next(numbers)}") + more)) as (store, service):
        with pytest.raises(OriginFailed, match="does not go on"):
            await every(store)
        assert len(service.asked) < MANY


async def test_a_listing_of_uploads_that_goes_round_in_circles_holds_up_nobody():
    def answer(method, path, query):
        if "uploads" in query and method == "GET":
            return 200, {}, b"<R><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker></R>"
        return (404, {}, b"") if method == "HEAD" else (200, {"etag": '"v"'}, b"<R/>")

    async with lying(answer) as (store, service):
        upload = await store.create("/f")
        await upload.abort()
        assert len(service.asked) < MANY


@pytest.mark.parametrize("size", ["many", "-1", "9" * 5000, "1.5"])
async def test_a_size_that_is_none_is_the_services_fault(size):
    async with lying(lambda *_: page(item("p/a", size))) as (store, _):
        with pytest.raises(OriginFailed, match="size"):
            await every(store)


async def test_names_outside_the_listed_directory_are_not_listed():
    inner = item("p/d/good") + item("q/other") + item("p/d/deep/er") + item("p/else") + item("p/d/../up")
    inner += "<CommonPrefixes><Prefix>secret/</Prefix></CommonPrefixes>"

    def answer(method, path, query):
        return (404, {}, b"") if method == "HEAD" else page(inner)

    async with lying(answer) as (store, _):
        assert await every(store, "/d") == ["/d/good"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-length": None, "transfer-encoding": "chunked"},
        {"content-length": "5", "etag": None},
    ],
    ids=["length", "version"],
)
async def test_a_file_without_length_or_version_is_refused_rather_than_read_wrongly(headers):
    async with lying(lambda *_: (200, {**HEAD, **headers}, b"")) as (store, _):
        with pytest.raises(OriginFailed, match="neither"):
            await store.stat("/f")


@pytest.mark.parametrize("crc", ["!!", "AAAA", "A", "AAAAAAAAAAA="])
async def test_a_checksum_that_is_none_is_left_out(crc):
    headers = {**HEAD, "content-length": "5", "x-amz-checksum-crc32c": crc}
    async with lying(lambda *_: (200, headers, b"")) as (store, _):
        assert (await store.stat("/f")).checksums == {}


@pytest.mark.parametrize("sums", ["md5=" + "z" * 32, "adler32=0a1b2c3\xe9", "adler32=%0a%0dabc"])
async def test_kept_checksums_that_are_no_hexadecimal_numbers_are_left_out(sums):
    headers = {**HEAD, "content-length": "5", "x-amz-meta-doma-sums": sums}
    async with lying(lambda *_: (200, headers, b"")) as (store, _):
        assert (await store.stat("/f")).checksums == {}


@pytest.mark.parametrize("length", ["3", "8"])
async def test_bytes_that_come_otherwise_than_asked_are_never_returned(length):
    def answer(method, path, query):
        if method == "HEAD":
            return 200, {**HEAD, "content-length": "5"}, b""
        return 206, {**HEAD, "content-range": "bytes 0-4/5", "content-length": length}, b"x" * int(length)

    async with lying(answer) as (store, _):
        reader = await store.open("/f")
        with pytest.raises(OriginFailed):
            await reader.read(0, 5)


async def test_reading_never_follows_a_redirect_elsewhere():
    async with lying(lambda *_: (200, {**HEAD, "content-length": "5"}, b"")) as (_, elsewhere):

        def answer(method, path, query):
            if method == "HEAD":
                return 200, {**HEAD, "content-length": "5"}, b""
            return 307, {"location": f"{elsewhere.url}/b/p/f", "x-amz-bucket-region": "x" * 9000}, b""

        async with lying(answer) as (store, _):
            reader = await store.open("/f")
            with pytest.raises(OriginFailed, match="region") as told:
                await reader.read(0, 5)
            assert len(told.value.message) < 500
        assert elsewhere.asked == []


async def test_an_upload_in_parts_without_an_id_publishes_nothing():
    """Its parts would go nowhere, and its last bytes would be taken for the whole."""

    def answer(method, path, query):
        return (404, {}, b"") if method == "HEAD" else (200, {"etag": '"v"'}, b"<R/>")

    async with lying(answer) as (store, service):
        upload = await store.create("/f", size=PART + 5)
        with pytest.raises(OriginFailed, match="UploadId"):
            await upload.write(bytes(PART + 5))
        with pytest.raises(Conflict, match="over"):
            await upload.commit()
        await upload.abort()
        assert not [one for one in service.asked if one[0] == "PUT"]


async def test_a_publication_without_a_version_is_a_failure():
    def answer(method, path, query):
        return (404, {}, b"") if method == "HEAD" else (200, {}, b"<R/>")

    async with lying(answer) as (store, _):
        upload = await store.create("/f", size=1)
        await upload.write(b"x")
        with pytest.raises(OriginFailed, match="ETag"):
            await upload.commit()


@pytest.mark.parametrize("inner", ["<a>", "<a/>", "<Contents><Key>", "&#65;"])
async def test_a_giant_document_is_refused_soon(inner):
    data = b"<R>" + inner.encode() * ((20 << 20) // len(inner))
    async with lying(lambda *_: (200, {}, data)) as (store, _):
        begun = time.process_time()
        with pytest.raises(DomaError, match="longer"):
            await every(store)
        assert time.process_time() - begun < 20
