"""PROPPATCH: what clients note about files and collections, over every store that keeps it."""

from xml.etree import ElementTree

from doma.store.wrap import Counted
from tests.contract.dav_reader import ALL, D, properties, responses


async def named(door, path, *names):
    """The elements of properties that the first entry has."""
    body = f'<propfind xmlns="DAV:" xmlns:u="urn:me"><prop>{"".join(names)}</prop></propfind>'
    answer = await door.ask("PROPFIND", path, headers={"depth": "0"}, body=body.encode())
    (response,) = responses(answer.body)
    for propstat in response.findall(D + "propstat"):
        if "200" in propstat.findtext(D + "status"):
            return list(propstat.find(D + "prop"))
    return []


def update(*acts):
    return ('<propertyupdate xmlns="DAV:" xmlns:u="urn:me">' + "".join(acts) + "</propertyupdate>").encode()


def put(*props, more=""):
    return f"<set{more}><prop>{''.join(props)}</prop></set>"


def drop(*props):
    return f"<remove><prop>{''.join(props)}</prop></remove>"


async def patch(door, path, *acts):
    """The status of each property."""
    answer = await door.ask("PROPPATCH", path, body=update(*acts))
    assert answer.status == 207, answer.text
    (response,) = responses(answer.body)
    return {
        p.tag: s.findtext(D + "status").split()[1]
        for s in response.findall(D + "propstat")
        for p in s.find(D + "prop")
    }


async def test_what_a_client_notes_is_found_again_as_it_was(door):
    await door.put("/d/f")
    rich = (
        '<u:rich xml:lang="fr" u:a="1"><v:b xmlns:v="urn:v"><v:c/>t\u00e9xt &lt;&#13;\n&amp;\U00010400</v:b>'
        "</u:rich>"
    )
    for path in ("/site/d/f", "/site/d", "/site/"):
        told = await patch(door, path, put(rich, "<u:empty/>", '<plain xmlns="">x</plain>'))
        assert set(told.values()) == {"200"}
        assert set(told) == {"{urn:me}rich", "{urn:me}empty", "plain"}
        (found,) = await named(door, path, "<u:rich/>")
        sent = ElementTree.fromstring(f'<r xmlns:u="urn:me">{rich}</r>')[0]
        assert ElementTree.canonicalize(ElementTree.tostring(found)) == ElementTree.canonicalize(
            ElementTree.tostring(sent)
        )
        everything = await door.ask("PROPFIND", path, headers={"depth": "0"})
        assert {"{urn:me}rich", "{urn:me}empty", "plain"} < set(properties(responses(everything.body)[0]))
        names = await door.ask("PROPFIND", path, headers={"depth": "0"}, body=ALL.format("propname").encode())
        assert properties(responses(names.body)[0])["{urn:me}rich"] is None


async def test_changes_are_done_in_their_order(door):
    await door.put("/f")
    assert await patch(door, "/site/f", put("<u:a>1</u:a>"), drop("<u:a/>")) == {"{urn:me}a": "200"}
    assert await named(door, "/site/f", "<u:a/>") == []
    await patch(door, "/site/f", drop("<u:a/>"), put("<u:a>2</u:a>"))
    assert [p.text for p in await named(door, "/site/f", "<u:a/>")] == ["2"]
    assert await patch(door, "/site/f", drop("<u:none/>")) == {"{urn:me}none": "200"}


async def test_the_language_in_force_is_kept(door):
    await door.put("/f")
    await patch(door, "/site/f", put("<u:a>x</u:a>", '<u:b xml:lang="de">y</u:b>', more=' xml:lang="en"'))
    a, b = await named(door, "/site/f", "<u:a/><u:b/>")
    lang = "{http://www.w3.org/XML/1998/namespace}lang"
    assert (a.get(lang), b.get(lang)) == ("en", "de")


