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
from doma.core.paths import nameable, parent
from doma.doors.dav_call import Call, href, links
from doma.store.protocol import Stat

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root{{color-scheme:light dark}}
body{{font:15px/1.6 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}}
h1{{font-size:1.15rem;font-weight:600;overflow-wrap:anywhere}}
a{{text-decoration:none}}a:hover{{text-decoration:underline}}
table{{border-collapse:collapse;width:100%}}
th{{font-weight:600;border-bottom:1px solid #8888}}
th,td{{text-align:left;padding:.15em 1.2em .15em 0;white-space:nowrap}}
td:first-child{{width:100%;white-space:normal;overflow-wrap:anywhere}}
tr:hover td{{background:#8881}}
.n{{text-align:right;font-variant-numeric:tabular-nums}}
code{{font-size:.9em;opacity:.75}}footer{{margin-top:1em;opacity:.7}}
</style></head>
<body><h1>{way}</h1>
<table><thead><tr><th>Name<th class="n">Size<th>Changed (UTC)<th>adler32</tr></thead><tbody>
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
    yield _HEAD.format(title=escape(call.shown), way=_way(call))
    if call.path != "/":
        above = escape(href(call.endpoint, parent(call.path), is_dir=True))
        yield f'<tr><td><a href="{above}" rel="up">.. (up)</a><td><td><td></tr>\n'
    link = links(call.endpoint)
    files = folders = size = 0
    async for entry in entries:
        files, folders, size = files + (not entry.is_dir), folders + entry.is_dir, size + entry.size
        yield _row(link(entry), entry)
    total = f"{_count(files, 'file')} ({_human(size)}), {_count(folders, 'folder')}"
    yield f"</tbody></table><footer>{total}</footer></body></html>\n"


def _way(call: Call) -> str:
    """The path with a link on each directory above."""
    steps, path = [f"/{call.endpoint.name}"], ""
    for name in [part for part in call.path.split("/") if part]:
        above = escape(href(call.endpoint, path or "/", is_dir=True))
        steps[-1] = f'<a href="{above}">{steps[-1]}</a>'
        path = f"{path}/{name}"
        steps.append(escape(name))
    return "/".join(steps)


def _row(link: str, entry: Stat) -> str:
    name = escape(entry.path.rpartition("/")[2]) + ("/" if entry.is_dir else "")
    size = "" if entry.is_dir else f'<span title="{entry.size} bytes">{_human(entry.size)}</span>'
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.modified))
    digest = escape(entry.checksums.get("adler32", ""))
    return (
        f'<tr><td><a href="{link}">{name}</a><td class="n">{size}<td class="n">{when}'
        f"<td><code>{digest}</code></tr>\n"
    )


def _human(size: int) -> str:
    """Bytes as people read them.

    >>> _human(0), _human(1023), _human(1536), _human(5 << 40)
    ('0 B', '1023 B', '1.5 KiB', '5.0 TiB')
    """
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, 5)
    return f"{size / 1024**power:.1f} {'KMGTP'[power - 1]}iB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
