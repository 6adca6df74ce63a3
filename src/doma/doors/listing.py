"""GET on a collection: a page for people, JSON for programs; streamed, so its length costs no memory.

Source: rule W3 of the storage contract.
"""

import json
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from html import escape
from typing import Any

from doma.auth.model import Verb
from doma.doors.dav_call import Call, href, nameable
from doma.store.protocol import Stat

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2em;max-width:60em;color:#222}}
table{{border-collapse:collapse;width:100%}}th,td{{text-align:left;padding:.15em 1.2em .15em 0}}
td.n,th.n{{text-align:right;font-variant-numeric:tabular-nums}}a{{text-decoration:none}}</style></head>
<body><h1>{title}</h1><table><tr><th>Name<th class="n">Bytes<th>Changed (UTC)<th>adler32</tr>
"""


async def show(call: Call, stat: Stat) -> None:
    """Answer GET or HEAD on a collection; the caller has decided that it may be read."""
    common = {"Last-Modified": formatdate(stat.modified, usegmt=True), "Vary": "Accept"}
    entries = visible(call)
    if "json" in call.headers.get("accept", ""):
        await call.stream(200, {**common, "Content-Type": "application/json"}, _json(call, entries))
        return
    headers = {
        **common,
        "Content-Type": "text/html; charset=utf-8",
        # Names are other people's text: should one slip through unescaped, it still runs nothing.
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
        "X-Content-Type-Options": "nosniff",
    }
    await call.stream(200, headers, _html(call, entries))


async def visible(call: Call) -> AsyncIterator[Stat]:
    """The children that the identity may know of."""
    may, who = call.endpoint.gate.may, call.identity
    async for entry in call.endpoint.store.list(call.path):
        if nameable(entry.path) and may(who, Verb.STAT, entry.path, entry.is_dir):
            yield entry


async def _json(call: Call, entries: AsyncIterator[Stat]) -> AsyncIterator[str]:
    first = await anext(entries, None)
    yield f'{{"path":{json.dumps(call.shown)},"entries":['
    if first is not None:
        yield json.dumps(_facts(first))
        async for entry in entries:
            yield "," + json.dumps(_facts(entry))
    yield "]}\n"


def _facts(entry: Stat) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": entry.path.rpartition("/")[2],
        "is_dir": entry.is_dir,
        "bytes": entry.size,
        "modified": entry.modified,
    }
    if not entry.is_dir:
        facts["etag"] = f'"{entry.version}"'
        facts["checksums"] = dict(entry.checksums)
    return facts


async def _html(call: Call, entries: AsyncIterator[Stat]) -> AsyncIterator[str]:
    first = await anext(entries, None)
    yield _HEAD.format(title=escape(call.shown))
    if call.path != "/":
        yield '<tr><td><a href="../">..</a><td class="n"><td><td></tr>\n'
    if first is not None:
        yield _row(call, first)
        async for entry in entries:
            yield _row(call, entry)
    yield "</table></body></html>\n"


def _row(call: Call, entry: Stat) -> str:
    name = escape(entry.path.rpartition("/")[2]) + ("/" if entry.is_dir else "")
    link = escape(href(call.endpoint, entry.path, is_dir=entry.is_dir), quote=True)
    size = "" if entry.is_dir else str(entry.size)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.modified))
    digest = escape(entry.checksums.get("adler32", ""))
    return f'<tr><td><a href="{link}">{name}</a><td class="n">{size}<td>{when}<td>{digest}</tr>\n'
