"""Reads what the WebDAV door says of entries."""

from xml.etree import ElementTree

D = "{DAV:}"
ALL = '<propfind xmlns="DAV:"><{}/></propfind>'


def responses(body):
    """The elements of a multistatus, one for each entry."""
    root = ElementTree.fromstring(body)
    assert root.tag == D + "multistatus"
    return list(root)


def hrefs(body):
    """The addresses of its entries."""
    return [r.findtext(D + "href") for r in responses(body)]


def properties(response, status="200"):
    """Property to text, of the propstat with this status."""
    for propstat in response.findall(D + "propstat"):
        if status in propstat.findtext(D + "status", ""):
            return {p.tag: p.text for p in propstat.find(D + "prop")}
    return {}
