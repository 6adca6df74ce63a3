"""``doma columns``: asks a column service, follows it, and brings results here."""

import asyncio
import base64
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx

from doma.app.home import default_home
from doma.auth.bearer import discover
from doma.cli import show
from doma.cli.columns_progress import Bars
from doma.cli.token import duration
from doma.columns.client import ColumnClient, Delivered
from doma.core.errors import BadQuery, BadRequest, ConfigError, PartlyFailed, ServiceUnavailable
from doma.facility.access import Access
from doma.net.problem import raise_for

T = TypeVar("T")
AT_ONCE = 4
"""Results that are downloaded at once."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which service: of a running home, or at an address."""

    home: Path | None
    url: str
    ca: Path | None

    def reach(self) -> tuple[str, str, ssl.SSLContext]:
        """Address, token, whom to trust. Raises ConfigError, ServiceUnavailable."""
        if not self.url:
            access = Access.read(self.home or default_home())
            if "servicex" not in access.services:
                raise ConfigError("columns: the running system does not have the role 'columns'")
            return access.services["servicex"], access.token(), access.tls()
        token = discover(os.environ, os.geteuid())
        if token is None:
            raise ConfigError(
                f"{self.url}: a token is needed in $BEARER_TOKEN, or its file in $BEARER_TOKEN_FILE"
            )
        try:
            return self.url, token, ssl.create_default_context(cafile=self.ca and str(self.ca))
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(f"{self.ca}: cannot be read as certificates: {e}") from e

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ColumnClient]:
        """The service's client."""
        address, token, tls = self.reach()
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        async with (
            httpx.AsyncClient(base_url=address, headers=headers, verify=tls) as http,
            httpx.AsyncClient(verify=tls, timeout=60) as plain,  # result addresses carry their own credential
        ):
            yield ColumnClient(http, plain)

    def call(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        """The JSON that a call answers; ``token`` in the place of one's own. Raises ServiceUnavailable."""
        address, own, tls = self.reach()
        headers = {"Authorization": f"Bearer {token or own}", "Accept": "application/json"}
        try:
            with httpx.Client(base_url=address, headers=headers, verify=tls, timeout=60) as http:
                answer = raise_for(http.request(method, path, json=body))
        except httpx.HTTPError as e:
            told = str(e) or type(e).__name__
            raise ServiceUnavailable(f"{address}: does not answer ({told}); try 'doma doctor'") from e
        return answer.json() if answer.content else None

    def ask(self, work: Callable[[ColumnClient], Awaitable[T]]) -> T:
        """Run something with the client."""

        async def run() -> T:
            async with self.client() as client:
                return await work(client)

        return asyncio.run(run())


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for."""

    query: str
    files: tuple[str, ...]
    did: str
    list_: Path | None
    codegen: str
    format: str
    title: str

    def inputs(self) -> list[str]:
        """The URLs. Raises BadRequest: none, or a dataset as well."""
        found = list(self.files)
        if self.list_ is not None:
            text = sys.stdin.read() if str(self.list_) == "-" else read(self.list_)
            found += [line.strip() for line in text.splitlines() if line.strip()]
        if bool(found) == bool(self.did):
            raise BadRequest("inputs: name files, or a dataset with --did, and not both")
        return found


def read(path: Path) -> str:
    """A text file. Raises ConfigError."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from e


def selection(query: str, codegen: str) -> tuple[str, str]:
    """The language and the selection as the service takes it.

    Args:
        query: Text, or ``@FILE``.
        codegen: The language; empty: by what the text looks like.

    Raises:
        BadQuery: it is no query of the language. ConfigError: the file cannot be read.

    >>> selection("EventDataset('f', 'T').Select(lambda e: {'x': e.x})", "")[0]
    'uproot'
    >>> selection('[{"treename": "T"}]', "")[0]
    'uproot-raw'
    """
    text = read(Path(query[1:])) if query.startswith("@") else query
    start = text.lstrip()[:1]
    chosen = codegen or (
        "uproot-raw" if start in {"[", "{"} else "python" if "def run_query" in text else "uproot"
    )
    if chosen == "python":
        return chosen, base64.b64encode(text.encode()).decode()
    if chosen == "uproot" and start != "(":
        import qastle

        try:
            return chosen, qastle.python_source_to_text_ast(text.strip())
        except (SyntaxError, ValueError, TypeError, LookupError, NameError, AttributeError) as e:
            raise BadQuery(f"query: neither qastle nor a func_adl expression: {e}") from e
    return chosen, text


def deliver(place: Place, asked: Asked, out: Path, timeout: str, no_wait: bool, json: bool) -> None:
    """Ask, follow, download."""
    codegen, text = selection(asked.query, asked.codegen)
    files, seconds = asked.inputs(), duration(timeout)

    async def work(client: ColumnClient) -> tuple[str, dict[str, Any], list[tuple[Delivered, Path]]]:
        how = {"codegen": codegen, "format": asked.format}
        id_ = await client.submit(text, files, did=asked.did or None, title=asked.title or None, **how)
        if no_wait:
            return id_, {}, []
        with Bars(json) as bars:
            await client.wait(id_, seconds, bars.tell if bars.shown else None)
            got = await _download(client, id_, out, bars)
        return id_, await client.status(id_, details=True), got

    id_, found, got = place.ask(work)
    if no_wait:
        show.as_json({"request_id": id_}) if json else print(id_)
        return
    _told(id_, found, got, json)


def list_requests(place: Place, json: bool) -> None:
    """A table of one's requests."""
    found = place.ask(lambda client: client.requests())
    if json:
        show.as_json(found)
        return
    rows = [
        (r["request_id"], r["title"] or "", r["status"], _files(r), r["total-events"],
         show.size(r["total-bytes"]), r["submit-time"][:19].replace("T", " "), _took(r))
        for r in found
    ]  # fmt: skip
    heads = ("id", "title", "state", "files", "rows", "results", "submitted (UTC)", "took")
    _table("requests", heads, rows, right=("rows", "results", "took"))


def show_request(place: Place, id_: str, out: Path | None, json: bool) -> None:
    """One request; its results are brought if a folder is named."""

    async def work(client: ColumnClient) -> tuple[dict[str, Any], list[tuple[Delivered, Path]]]:
        found = await client.status(id_, wait=0, details=True)
        if out is None:
            return found, []
        with Bars(json) as bars:
            return found, await _download(client, id_, out, bars)

    found, got = place.ask(work)
    if out is not None:
        _told(id_, found, got, json)
    elif json:
        show.as_json(found)
    else:
        names = ("title", "status", "codegen", "result-format", "did", "failure-info", "log-url")
        rows = [(name, found[name]) for name in names if found.get(name)]
        _table(id_, ("what", "is"), [*rows, *_sums(found)])
        _file_table(found["details"])


def cancel(place: Place, ids: Sequence[str], everything: bool, json: bool) -> None:
    """Stop requests."""
    if bool(ids) == everything:
        raise BadRequest("cancel: name requests, or --all of them")

    async def work(client: ColumnClient) -> Sequence[str]:
        if everything:
            return await client.cancel_all()
        return await _each(ids, client.cancel)

    _done("canceled", place.ask(work), json)


def remove(place: Place, ids: Sequence[str], json: bool) -> None:
    """Remove requests."""
    if not ids:
        raise BadRequest("rm: name requests")
    _done("removed", place.ask(lambda client: _each(ids, client.delete)), json)


def logs(place: Place, id_: str, json: bool) -> None:
    """Reasons and logs, file by file."""
    found = place.ask(lambda client: client.status(id_, wait=0, details=True))
    told = [f for f in found["details"] if f["reason"] or f["log"] or f["history"] or f["pushed"]]
    if json:
        show.as_json({"request_id": id_, "status": found["status"], "files": told})
        return
    for file in told:
        print(f"== {file['file-path']}: {file['transform_status']}")
        if file["pushed"]:
            print("the filter ran beside the data")
        for past in file["history"]:
            print(f"attempt {past['attempt']}: {past['reason']}")
        if file["reason"]:
            print(file["reason"])
        if file["log"]:
            print(file["log"].rstrip())
    if not told:
        print(found["failure-info"] or f"{found['status']}: nothing went wrong", file=sys.stderr)


def codegens(place: Place, json: bool) -> None:
    """The languages."""
    found = place.ask(lambda client: client.offered())
    if json:
        show.as_json(found)
    else:
        for name in found["code-gen-image"]:
            print(name)


async def _each(ids: Sequence[str], work: Callable[[str], Awaitable[None]]) -> Sequence[str]:
    for id_ in ids:
        await work(id_)
    return ids


async def _download(client: ColumnClient, id_: str, out: Path, bars: Bars) -> list[tuple[Delivered, Path]]:
    results = await client.urls(id_)
    room = asyncio.Semaphore(AT_ONCE)
    bars.downloads(sum(r.bytes for r in results))

    async def one(result: Delivered) -> tuple[Delivered, Path]:
        async with room:
            path = await client.download(result, out)
        bars.got(result.bytes)
        return result, path

    return await asyncio.gather(*map(one, results))


def _told(id_: str, found: dict[str, Any], got: Sequence[tuple[Delivered, Path]], json: bool) -> None:
    """Say what came; raises PartlyFailed when some files did not."""
    failed = [f for f in found["details"] if f["transform_status"] == "failure"]
    if json:
        files = [{"path": str(p), "bytes": r.bytes, "rows": r.rows, "source": r.source} for r, p in got]
        lost = [{"source": f["file-path"], "reason": f["reason"]} for f in failed]
        show.as_json({"request_id": id_, "status": found["status"], "files": files, "failed": lost})
    else:
        for _, path in got:
            print(path)
    if failed:
        raise PartlyFailed(
            f"request {id_}: {len(failed)} of {found['files']} files failed: {failed[0]['reason']};"
            f" see 'doma columns logs {id_}'"
        )


def _files(record: dict[str, Any]) -> str:
    failed = f", {record['files-failed']} failed" if record["files-failed"] else ""
    return f"{record['files-completed']} of {record['files']}{failed}"


def _sums(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Files, events and bytes of a request so far."""
    stats = record["stats"]
    running = f", {stats['files-running']} running" if stats["files-running"] else ""
    beside = stats["files-filtered-beside-data"]
    return [
        ("files", _files(record) + running),
        ("read", f"{stats['input-events']} events, {show.size(stats['input-bytes'])}"),
        ("results", f"{stats['total-events']} rows, {show.size(stats['total-bytes'])}"),
        ("took", _took(record)),
        *([("filtered beside the data", f"{beside} files")] if beside else []),
    ]


def _took(record: dict[str, Any]) -> str:
    """How long a request took, or has been at it."""
    began = datetime.fromisoformat(record["submit-time"])
    ended = record["finish-time"]
    end = datetime.now(UTC) if ended == "None" else datetime.fromisoformat(ended)
    return str(timedelta(seconds=round((end - began).total_seconds())))


def _file_table(files: Sequence[dict[str, Any]]) -> None:
    rows = [
        (f["file-path"], f["transform_status"], f["total-events"], show.size(f["total-bytes"]),
         show.size(f["input-bytes"]), f["reason"] or "")
        for f in files
    ]  # fmt: skip
    columns = ("file", "state", "rows", "result", "read", "reason")
    _table("files", columns, rows, right=("rows", "result", "read"))


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()
) -> None:
    """A table of what others have written: no markup of theirs counts."""
    from rich.markup import escape

    show.table(title, columns, [[escape(str(cell)) for cell in row] for row in rows], right)


def _done(what: str, ids: Sequence[str], json: bool) -> None:
    if json:
        show.as_json({what: list(ids)})
    else:
        for id_ in ids:
            print(f"{what} {id_}")
