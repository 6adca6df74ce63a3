"""The s3 door over each kind of writable store, asked in this process: what sockets cannot show."""

import asyncio
import time
from urllib.parse import quote
from xml.etree.ElementTree import fromstring

import pytest

from doma.auth.model import Verb
from doma.core.errors import NotFound, StorageFull
from doma.doors import s3, s3_multipart, s3_objects
from doma.doors.s3_call import Door
from doma.doors.s3_keys import Keys, Right
from doma.store.memory import MemoryStore
from doma.store.s3_signature import UNSIGNED, Asked, Credentials, signed


class Asker:
    """Signed requests to the door of a site."""

    def __init__(self, door):
        self.uploads = MemoryStore()
        self.keys = Keys(b"m" * 32, [door.issuer])
        self.app = s3.app(Door(door.site, self.keys, self.uploads, time.time))
        key = self.keys.issue(
            Right("site", "/", (Verb.READ, Verb.MODIFY), door.issuer, "ada", time.time() + 600)
        )
        self.who = Credentials(key.access_key, key.secret_key)

    async def __call__(self, method, path, body=b"", headers=None, query=()):
        sent = {"host": "se.example", "content-length": str(len(body)), **(headers or {})}
        mine = {n: v for n, v in sent.items() if n == "host" or n.startswith("x-amz-")}
        sent |= signed(Asked(method, path, query, mine), UNSIGNED, self.who, now=time.time())
        messages, pieces = [], [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return pieces.pop() if pieces else {"type": "http.disconnect"}

        async def send(message):
            messages.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": "&".join(f"{quote(n, safe='')}={quote(v, safe='')}" for n, v in query).encode(),
            "headers": [(n.encode(), v.encode()) for n, v in sent.items()],
        }  # fmt: skip
        assert s3.is_signed(scope)
        await self.app(scope, receive, send)
        self.told = {n.decode(): v.decode("latin-1") for n, v in messages[0]["headers"]}
        text = b"".join(message.get("body", b"") for message in messages[1:]).decode()
        return messages[0]["status"], text


@pytest.fixture
def ask(door):
    return Asker(door)


async def test_a_long_copy_begins_its_answer_and_ends_it_well(ask, door, monkeypatch):
    monkeypatch.setattr(s3_objects, "PATIENCE", 0.01)
    await door.put("/a", b"slow")
    store, go_on = door.stores["site"], asyncio.Event()
    opened = store.open

    async def slow(path):
        await go_on.wait()
        return await opened(path)

    monkeypatch.setattr(store, "open", slow)
    asked = asyncio.create_task(ask("PUT", "/site/b", headers={"x-amz-copy-source": "/site/a"}))
    await asyncio.sleep(0.1)
    go_on.set()
    status, text = await asked
    assert status == 200
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n ')
    assert text.endswith("</CopyObjectResult>")
    monkeypatch.undo()
    assert await door.content("/b") == b"slow"


async def test_a_long_copy_that_fails_says_so_in_its_answer(ask, door, monkeypatch):
    monkeypatch.setattr(s3_objects, "PATIENCE", 0.01)
    await door.put("/a", b"slow")

    async def full(*_, **__):
        await asyncio.sleep(0.05)
        raise StorageFull("/b: no space left")

    monkeypatch.setattr(door.stores["site"], "create", full)
    status, text = await ask("PUT", "/site/b", headers={"x-amz-copy-source": "/site/a"})
    assert (status, "<Code>InsufficientStorage</Code>" in text) == (200, True)
    monkeypatch.setattr(s3_objects, "PATIENCE", 5)
    status, text = await ask("PUT", "/site/b", headers={"x-amz-copy-source": "/site/a"})
    assert (status, "<Code>InsufficientStorage</Code>" in text) == (507, True)


async def test_a_part_or_a_body_beyond_the_limit_is_refused_before_it_comes(ask):
    _, text = await ask("POST", "/site/big", query=[("uploads", "")])
    upload = text.partition("<UploadId>")[2].partition("<")[0]
    query = [("partNumber", "1"), ("uploadId", upload)]
    status, text = await ask("PUT", "/site/big", headers={"content-length": str((5 << 30) + 1)}, query=query)
    assert (status, "<Code>EntityTooLarge</Code>" in text) == (400, True)


async def test_a_body_that_is_shorter_than_announced_is_not_published(ask, door):
    status, text = await ask("PUT", "/site/short", b"123", headers={"content-length": "5"})
    assert (status, "<Code>IncompleteBody</Code>" in text) == (400, True)
    with pytest.raises(NotFound):
        await door.content("/short")


async def test_stale_uploads_go_and_young_ones_stay(ask):
    names = []
    for _ in range(2):
        _, text = await ask("POST", "/site/x", query=[("uploads", "")])
        names.append(text.partition("<UploadId>")[2].partition("<")[0])
    await ask("PUT", "/site/x", b"part", query=[("partNumber", "1"), ("uploadId", names[0])])
    assert await s3_multipart.sweep(ask.uploads, time.time() - 60) == 0
    assert await s3_multipart.sweep(ask.uploads, time.time() + 60) == 2
    assert [entry async for entry in ask.uploads.list("/")] == []


