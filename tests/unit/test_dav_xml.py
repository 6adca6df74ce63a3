"""Properties that clients set: whatever XML can hold comes back as it was."""

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.core.errors import BadRequest
from doma.doors.dav_xml import DAV, DEEPEST, asked, changed, element, failures, propstat

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], include_characters="\t\n\r"))
text = text.filter(lambda t: "\ufffe" not in t and "\uffff" not in t)
space = st.sampled_from(["", "DAV:", "urn:me", "urn:<&\"'>", "http://www.dcache.org/2013/webdav", "LCGDM:"])
local = st.sampled_from(["a", "b", "_c", "é", "Win32.x-1"])
name = st.builds(lambda s, n: f"{{{s}}}{n}" if s else n, space, local)


@st.composite
def values(draw, depth=0):
    one = Element(draw(name), {draw(local): draw(text)} if draw(st.booleans()) else {})
    one.text = draw(text)
    if depth < 3:
        for child in draw(st.lists(values(depth + 1), max_size=2)):
            child.tail = draw(text)
            one.append(child)
    return one


def wire(value):
    """As a client would send it: ``tostring`` alone would let a carriage return become a line feed."""
    update = Element(DAV + "propertyupdate")
    SubElement(SubElement(update, DAV + "set"), DAV + "prop").append(value)
    return ElementTree.tostring(update, encoding="unicode").replace("\r", "&#13;").encode()


def same(a, b):
    return (a.tag, a.text or "", a.attrib, len(a)) == (b.tag, b.text or "", b.attrib, len(b)) and all(
        same(c, d) and (c.tail or "") == (d.tail or "") for c, d in zip(a, b, strict=True)
    )


@given(values())
def test_a_value_survives_being_kept(value):
    ((kept_name, kept),) = changed(wire(value)).items()
    assert kept_name == value.tag
    # It stands in an answer that has prefixes of its own and no default namespace.
    answer = f'<D:multistatus xmlns:D="DAV:" xmlns:ns0="other:">{kept}</D:multistatus>'
    assert same(ElementTree.fromstring(answer)[0], value)


@given(st.lists(name, min_size=1, max_size=5, unique=True))
def test_a_name_is_written_as_it_was_read(names):
    inner = "".join(map(element, names))
    body = f'<D:propfind xmlns:D="DAV:" xmlns:L="LCGDM:" xmlns:C="http://www.dcache.org/2013/webdav"><D:prop>{inner}'
    assert list(asked(f"{body}</D:prop></D:propfind>".encode()).names) == names


@pytest.mark.parametrize("depth", [DEEPEST, DEEPEST + 1, 20_000])
def test_a_value_has_a_deepest_level(depth):
    body = '<propertyupdate xmlns="DAV:"><set><prop>' + "<a>" * depth + "</a>" * depth + "</prop></set>"
    if depth == DEEPEST:
        assert changed(f"{body}</propertyupdate>".encode())
    else:
        with pytest.raises(BadRequest, match="levels"):
            changed(f"{body}</propertyupdate>".encode())


def test_what_people_read_cannot_break_the_answer():
    told = propstat("<D:a/>", 507, said="<b>&\uffff") + propstat("<D:a/>", 424)
    assert [p[1].text for p in ElementTree.fromstring(f'<r xmlns:D="DAV:">{told}</r>')] == [
        "HTTP/1.1 507 Insufficient Storage",
        "HTTP/1.1 424 Failed Dependency",
    ]
    (one,) = ElementTree.fromstring(failures({"/a?&<": {"status": 403, "detail": "no <way>"}}))
    assert (one[0].text, one[2].text) == ("/a?&<", "no <way>")
