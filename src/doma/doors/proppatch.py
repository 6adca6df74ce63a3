"""PROPPATCH: what clients note about files and collections, all of a request or nothing of it.

Source: RFC 4918 §4.3, §9.2; rule W15 of the storage contract.
"""

from xml.sax.saxutils import escape

from doma.auth.model import Verb
from doma.core.errors import LimitExceeded
from doma.doors.dav_call import Call, check_conditions, href
from doma.doors.dav_xml import CLOSE, LIMIT, OPEN, XML, changed, element, propstat
from doma.doors.propfind import PROTECTED
from doma.store.protocol import CanAnnotate


async def proppatch(call: Call) -> None:
    """Set and remove a client's own properties; the server's own are protected."""
    call.must_be_writable()
    stat = await call.found(Verb.MODIFY)
    changes = changed(await call.body(LIMIT))
    check_conditions(call, stat)
    store = call.endpoint.store
    protected = {name for name in changes if name in PROTECTED}
    if protected or not isinstance(store, CanAnnotate):
        told = _refused(list(changes), protected, kept=isinstance(store, CanAnnotate))
    else:
        try:
            await store.annotate(call.path, changes)
            told = propstat("".join(map(element, changes)), 200)
            call.tell("properties.changed", call.endpoint, call.path, names=sorted(changes))
        except LimitExceeded as e:
            told = propstat("".join(map(element, changes)), 507, said=e.message)
    place = escape(href(call.endpoint, call.path, is_dir=stat.is_dir))
    body = f"{OPEN}<D:response><D:href>{place}</D:href>{told}</D:response>\n{CLOSE}"
    await call.answer(207, {"Content-Type": XML}, body.encode())


def _refused(names: list[str], protected: set[str], *, kept: bool) -> str:
    """One outcome for each: a protected one is why, the others were not tried because of it."""
    told = ""
    for name in names:
        if name in protected:
            why = "this property is computed by the server"
            told += propstat(element(name), 403, "cannot-modify-protected-property", why)
        elif kept:
            told += propstat(element(name), 424, said="nothing is changed, since another change is refused")
        else:
            told += propstat(element(name), 403, said="own properties are not kept here")
    return told
