"""PROPFIND and PROPPATCH as davix, gfal2 and hostile clients send them."""

from dataclasses import replace
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from doma.doors.dav_call import FLUSH
from doma.store.protocol import Locality, Space, Stat
from doma.store.wrap import Counted
from tests.contract.dav_reader import ALL, D, hrefs, properties, responses


async def test_the_asked_resource_comes_first_and_collections_end_in_a_slash(door):
    for path in ("/d/b", "/d/a c", "/d/sub/x"):
        await door.put(path)
    for target in ("/site/d", "/site/d/"):
        answer = await door.ask("PROPFIND", target, headers={"depth": "1"})
        assert answer.status == 207
        assert answer.headers["content-type"] == 'application/xml; charset="utf-8"'
        assert hrefs(answer.body) == ["/site/d/", "/site/d/a%20c", "/site/d/b", "/site/d/sub/"]
    top = await door.ask("PROPFIND", "/site", headers={"depth": "1"})
    assert hrefs(top.body) == ["/site/", "/site/d/"]
    alone = await door.ask("PROPFIND", "/site/d/b", headers={"depth": "1"})
    assert hrefs(alone.body) == ["/site/d/b"]


async def test_what_clients_read_of_a_file(door):
    stat = await door.put("/f", b"hello")
    answer = await door.ask("PROPFIND", "/site/f", headers={"depth": "0"})
    (response,) = responses(answer.body)
    found = properties(response)
    assert found[D + "getcontentlength"] == "5"
    assert found[D + "getetag"] == f'"{stat.version}"'
    assert found[D + "iscollection"] == "0"
    assert found[D + "displayname"] == "f"
    assert found[D + "getlastmodified"].endswith(" GMT")
    assert found[D + "creationdate"].endswith("Z")
    assert found[D + "resourcetype"] is None
    assert found["{LCGDM:}mode"] == "100644"
    assert "adler32=062c0215" in found["{http://www.dcache.org/2013/webdav}checksums"]
    assert found["{http://www.dcache.org/2013/webdav}FileLocality"] == "ONLINE"
    assert properties(response, "404") == {}


async def test_what_clients_read_of_a_collection(door):
    await door.put("/d/f")
    answer = await door.ask("PROPFIND", "/site/d", headers={"depth": "0"})
    (response,) = responses(answer.body)
    assert response.find(f"{D}propstat/{D}prop/{D}resourcetype/{D}collection") is not None
    found = properties(response)
    assert (found[D + "iscollection"], found["{LCGDM:}mode"]) == ("1", "40755")
    # Rucio reads the space of a storage from here: root[0][1][0]
    assert int(found[D + "quota-used-bytes"]) >= 0
    assert int(found[D + "quota-available-bytes"]) > 0
    assert response[1][0].find(D + "quota-used-bytes") is not None
    assert D + "getcontentlength" not in found


async def test_davix_asks_for_owner_and_group_by_other_names(door):
    await door.put("/f")
    (owner, group) = await named(door, "/site/f", "<owner/><group/>")
    assert (owner.text, group.text) == ("0", "0")
    everything = await door.ask("PROPFIND", "/site/f", headers={"depth": "0"})
    assert D + "owner" not in properties(responses(everything.body)[0])


@pytest.mark.parametrize("door", ["memory"], indirect=True)
async def test_the_space_of_a_collection_is_that_of_its_quota(door):
    await door.put("/vo/f")

    class Shares(Counted):
        async def space_at(self, path):
            return Space(len(path), -5)  # over its quota: nothing is left, and never less

    object.__setattr__(door.site.endpoints["site"], "store", Shares(door.stores["site"]))
    used, available = await named(door, "/site/vo", "<quota-used-bytes/><quota-available-bytes/>")
    assert (used.text, available.text) == ("3", "0")


@pytest.mark.parametrize("odd", ["\ufffe", "\uffff", "\x85", "\u2028", "\u202e", "\U0001f4a5", "]]>", "<!--"])
async def test_no_name_spoils_the_listing_of_the_others(door, odd):
    await door.put(f"/d/a{odd}z")
    await door.put("/d/good")
    answer = await door.ask("PROPFIND", "/site/d", headers={"depth": "1"})
    assert len(responses(answer.body)) == 3
    assert quote(f"/site/d/a{odd}z", safe="/!") in hrefs(answer.body)
    page = await door.ask("GET", "/site/d")
    assert page.text.count("<a ") == 4


