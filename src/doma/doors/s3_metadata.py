"""What a client says about an object besides its content: ``x-amz-meta-…``, content type and the like.

Kept as the file's own properties where the store has a place for them, else dropped: each a whole element, as
WebDAV shows it to others and may have set it. They are set just after the file is published. Whatever type a
client names, a browser must not run the content in our name: such answers are sandboxed.

Source: Amazon S3 User Guide, "Working with object metadata"; RFC 4918 dead properties underneath.
"""

import re
from collections.abc import Mapping
from xml.sax.saxutils import escape, unescape

from doma.core.errors import BadRequest, LimitExceeded, NotFound
from doma.doors.s3_call import Place
from doma.doors.s3_xml import NAMESPACE
from doma.store.protocol import CanAnnotate, Stat

META = "x-amz-meta-"
LARGEST = 8 << 10
"""Bytes of all of it; AWS takes 2 KiB."""
SAFE = {"content-security-policy": "sandbox", "x-content-type-options": "nosniff"}
"""Goes with every answer whose type a client chose."""

_KEPT = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
)
_USUAL = {"", "application/octet-stream", "binary/octet-stream"}
_PREFIX = f"{{{NAMESPACE}}}"
_NAME = re.compile(rf"{META}[a-z0-9._-]*")
"""What is a name in a header and in XML: a signed URL can say any other."""
_VALUE = re.compile(r"<(\w+):[^<>]*>([^<>]*)</\1:[^<>]*>")


def stated(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request that are to come back with the object.

    Raises:
        BadRequest: too much of it, or no printable text.
    """
    found = {n: v for n, v in headers.items() if n.startswith(META) or n in _KEPT}
    if found.get("content-type", "") in _USUAL:
        found.pop("content-type", None)
    coding = [c.strip() for c in found.get("content-encoding", "").split(",")]
    found["content-encoding"] = ", ".join(c for c in coding if c != "aws-chunked")
    found = {n: v for n, v in found.items() if v or n.startswith(META)}
    if sum(len(n) + len(v) for n, v in found.items()) > LARGEST:
        raise BadRequest(f"metadata: at most {LARGEST} bytes are kept", s3="MetadataTooLarge")
    if any(not value.isprintable() for value in found.values()):
        raise BadRequest("metadata: must be printable", s3="InvalidArgument")
    if any(not _is_name(name) for name in found):
        raise BadRequest("metadata: a name has a-z, 0-9, '.', '_' and '-' only", s3="InvalidArgument")
    return found


async def keep(place: Place, wanted: Mapping[str, str]) -> None:
    """Set what an object is to come back with; what was there before goes."""
    store = place.endpoint.store
    if not isinstance(store, CanAnnotate):
        return
    try:
        old = await _held(store, place.path) if (await store.stat(place.path)).annotated else {}
        changes = {_PREFIX + name: None for name in old if name not in wanted}
        if wanted or changes:
            await store.annotate(
                place.path, changes | {_PREFIX + n: _element(n, v) for n, v in wanted.items()}
            )
    except NotFound:
        return  # deleted again meanwhile
    except LimitExceeded as e:
        raise BadRequest(e.message, s3="MetadataTooLarge") from e


async def held(place: Place, stat: Stat | None = None) -> dict[str, str]:
    """The headers that come back with an object."""
    store = place.endpoint.store
    if not isinstance(store, CanAnnotate):
        return {}
    try:
        if not (stat or await store.stat(place.path)).annotated:
            return {}
        return await _held(store, place.path)
    except NotFound:
        return {}


async def _held(store: CanAnnotate, path: str) -> dict[str, str]:
    found = {}
    for key, text in (await store.annotations(path)).items():
        name, value = key.removeprefix(_PREFIX), _VALUE.fullmatch(text)
        if key.startswith(_PREFIX) and _is_name(name) and value is not None and value[2].isprintable():
            found[name] = unescape(value[2])
    return found


def _is_name(name: str) -> bool:
    return name in _KEPT or _NAME.fullmatch(name) is not None


def _element(name: str, value: str) -> str:
    return f'<x:{name} xmlns:x="{NAMESPACE}">{escape(value)}</x:{name}>'
