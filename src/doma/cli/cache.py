"""``doma cache``: asks a running cache over its own HTTP commands."""

import json as json_text
import os
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from doma.app.home import default_home
from doma.auth.bearer import discover
from doma.cli import show
from doma.cli.token import duration
from doma.core.errors import BadRequest, ConfigError, NotFound, ServiceUnavailable
from doma.facility.access import Access
from doma.net.problem import raise_for

API = "/api/v1/cache"
_PAGE = 1000
_SHOWN = 50
"""Rows of a table that explains; the rest is a sum."""


@dataclass(frozen=True, slots=True)
class Remote:
    """The commands of one running cache."""

    http: httpx.Client
    prefix: str
    """Before the paths of the commands."""

    @classmethod
    @contextmanager
    def of(cls, home: Path | None, url: str, ca: Path | None, endpoint: str) -> Iterator[Self]:
        """The cache of a running home, or of another system."""
        with _there(url, ca) if url else Access.read(home or default_home()).http() as http:
            try:
                yield cls(http, f"/api/v1/endpoints/{quote(endpoint, safe='')}" if endpoint else "")
            except httpx.HTTPError as e:
                raise ServiceUnavailable(f"{http.base_url}: does not answer ({e}); try 'doma doctor'") from e

    def ask(self, method: str, command: str, /, body: Any = None, **query: Any) -> Any:
        """The JSON of an answer. Raises what the cache says."""
        answer = self.http.request(
            method,
            self.prefix + command,
            params={k: str(v).lower() if isinstance(v, bool) else v for k, v in query.items()},
            json=body,
            headers={"Accept": "application/json"},
            timeout=None,  # a purge or a check of a long file takes its time
        )
        raise_for(answer)
        return answer.json() if answer.content else None

    def below(self, top: str, after: str = "", limit: int = sys.maxsize) -> Iterator[dict[str, Any]]:
        """Holdings at and below a path, in the order of names."""
        while limit > 0:
            page = self.ask("GET", f"{API}/holdings", path=top, after=after, limit=min(limit, _PAGE))
            yield from page["files"]
            limit -= len(page["files"])
            if (after := page["after"]) is None:
                return