async def test_unknown_properties_come_back_as_missing(door):
    await door.put("/f")
    body = b"""<?xml version="1.0"?><a:propfind xmlns:a="DAV:" xmlns:e="urn:e&amp;&lt;'&quot;"><a:prop>
        <a:getetag/><e:shoe/><plain/><a:lockdiscovery/><xml:x/></a:prop></a:propfind>"""
    answer = await door.ask("PROPFIND", "/site/f", headers={"depth": "0"}, body=body)
    (response,) = responses(answer.body)
    assert set(properties(response)) == {D + "getetag"}
    assert set(properties(response, "404")) == {
        "{urn:e&<'\"}shoe", "plain", D + "lockdiscovery", "{http://www.w3.org/XML/1998/namespace}x",
    }  # fmt: skip


async def test_a_property_that_a_file_lacks_is_missing_when_asked_for(door):
    await door.put("/d/f")
    body = ALL.format("prop").replace("<prop/>", "<prop><quota-used-bytes/><getcontentlength/></prop>")
    answer = await door.ask("PROPFIND", "/site/d", headers={"depth": "1"}, body=body.encode())
    directory, file = responses(answer.body)
    assert set(properties(directory)) == {D + "quota-used-bytes"}
    assert set(properties(directory, "404")) == {D + "getcontentlength"}
    assert set(properties(file)) == {D + "getcontentlength"}


async def test_names_alone_and_everything_with_more(door):
    await door.put("/f")
    names = await door.ask(
        "PROPFIND", "/site/f", headers={"depth": "0"}, body=ALL.format("propname").encode()
    )
    found = properties(responses(names.body)[0])
    assert D + "getetag" in found
    assert set(found.values()) == {None}
    more = '<propfind xmlns="DAV:"><allprop/><include><x xmlns="e:"/></include></propfind>'
    answer = await door.ask("PROPFIND", "/site/f", headers={"depth": "0"}, body=more.encode())
    (response,) = responses(answer.body)
    assert D + "getetag" in properties(response)
    assert set(properties(response, "404")) == {"{e:}x"}


