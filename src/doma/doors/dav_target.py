"""Where a MOVE or COPY leads: the headers that name another place, read as hostile input.

Source: RFC 4918 §10.3; rules W11-W13, W71 of the storage contract.
"""

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from doma.core.errors import BadRequest, OriginFailed
from doma.core.paths import normalise
from doma.doors.dav_call import Call, shown
from doma.doors.endpoint import Endpoint

_SCHEMES = {"http": 80, "dav": 80, "https": 443, "davs": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """A path of ours that a header names."""

    endpoint: Endpoint
    path: str

    @property
    def shown(self) -> str:
        """As in a URL, decoded."""
        return shown(self.endpoint, self.path)


def is_ours(call: Call, header: str) -> bool:
    """Whether the header leads to one of our doors: no host, the host that was asked, or a name of ours.

    Raises:
        BadRequest: it is missing, or neither an absolute path nor a URL that we would follow.
    """
    url = _url(call, header)
    if not url.netloc:
        return True
    place = (url.hostname or "", url.port or _SCHEMES[url.scheme])
    try:
        asked = urlsplit("//" + call.headers.get("host", ""))
        default = {80, 443} if asked.port is None else {asked.port}
    except ValueError:
        return place in call.site.doors
    return place in call.site.doors or (place[0] == asked.hostname and place[1] in default)


def target_of(call: Call, header: str = "destination") -> Target:
    """The place of ours that a header names.

    Raises:
        BadRequest, BadPath: it is missing or no URL of a path.
        OriginFailed (502): another server's. NotFound: no such endpoint.
    """
    if not is_ours(call, header):
        raise OriginFailed(
            f"{call.shown}: the {header.title()} is on another server; {call.method} stays on this one"
        )
    return Target(*call.site.find(normalise(_url(call, header).path or "/")))


def _url(call: Call, header: str) -> SplitResult:
    # Bytes beyond ASCII should have been encoded; clients do send UTF-8.
    value = call.headers.get(header, "").encode("latin-1").decode("utf-8", "surrogateescape")
    if not value:
        raise BadRequest(f"{call.shown}: {call.method} needs the header {header.title()}")
    if any(c < " " or c == "\x7f" for c in value):  # urlsplit would drop some of them silently
        raise BadRequest(f"{call.shown}: the {header.title()} holds control characters")
    if value.startswith("/") and not value.startswith("//"):
        path, _, query = value.partition("?")
        url = SplitResult("", "", path, query, "")
    else:
        try:
            url = urlsplit(value)
            known = url.scheme in _SCHEMES and bool(url.hostname) and url.port != 0
        except ValueError:
            known = False
        if not known or "@" in url.netloc:
            raise BadRequest(
                f"{call.shown}: the {header.title()} must be an absolute path, or an https (davs) or http"
                " URL without user info"
            )
    if "#" in value:
        raise BadRequest(f"{call.shown}: the {header.title()} has a fragment; encode '#' in a name as %23")
    return url