async def test_a_listing_has_the_notes_of_every_entry(door):
    for i in range(150):
        await door.put(f"/d/{i:03}")
    await patch(door, "/site/d/077", put("<u:a>here</u:a>"))
    await patch(door, "/site/d/149", put("<u:a>last</u:a>"))
    body = b'<propfind xmlns="DAV:" xmlns:u="urn:me"><prop><u:a/><getetag/></prop></propfind>'
    for sent in (body, b""):
        answer = await door.ask("PROPFIND", "/site/d", headers={"depth": "1"}, body=sent)
        found = {r.findtext(D + "href"): properties(r).get("{urn:me}a") for r in responses(answer.body)}
        assert len(found) == 151
        assert {k: v for k, v in found.items() if v} == {"/site/d/077": "here", "/site/d/149": "last"}


async def test_notes_go_with_a_move_and_are_copied(door):
    await door.put("/d/sub/f")
    for path in ("/site/d", "/site/d/sub", "/site/d/sub/f"):
        await patch(door, path, put(f"<u:a>{path}</u:a>"))
    await door.ask("MOVE", "/site/d", headers={"destination": "/site/e"})
    await door.ask("COPY", "/site/e", headers={"destination": "/site/g"})
    await door.ask("COPY", "/site/e", headers={"destination": "/other/g"})
    await door.put("/old")
    await patch(door, "/site/old", put("<u:b>gone with it</u:b>"))
    await door.ask("COPY", "/site/e/sub/f", headers={"destination": "/site/old"})
    for top in ("/site/e", "/site/g", "/other/g"):
        for below in ("", "/sub", "/sub/f"):
            assert [p.text for p in await named(door, top + below, "<u:a/>")] == ["/site/d" + below]
    assert [p.tag for p in await named(door, "/site/old", "<u:a/><u:b/>")] == ["{urn:me}a"]


async def test_a_protected_property_stops_all_changes(door):
    await door.put("/f")
    for live in ("<getetag>x</getetag>", "<lockdiscovery/>", '<mode xmlns="LCGDM:">777</mode>'):
        answer = await door.ask("PROPPATCH", "/site/f", body=update(put("<u:a>1</u:a>", live)))
        (response,) = responses(answer.body)
        assert response.findtext(D + "href") == "/site/f"
        mine, theirs = response.findall(D + "propstat")
        assert "424" in mine.findtext(D + "status")
        assert "403" in theirs.findtext(D + "status")
        assert theirs.find(f"{D}error/{D}cannot-modify-protected-property") is not None
    assert await named(door, "/site/f", "<u:a/>") == []


async def test_who_may_change_properties_and_when(door):
    await door.put("/f")
    body = update(put("<u:a>1</u:a>"))
    assert (await door.ask("PROPPATCH", "/site/f", "storage.read:/", body=body)).status == 403
    assert (await door.ask("PROPPATCH", "/site/none", body=body)).status == 404
    stale = {"if-match": '"gone"'}
    assert (await door.ask("PROPPATCH", "/site/f", headers=stale, body=body)).status == 412
    nothing = b'<propertyupdate xmlns="DAV:"/>'
    assert (await door.ask("PROPPATCH", "/site/f", body=nothing)).status == 400
    assert (await door.ask("PROPPATCH", "/site/f", "storage.modify:/", body=body)).status == 207
    assert [(e.kind, e.data["names"]) for e in door.events] == [("properties.changed", ["{urn:me}a"])]


async def test_a_file_keeps_at_most_64_kib_of_notes(door):
    await door.put("/f")
    big = "x" * 40_000
    assert await patch(door, "/site/f", put(f"<u:a>{big}</u:a>")) == {"{urn:me}a": "200"}
    assert await patch(door, "/site/f", put(f"<u:b>{big}</u:b>", "<u:c/>")) == {
        "{urn:me}b": "507", "{urn:me}c": "507",
    }  # fmt: skip
    assert [p.tag for p in await named(door, "/site/f", "<u:a/><u:b/><u:c/>")] == ["{urn:me}a"]


async def test_a_store_that_keeps_no_notes_says_so_for_each(door):
    await door.put("/f")
    object.__setattr__(door.site.endpoints["site"], "store", Counted(door.stores["site"]))
    told = await patch(door, "/site/f", put("<u:a>1</u:a>", "<getetag/>"))
    assert told == {"{urn:me}a": "403", D + "getetag": "403"}
    assert (await door.ask("PROPFIND", "/site/f", headers={"depth": "0"})).status == 207