@pytest.mark.parametrize("headers", [{}, {"depth": "infinity"}])
async def test_a_whole_tree_is_not_listed_at_once(door, headers):
    await door.put("/f")
    answer = await door.ask("PROPFIND", "/site/f", headers=headers)
    assert answer.status == 403
    assert ElementTree.fromstring(answer.body).find(D + "propfind-finite-depth") is not None
    assert (await door.ask("PROPFIND", "/site/f", headers={"depth": "2"})).status == 400


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<propfind xmlns="DAV:"><prop><x>&b;</x></prop></propfind>"""


MANY = b"".join(b"<p%d/>" % i for i in range(101))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"nonsense", 400),
        (b"<propfind/>", 400),
        (b'<propfind xmlns="DAV:"/>', 400),
        (b'<propfind xmlns="DAV:"><prop>', 400),
        (b'<x:propfind xmlns="DAV:"><prop/></x:propfind>', 400),
        (BOMB, 400),
        (b'<!DOCTYPE p SYSTEM "file:///etc/passwd"><propfind xmlns="DAV:"><allprop/></propfind>', 400),
        (b'<?xml version="1.0" encoding="nope"?><propfind xmlns="DAV:"><allprop/></propfind>', 400),
        (b'<?xml version="1.0" encoding="utf-7"?><propfind xmlns="DAV:"><allprop/></propfind>', 400),
        (b"\xff\xfe\x00", 400),
        (b'<propfind xmlns="DAV:">' + b"<a>" * 10_000, 400),
        (b'<propfind xmlns="DAV:"><prop>' + MANY, 400),
        (b'<propfind xmlns="DAV:"><prop>' + MANY + b"</prop></propfind>", 400),
        (b'<propfind xmlns="DAV:"><prop><' + b"x" * 600 + b"/></prop></propfind>", 400),
        (b"<" + b"x" * 70_000, 413),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["PROPFIND", "PROPPATCH"])
async def test_a_hostile_body_gets_one_clear_line(door, method, body, status):
    await door.put("/f")
    answer = await door.ask(method, "/site/f", headers={"depth": "0"}, body=body)
    assert answer.status == status, answer.text
    assert answer.text.count("\n") == 1
    assert "root:" not in answer.text


async def test_deeply_nested_xml_does_no_harm(door):
    await door.put("/f")
    body = b'<propfind xmlns="DAV:"><prop>' + b"<a>" * 8000 + b"</a>" * 8000 + b"</prop></propfind>"
    answer = await door.ask("PROPFIND", "/site/f", headers={"depth": "0"}, body=body)
    assert answer.status == 207


async def named(door, path, *names):
    """The elements of properties that the first entry has."""
    body = f'<propfind xmlns="DAV:" xmlns:u="urn:me"><prop>{"".join(names)}</prop></propfind>'
    answer = await door.ask("PROPFIND", path, headers={"depth": "0"}, body=body.encode())
    (response,) = responses(answer.body)
    for propstat in response.findall(D + "propstat"):
        if "200" in propstat.findtext(D + "status"):
            return list(propstat.find(D + "prop"))
    return []


@pytest.mark.parametrize(("place", "word"), [
    (Locality.DISK, "ONLINE"), (Locality.TAPE, "NEARLINE"), (Locality.DISK_AND_TAPE, "ONLINE_AND_NEARLINE"),
    (Locality.LOST, "LOST"), (Locality.NONE, "ONLINE"), (Locality.UNAVAILABLE, "UNAVAILABLE"),
])  # fmt: skip
@pytest.mark.parametrize("door", ["memory"], indirect=True)
async def test_where_a_file_is_stands_in_the_words_of_dcache(door, place, word):
    await door.put("/f")

    class Elsewhere(Counted):
        async def stat(self, path):
            return replace(await super().stat(path), locality=place)

    object.__setattr__(door.site.endpoints["site"], "store", Elsewhere(door.stores["site"]))
    answer = await door.ask("PROPFIND", "/site/f", headers={"depth": "0"})
    assert properties(responses(answer.body)[0])["{http://www.dcache.org/2013/webdav}FileLocality"] == word


class Endless:
    """A directory of very many files that are made up as they are listed."""

    def __init__(self, inner, count):
        self._inner, self._count, self.listed = inner, count, 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def list(self, path):
        for i in range(self._count):
            self.listed += 1
            yield Stat(f"{path}/file_{i:06d}.root", i, f"v{i}", 1.7e9 + i, checksums={"adler32": "0a1b2c3d"})


@pytest.mark.parametrize("door", ["memory"], indirect=True)
async def test_a_long_listing_is_sent_as_it_is_made(door):
    await door.put("/d/f")
    count = 6_000
    made = Endless(door.stores["site"], count)
    object.__setattr__(door.site.endpoints["site"], "store", made)
    largest = sent = held = 0

    async def send(message):
        nonlocal largest, sent, held
        body = message.get("body", b"")
        largest = max(largest, len(body))
        sent += body.count(b"<D:href>")
        held = max(held, made.listed - sent)

    await door.ask("PROPFIND", "/site/d", headers={"depth": "1"}, send=send)
    assert sent == count + 1
    assert largest < 2 * FLUSH
    assert held < 500


async def test_a_name_that_no_request_could_carry_is_left_out(door):
    await door.put("/d/f")

    class Odd(Endless):
        async def list(self, path):
            for name in ("good", "bad\x01", "bad\udcff", "bad\n"):
                yield Stat(f"{path}/{name}", 1, "v", 0.0)

    object.__setattr__(door.site.endpoints["site"], "store", Odd(door.stores["site"], 0))
    answer = await door.ask("PROPFIND", "/site/d", headers={"depth": "1"})
    assert hrefs(answer.body) == ["/site/d/", "/site/d/good"]
    page = await door.ask("GET", "/site/d", headers={"accept": "application/json"})
    assert page.text.count('"name"') == 1