def paths_of(paths: Sequence[str], file: Path | None) -> list[str]:
    """The paths of the command line and of a list.

    Raises:
        BadRequest: there are none. ConfigError: the list cannot be read.
    """
    found = list(paths)
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{file}: cannot be read: {e}") from e
        found += [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise BadRequest("paths: there are none; name files, or a list of them with --from")
    return found


def list_cached(remote: Remote, path: str, after: str, limit: int, json: bool) -> None:
    """The files at and below a path."""
    files = list(remote.below(path, after, limit))
    if json:
        show.as_json(files)
        return
    _holdings_table("in the cache", files)
    if len(files) == limit:
        print(f"there may be more: --after {files[-1]['path']}", file=sys.stderr)


def holdings(remote: Remote, paths: Sequence[str], file: Path | None, json: bool, *, each: bool) -> None:
    """What of files is here, one by one or as a sum; exits 66 if ``each`` names what is not."""
    found: list[dict[str, Any]] = []
    wanted = paths_of(paths, file)
    plain = [path for path in wanted if not path.endswith("/")]
    for at in range(0, len(plain), _PAGE):
        body = {"paths": plain[at : at + _PAGE]}
        found += remote.ask("POST", f"{API}/holdings", body)["files"]
    for top in (path for path in wanted if path.endswith("/")):
        found += remote.below(top)
    size, cached = sum(one["size"] or 0 for one in found), sum(one["cached"] for one in found)
    whole, unknown = sum(one["complete"] for one in found), sum(one["size"] is None for one in found)
    if json:
        sums = {"count": len(found), "size": size, "cached": cached, "complete": whole, "unknown": unknown}
        show.as_json({"files": found, **sums})
    else:
        if each:
            _holdings_table("holdings", found)
        told = f"{show.size(cached)} of {show.size(size)} are here, {whole} of {len(found)} files whole"
        print(told + (f", nothing is known of {unknown}" if unknown else ""))
    if each and unknown == len(found):
        raise NotFound(f"{wanted[0]}: nothing of it is in the cache")


def evict(remote: Remote, paths: Sequence[str], now: bool, force: bool, json: bool) -> None:
    """Give files up."""
    done = [
        remote.ask("POST", "/pelican/api/v1.0/evict", path=path, immediate=now, force=force) for path in paths
    ]
    if json:
        show.as_json(done)
        return
    for one in done:
        left = [f"{one[why]} {text}" for why, text in (("busy", "in use"), ("pinned", "pinned")) if one[why]]
        when = "gone" if one["immediate"] else "first at the next purge"
        rest = f"; left: {', '.join(left)}" if left else ""
        print(
            f"{one['path']}: {show.counted(one['objects'], 'object')}, {show.size(one['bytes'])} {when}{rest}"
        )


def pin(remote: Remote, paths: Sequence[str], file: Path | None, lifetime: str, json: bool) -> None:
    """Pin files, or show the pins."""
    if not paths and file is None:
        pins = remote.ask("GET", f"{API}/pins")
    else:
        query = {"lifetime": duration(lifetime)} if lifetime else {}
        pins = [remote.ask("PUT", f"{API}/pins{quote(path)}", **query) for path in paths_of(paths, file)]
    if json:
        show.as_json(pins)
        return
    rows = [(one["path"], show.size(one["size"]), _when(one["until"])) for one in pins]
    show.table("pins", ("path", "size", "until"), rows, right=("size",))


def unpin(remote: Remote, paths: Sequence[str], everybody: bool, json: bool) -> None:
    """Take pins away."""
    for path in paths:
        remote.ask("DELETE", f"{API}/pins{quote(path)}", everybody=everybody)
    if json:
        show.as_json({"unpinned": list(paths)})


def purge(remote: Remote, dry_run: bool, json: bool) -> None:
    """Free disk, or say what would go."""
    done = remote.ask("POST", f"{API}/purge", dry_run=dry_run)
    if json:
        show.as_json(done)
        return
    rows = [
        (one["path"], show.size(one["used"]), _when(one["accessed"]), one["reason"])
        for one in done["objects"]
    ]
    if rows:
        title = "would go, in this order" if dry_run else "gone"
        show.table(title, ("path", "disk", "last read", "reason"), rows[:_SHOWN], right=("disk",))
    print(f"{show.counted(done['count'], 'object')}, {show.size(done['bytes'])}")


def stats(remote: Remote, json: bool) -> None:
    """Counters and gauges."""
    found = remote.ask("GET", f"{API}/stats")
    if json:
        show.as_json(found)
        return
    ratio = "" if found["hit_ratio"] is None else f"{found['hit_ratio']:.1%}"
    rows = [("disk", f"{show.size(found['used'])} of {show.size(found['size'])}")]
    rows += [("of it index and folders", show.size(found["beside"])), ("hit ratio", ratio)]
    rows += [(name, show.size(value)) for name, value in found["bytes"].items()]
    rows += [
        (name.replace("_", " "), f"{value:,.{0 if value == int(value) else 3}f}")
        for name, value in found["counts"].items()
    ]
    show.table("since the start", ("what", "value"), rows, right=("value",))


def _holdings_table(title: str, files: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            one["path"],
            "" if one["size"] is None else show.size(one["size"]),
            show.size(one["cached"]),
            f"{one['cached'] / one['size']:.0%}" if one["size"] else "100%" if one["complete"] else "",
            _when(one["accessed"]),
        )
        for one in files
    ]
    columns = ("path", "size", "here", "part", "last read")
    show.table(title, columns, rows, right=("size", "here", "part"))


def _when(instant: float | None) -> str:
    if instant is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(instant)) if instant else "given up"


def _there(url: str, ca: Path | None) -> httpx.Client:
    """A client of another system, with the token that WLCG's discovery finds."""
    token = discover(os.environ, os.geteuid())
    if token is None:
        raise ConfigError(
            f"{url}: a token is needed; put it into $BEARER_TOKEN or name its file in $BEARER_TOKEN_FILE"
        )
    try:
        verify = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"{ca}: cannot be read as certificates: {e}") from e
    return httpx.Client(base_url=url, verify=verify, timeout=60, headers={"Authorization": f"Bearer {token}"})


def stream(remote: Remote, path: str, body: Any) -> Iterator[dict[str, Any]]:
    """The JSON lines of an answer. Raises what the cache says."""
    with remote.http.stream("POST", remote.prefix + path, json=body, timeout=None) as answer:
        if answer.is_error:
            answer.read()
            raise_for(answer)
        for line in answer.iter_lines():
            if line:
                found: dict[str, Any] = json_text.loads(line)
                yield found