async def test_a_key_for_an_endpoint_that_is_gone_or_read_only_writes_nothing(ask, door):
    for endpoint, code in (("nowhere", "NoSuchBucket"), ("data", "MethodNotAllowed")):
        right = Right(endpoint, "/", (Verb.READ, Verb.MODIFY), door.issuer, "ada", time.time() + 600)
        key = ask.keys.issue(right)
        ask.who = Credentials(key.access_key, key.secret_key)
        _, text = await ask("PUT", f"/{endpoint}/x", b"1")
        assert f"<Code>{code}</Code>" in text


async def test_a_key_of_an_issuer_works_in_that_issuers_areas_only(ask, door):
    async def asked(prefix, path):
        right = Right("vo", prefix, (Verb.READ, Verb.MODIFY), door.issuer, "ada", time.time() + 600)
        key = ask.keys.issue(right)
        ask.who = Credentials(key.access_key, key.secret_key)
        return (await ask("PUT", path, b"1"))[0]

    assert await asked("/grid/vo/x", "/vo/grid/vo/x/f") == 200
    # a scope is relative to each area of its issuer, a key is not: it must not work in the other one
    assert await asked("/grid/vo/x", "/vo/grid/lab/x/f") == 403
    assert await asked("/grid", "/vo/grid/f") == 403
    assert await asked("/", "/vo/f") == 403


async def test_an_upload_that_is_completed_by_several_at_once_is_published_once(ask, door, monkeypatch):
    _, text = await ask("POST", "/site/once", query=[("uploads", "")])
    upload = text.partition("<UploadId>")[2].partition("<")[0]
    await ask("PUT", "/site/once", b"part", query=[("partNumber", "1"), ("uploadId", upload)])
    tag = (await ask.uploads.stat(f"/{upload}/parts/00001")).version
    store, made = door.stores["site"], []
    create = store.create

    async def slow(*arguments, **options):
        made.append(arguments)
        await asyncio.sleep(0.05)
        return await create(*arguments, **options)

    monkeypatch.setattr(store, "create", slow)
    named = f"<Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>".encode()
    told = await asyncio.gather(
        *(ask("POST", "/site/once", body, query=[("uploadId", upload)]) for _ in range(4))
    )
    assert {status for status, _ in told} == {200}
    assert len({text for _, text in told}) == 1
    assert len(made) == 1


async def test_a_document_of_very_many_elements_is_not_even_parsed(ask, monkeypatch):
    monkeypatch.setattr("doma.doors.s3_xml.fromstring", None)
    status, text = await ask("POST", "/site", b"<Delete>" + b"<a>" * 300_000, query=[("delete", "")])
    assert (status, "MalformedXML" in text) == (400, True)


async def test_a_tree_that_is_too_deep_is_one_clear_error(ask, door):
    store = door.stores["site"]
    for top in ("/a", "/x"):
        for depth in range(150):
            await store.make_dir(top + "/a" * depth)
    await store.rename("/x", "/a" * 150 + "/x")
    await door.put("/b", b"beside")
    status, text = await ask("GET", "/site", query=[("list-type", "2")])
    assert (status, "at most 200 names" in text) == (400, True)
    status, text = await ask("GET", "/site", query=[("delimiter", "/"), ("list-type", "2")])
    assert (status, "<Key>b</Key>" in text) == (200, True)


async def test_what_is_said_of_an_object_is_text_to_everybody_who_lists_it(ask, door):
    said = "</D:prop><D:response/>&amp;<\u20ac"
    status, _ = await ask("PUT", "/site/a", b"x", query=[("x-amz-meta-a", said)])
    assert status == 200
    await ask("GET", "/site/a")
    kept = "x-amz-meta-a" in ask.told  # not every store has a place for it
    listing = await door.ask("PROPFIND", "/site/", headers={"Depth": "1"})
    root = fromstring(listing.text)
    assert len(root.findall("{DAV:}response")) == 2
    shown = [e.text for e in root.iter("{http://s3.amazonaws.com/doc/2006-03-01/}x-amz-meta-a")]
    assert shown == [said] * kept


@pytest.mark.parametrize("name", ["a\r\nSet-Cookie", "a b", "a:b", "\u20ac", "<b>", "a\0"], ids=ascii)
async def test_a_name_that_no_header_has_is_not_kept(ask, name):
    status, text = await ask("PUT", "/site/a", b"x", query=[(f"x-amz-meta-{name}", "v")])
    assert (status, "InvalidArgument" in text) == (400, True)
    assert (await ask("GET", "/site/a"))[0] == 404


@pytest.mark.parametrize("name", ["x-amz-meta-a", "set-cookie", "content-length", "content-type"])
@pytest.mark.parametrize("value", ["a\nb", "&#13;&#10;X: y", "<b/>", "&#x20ac; text"], ids=ascii)
async def test_what_webdav_sets_makes_no_header_that_s3_would_not(ask, door, name, value):
    await ask("PUT", "/site/a", b"x")
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    prop = f'<prop><{name} xmlns="{space}">{value}</{name}></prop>'
    body = f'<propertyupdate xmlns="DAV:"><set>{prop}</set></propertyupdate>'.encode()
    await door.ask("PROPPATCH", "/site/a", body=body)
    for method in ("GET", "HEAD"):
        assert (await ask(method, "/site/a"))[0] == 200
        assert "set-cookie" not in ask.told
        assert ask.told["content-length"] == "1"
        assert "".join(ask.told.values()).isprintable()
